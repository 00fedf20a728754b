"""The task of a language model: how a text goes on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from throughtime.fit.data.parts import PARTS, Data
from throughtime.fit.options import Options
from throughtime.fit.report.page import Finished
from throughtime.fit.tasks.language_model.model import LanguageModel, build_language_model
from throughtime.fit.tasks.language_model.report import make_page
from throughtime.fit.tasks.language_model.said import Reading, write_reading
from throughtime.fit.tasks.language_model.text import (
    TextEncoding,
    TextPart,
    Windows,
    absolute_source,
    read_all_text,
    read_text_parts,
    source_name,
)
from throughtime.fit.tasks.language_model.training import LanguageModelTraining, Surprise
from throughtime.fit.tasks.task import Task
from throughtime.fit.words import counted, figure

__all__ = ["LanguageModelling"]

MEASURED_WINDOWS = 16  # of a row, at least, so that few of its tokens are read without what stands before them


class LanguageModelling(Task):
    name = "language-model"

    def source_name(self, source: str) -> str:
        return source_name(source)

    def absolute_source(self, source: str) -> str:
        return absolute_source(source)

    def read_data(self, options: Options, encoding: Any = None) -> Data:
        return read_text_parts(options.data, encoding)

    def read_all(self, options: Options, encoding: TextEncoding, need_answers: bool) -> TextPart:
        return read_all_text(options.data, encoding)

    def read_encoding(self, known: Mapping[str, Any]) -> TextEncoding:
        return TextEncoding.from_json(known)

    def build_model(self, options: Options, encoding: TextEncoding) -> LanguageModel:
        return build_language_model(options.model, encoding, options.training.seed)

    def make_training(self, model: LanguageModel, options: Options, encoding: TextEncoding) -> LanguageModelTraining:
        return LanguageModelTraining(model, options.training)

    def make_batches(
        self, part: TextPart, options: Options, seed: int | None = None, rank: int = 0, world: int = 1
    ) -> Windows:
        window = options.data.window
        least = window if seed is not None else window * MEASURED_WINDOWS
        return Windows(part, options.training.batch, window, least, rank, world)

    def introduce(self, options: Options, data: Data) -> dict[str, str]:
        model = options.model
        counts = " / ".join(f"{len(data.part(part)):,} {part}" for part in PARTS)
        name, size = source_name(options.data.data), len(data.encoding.vocabulary)
        return {
            "data": f"{name}: running text, a vocabulary of {size:,}",
            "": f"{counts} {options.data.tokens}, in windows of {options.data.window}",
            "model": f"{model.cell}, {model.units} units, {counted(model.layers, 'layer')}",
        }

    def collect(self, part: TextPart, passes: list[Surprise], options: Options, encoding: TextEncoding) -> Reading:
        losses = torch.cat([surprise.losses for surprise in passes], 1).flatten()
        return Reading(part, losses[: len(part)].numpy(), encoding.vocabulary)

    def results(self, said: Reading) -> dict[str, Any]:
        return {
            "test_perplexity": said.perplexity,
            "test_loss": said.loss,
            "test_bits": float(said.bits.mean()),
            "test_tokens": len(said.part),
        }

    def headline(self, results: Mapping[str, Any]) -> tuple[str, str]:
        return (
            f"test perplexity {figure(results['test_perplexity'])}",
            f"{results['test_bits']:.3f} bits a token, over {results['test_tokens']:,} tokens",
        )

    def tell(self, console: Console, said: Reading, in_detail: bool) -> None:
        console.print(
            f"[bold green]perplexity {figure(said.perplexity)}[/bold green]   loss {said.loss:.4f}, "
            f"{said.bits.mean():.3f} bits a token, over {len(said.part):,} {said.vocabulary.cut_into}",
            highlight=False,
        )

    def write(self, path: Path, said: Reading) -> None:
        write_reading(path, said)

    def report(self, run: Finished) -> str:
        return make_page(run)
