"""The task of a classifier: a label for each sequence."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table as RichTable

from throughtime.fit.data.batches import Batches, padding_share
from throughtime.fit.data.parts import PARTS, Data
from throughtime.fit.data.table import Table
from throughtime.fit.options import Options
from throughtime.fit.report.page import Finished
from throughtime.fit.tasks.classify.encoding import Encoding, encode
from throughtime.fit.tasks.classify.model import SequenceClassifier, build_model
from throughtime.fit.tasks.classify.predictions import Predictions, write_predictions
from throughtime.fit.tasks.classify.report import make_page
from throughtime.fit.tasks.classify.sources import absolute_source, read_data, read_table, source_name
from throughtime.fit.tasks.classify.training import ClassifierTraining
from throughtime.fit.tasks.task import Task
from throughtime.fit.words import counted, percent

__all__ = ["Classify"]


class Classify(Task):
    name = "classify"

    def source_name(self, source: str) -> str:
        return source_name(source)

    def absolute_source(self, source: str) -> str:
        return absolute_source(source)

    def read_data(self, options: Options, encoding: Any = None) -> Data:
        return read_data(options.data, bool(options.model.embed), encoding)

    def read_all(self, options: Options, encoding: Encoding, need_answers: bool) -> Table:
        return encode(read_table(options.data, bool(options.model.embed), need_answers), encoding)

    def read_encoding(self, known: Mapping[str, Any]) -> Encoding:
        vocabulary = known["vocabulary"]
        lists = {"classes": tuple(known["classes"]), "vocabulary": vocabulary and tuple(vocabulary)}
        return Encoding(**{**known, **lists})

    def build_model(self, options: Options, encoding: Encoding) -> SequenceClassifier:
        return build_model(options.model, encoding, options.training.seed)

    def make_training(self, model: SequenceClassifier, options: Options, encoding: Encoding) -> ClassifierTraining:
        return ClassifierTraining(model, options.training)

    def make_batches(
        self, part: Table, options: Options, seed: int | None = None, rank: int = 0, world: int = 1
    ) -> Batches:
        return Batches(part, options.training.batch, seed, rank, world)

    def introduce(self, options: Options, data: Data) -> dict[str, str]:
        counts = " / ".join(f"{len(data.part(part)):,} {part}" for part in PARTS)
        share = padding_share(self.make_batches(data.train, options, options.training.seed))
        padding = f", {percent(share)} padding in a batch" if share else ""
        name = source_name(options.data.data)
        return {
            "data": f"{name}: {_steps_in_words(data)}, {len(data.encoding.classes)} classes",
            "": f"{counts} sequences{padding}",
            "model": f"{options.model.cell}, {options.model.units} units, {counted(options.model.layers, 'layer')}",
        }

    def collect(self, part: Table, passes: Any, options: Options, encoding: Encoding) -> Predictions:
        rows, log_probabilities = (torch.cat(column).numpy() for column in zip(*passes))
        return Predictions(part, log_probabilities[np.argsort(rows)], encoding)

    def results(self, said: Predictions) -> dict[str, Any]:
        return {"test_accuracy": said.accuracy, "test_loss": said.loss, "test_sequences": len(said.table)}

    def headline(self, results: Mapping[str, Any]) -> tuple[str, str]:
        right = round(results["test_accuracy"] * results["test_sequences"])
        return (
            f"test accuracy {percent(results['test_accuracy'], 2)}",
            f"{right:,} of {results['test_sequences']:,} sequences right",
        )

    def tell(self, console: Console, said: Predictions, in_detail: bool) -> None:
        right = len(said.table) - len(said.wrong)
        console.print(
            f"[bold green]accuracy {percent(said.accuracy, 2)}[/bold green]   {right:,} of "
            f"{len(said.table):,} sequences right; loss {said.loss:.4f}",
            highlight=False,
        )
        if in_detail:
            _tell_classes(console, said)

    def write(self, path: Path, said: Predictions) -> None:
        write_predictions(path, said)

    def report(self, run: Finished) -> str:
        return make_page(run)


def _steps_in_words(data: Data) -> str:
    lengths = np.concatenate([data.part(part).lengths for part in PARTS])
    shortest, longest = int(lengths.min()), int(lengths.max())
    steps = f"{longest}" if shortest == longest else f"{shortest} to {longest}"
    if data.encoding.vocabulary is not None:
        return f"{steps} tokens, a vocabulary of {len(data.encoding.vocabulary):,}"
    return f"{steps} steps of {counted(data.encoding.width, 'number')}"


def _tell_classes(console: Console, said: Predictions) -> None:
    confusion = said.confusion
    table = RichTable("class", "sequences", "found", "right when said", "most often taken for", box=SIMPLE)
    for number, name in enumerate(said.encoding.classes):
        there, named, hit = confusion[number].sum(), confusion[:, number].sum(), confusion[number, number]
        others = np.where(np.arange(len(confusion)) == number, 0, confusion[number])
        worst = int(others.argmax())
        taken = f"{said.encoding.classes[worst]} ({others[worst]} times)" if others[worst] else ""
        found, right = (percent(hit / n) if n else "-" for n in (there, named))
        table.add_row(name, f"{there:,}", found, right, taken)
    console.print(table)
