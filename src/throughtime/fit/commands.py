"""fit, evaluate, predict: what each command does, given options."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table as RichTable

from throughtime.fit.data.batches import Batches, padding_share
from throughtime.fit.data.encoding import Encoding, encode
from throughtime.fit.data.sources import PARTS, Data, read_data, read_table, source_name
from throughtime.fit.data.table import Table
from throughtime.fit.errors import FitError
from throughtime.fit.keeper import RunKeeper
from throughtime.fit.model import SequenceClassifier, build_model
from throughtime.fit.options import Options, TrainingOptions
from throughtime.fit.predictions import Predictions, check_output, write_predictions
from throughtime.fit.progress import EpochLines, PassBar, percent
from throughtime.fit.report.page import write_report
from throughtime.fit.run_directory import RunDirectory, default_directory
from throughtime.fit.training import ClassifierTraining, Processes, make_trainer

__all__ = ["evaluate", "fit", "predict"]


def fit(options: Options, run: Path | None, resume: bool) -> None:
    """Train, measure the saved model on the test part, write the report."""
    processes = Processes.from_environment()
    console = Console(quiet=not processes.first, soft_wrap=True)
    directory = RunDirectory(run or default_directory(options))
    if processes.first:
        directory.check_free_for(options, resume)
    finished = directory.read_results() if resume else None
    if finished and finished["epochs"] == options.training.epochs:
        console.print(f"{directory.path} holds this run, finished. To train again, name another directory with --run.")
        _tell_end(console, directory, finished)
        return
    data = read_data(options.data, tokens=bool(options.model.embed))
    model = build_model(options.model, data.encoding, options.training.seed)
    resumed = resume and directory.checkpoint.is_file()
    _tell_start(console, options, data, model, directory, resumed)
    if processes.first:
        directory.begin(options, data.encoding, data.fingerprint)
    keeper = RunKeeper(directory, options.training.checkpoint_every)
    _train(console, options.training, data, model, keeper, processes, resumed)
    if processes.first:
        _finish(console, options, data, directory, keeper)


def evaluate(run: Path, source: str | None, part: str) -> None:
    """Print how well the saved model does."""
    console = Console(soft_wrap=True)
    saved = _open(run)
    table = saved.read(source, part, need_labels=True)
    predictions = _predict(console, saved.model, table, saved.encoding, saved.options.training)
    name = source_name(source or saved.options.data.data)
    console.print(f"{name}, {part} part, weights of epoch {saved.epoch}", highlight=False)
    _tell_metrics(console, predictions)
    _tell_classes(console, predictions)


def predict(run: Path, source: str | None, part: str, out: Path) -> None:
    """Write what the saved model says of each sequence."""
    check_output(out)
    console = Console(soft_wrap=True)
    saved = _open(run)
    table = saved.read(source, part, need_labels=False)
    predictions = _predict(console, saved.model, table, saved.encoding, saved.options.training)
    write_predictions(out, predictions)
    console.print(f"{len(table):,} predictions in {out}", highlight=False)
    if table.labels is not None:
        _tell_metrics(console, predictions)


@dataclass(frozen=True)
class _Saved:
    """A run that has a trained model."""

    options: Options
    encoding: Encoding
    model: SequenceClassifier
    epoch: int

    def read(self, source: str | None, part: str, need_labels: bool) -> Table:
        """The sequences of a part of the run's own data, or of another source."""
        chosen, tokens = (
            replace(self.options.data, data=source or self.options.data.data),
            bool(self.options.model.embed),
        )
        if part == "all":
            return encode(read_table(chosen, tokens, need_labels), self.encoding)
        table = read_data(chosen, tokens, self.encoding).part(part)
        if not len(table):
            raise FitError(f"{chosen.data} has no sequences in its {part} part.")
        return table


def _open(run: Path) -> _Saved:
    directory = RunDirectory(run)
    return _Saved(directory.read_options(), directory.read_encoding(), *directory.read_model())


def _train(
    console: Console,
    options: TrainingOptions,
    data: Data,
    model: SequenceClassifier,
    keeper: RunKeeper,
    processes: Processes,
    resumed: bool,
) -> None:
    module = ClassifierTraining(model, options)
    trainer = make_trainer(options, [keeper, EpochLines(console, keeper)], processes)
    share = {"rank": processes.rank, "world": processes.world}
    trainer.fit(
        module,
        Batches(data.train, options.batch, options.seed, **share),
        Batches(data.validation, options.batch, **share) if len(data.validation) else None,
        ckpt_path=str(keeper.run.checkpoint) if resumed else None,
    )


def _finish(console: Console, options: Options, data: Data, directory: RunDirectory, keeper: RunKeeper) -> None:
    model, epoch = directory.read_model()
    predictions = _predict(console, model, data.test, data.encoding, options.training)
    results = {
        "epochs": options.training.epochs,
        "best_epoch": epoch,
        "test_accuracy": predictions.accuracy,
        "test_loss": predictions.loss,
        "test_sequences": len(data.test),
        "seconds": sum(row["seconds"] for row in keeper.history),
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    # Lightning leaves a model in the precision it worked in, so the report reads it anew.
    write_report(directory, options, data, directory.read_model()[0], keeper.history, predictions, results)
    directory.write_results(results)
    _tell_end(console, directory, results)


def _predict(
    console: Console, model: SequenceClassifier, table: Table, encoding: Encoding, options: TrainingOptions
) -> Predictions:
    trainer = make_trainer(options, [PassBar(console, "reading sequences")])
    passes: Any = trainer.predict(ClassifierTraining(model, options), Batches(table, options.batch))
    rows, log_probabilities = (torch.cat(column).numpy() for column in zip(*passes))
    return Predictions(table, log_probabilities[np.argsort(rows)], encoding)


def _tell_start(
    console: Console, options: Options, data: Data, model: SequenceClassifier, directory: RunDirectory, resumed: bool
) -> None:
    training = options.training
    counts = " / ".join(f"{len(data.part(part)):,} {part}" for part in PARTS)
    parameters = sum(p.numel() for p in model.parameters())
    layers = f"{options.model.layers} layers" if options.model.layers > 1 else "1 layer"
    lines = {
        "data": f"{source_name(options.data.data)}: {_steps_in_words(data)}, {len(data.encoding.classes)} classes",
        "": f"{counts} sequences{_padding_in_words(data, training)}",
        "model": f"{options.model.cell}, {options.model.units} units, {layers}: {parameters:,} parameters",
        "training": _training_in_words(options),
        "run": f"{directory.path}{' (resumed from its last checkpoint)' if resumed else ''}",
    }
    for name, line in lines.items():
        console.print(f"[bold]{name:<10}[/bold]{line}", highlight=False)
    console.print()


def _steps_in_words(data: Data) -> str:
    lengths = np.concatenate([data.part(part).lengths for part in PARTS])
    shortest, longest = int(lengths.min()), int(lengths.max())
    steps = f"{longest}" if shortest == longest else f"{shortest} to {longest}"
    if data.encoding.vocabulary is not None:
        return f"{steps} tokens, a vocabulary of {len(data.encoding.vocabulary):,}"
    return f"{steps} steps of {data.encoding.width} number{'s' * (data.encoding.width != 1)}"


def _training_in_words(options: Options) -> str:
    training = options.training
    words = f"{training.epochs} epochs, batches of {training.batch}, Adam {training.learning_rate:g}"
    words += " with a cosine schedule" if training.schedule == "cosine" else ""
    words += f", dropout {options.model.dropout:g}" if options.model.dropout else ""
    return words + (f", gradients clipped at {training.clip:g}" if training.clip else "")


def _padding_in_words(data: Data, training: TrainingOptions) -> str:
    share = padding_share(Batches(data.train, training.batch, training.seed))
    return f", {percent(share)} padding in a batch" if share else ""


def _tell_end(console: Console, directory: RunDirectory, results: dict[str, Any]) -> None:
    right = round(results["test_accuracy"] * results["test_sequences"])
    console.print()
    console.print(
        f"[bold green]test accuracy {percent(results['test_accuracy'], 2)}[/bold green]   {right:,} of "
        f"{results['test_sequences']:,} sequences right, with the weights of epoch {results['best_epoch']}; "
        f"trained for {results['seconds']:.0f} s",
        highlight=False,
    )
    console.print(f"[bold]report[/bold]        {directory.report}", highlight=False)


def _tell_metrics(console: Console, predictions: Predictions) -> None:
    right = len(predictions.table) - len(predictions.wrong)
    console.print(
        f"[bold green]accuracy {percent(predictions.accuracy, 2)}[/bold green]   {right:,} of "
        f"{len(predictions.table):,} sequences right; loss {predictions.loss:.4f}",
        highlight=False,
    )


def _tell_classes(console: Console, predictions: Predictions) -> None:
    confusion = predictions.confusion
    table = RichTable("class", "sequences", "found", "right when said", "most often taken for", box=SIMPLE)
    for number, name in enumerate(predictions.encoding.classes):
        there, said, hit = confusion[number].sum(), confusion[:, number].sum(), confusion[number, number]
        others = np.where(np.arange(len(confusion)) == number, 0, confusion[number])
        worst = int(others.argmax())
        taken = f"{predictions.encoding.classes[worst]} ({others[worst]} times)" if others[worst] else ""
        found, right = (percent(hit / n) if n else "-" for n in (there, said))
        table.add_row(name, f"{there:,}", found, right, taken)
    console.print(table)
