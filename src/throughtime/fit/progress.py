"""A run under way -> what a person sees: a bar, and a line every few epochs."""

import math
import sys
from typing import Any

import pytorch_lightning as pl
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from throughtime.fit.keeper import Epoch, RunKeeper
from throughtime.fit.training import Batch, Score, Training

__all__ = ["EpochLines", "PassBar"]

LINES = 20  # about so many epochs are told of; the bar shows the others


class EpochLines(pl.Callback):
    """The progress of `fit`: every batch moves the bar, some epochs leave a line. Stands after the keeper."""

    def __init__(self, console: Console, keeper: RunKeeper) -> None:
        self.console, self.keeper = console, keeper
        self._bar = _make_bar(console)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Training) -> None:
        if not trainer.is_global_zero:
            return
        self.console.print(f"[bold]{_header(pl_module.score)}[/bold]", highlight=False)
        batches = int(trainer.num_training_batches)
        total = (trainer.max_epochs or 0) * batches
        self._task = self._bar.add_task("training", total=total, completed=trainer.global_step, note="")
        self._bar.start()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Training, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if not trainer.is_global_zero:
            return
        totals = pl_module.totals["train"]
        note = f"epoch {trainer.current_epoch + 1}, loss {totals.mean_loss:.3f}"
        self._bar.update(self._task, completed=trainer.global_step, note=note)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Training) -> None:
        last, row = trainer.max_epochs or 0, self.keeper.history[-1]
        often = row["epoch"] % max(math.ceil(last / LINES), 1) == 0
        if trainer.is_global_zero and (often or row["epoch"] in (1, last)):
            self.console.print(_line(row, row is self.keeper.best, pl_module.score), highlight=False)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._bar.stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        self._bar.stop()
        if isinstance(exception, KeyboardInterrupt) and trainer.is_global_zero:
            self.console.print("Stopped. The same command with --resume goes on from the last checkpoint.")


def _header(score: Score) -> str:
    train, valid = (f"{part} {score.short}" for part in ("train", "valid"))
    return f"{'epoch':>7}  {'train loss':>10}  {train:>9}  {'valid loss':>10}  {valid:>9}"


def _line(row: Epoch, best: bool, score: Score) -> str:
    line = f"{row['epoch']:>7}  {row['train_loss']:>10.4f}  {score.show(row[f'train_{score.name}']):>9}"
    if row["validation_loss"] is None:
        return line
    line += f"  {row['validation_loss']:>10.4f}  {score.show(row[f'validation_{score.name}']):>9}"
    return line + ("  [green]best so far[/green]" if best else "")


class PassBar(pl.Callback):
    """The progress of one pass over sequences: `evaluate`, `predict`, and the test at the end of `fit`."""

    def __init__(self, console: Console, what: str) -> None:
        self._bar = _make_bar(console)
        self._what = what

    def on_predict_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        batches = sum(map(int, trainer.num_predict_batches))
        self._task = self._bar.add_task(self._what, total=batches, note="")
        self._bar.start()

    def on_predict_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self._bar.advance(self._task)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._bar.stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        self._bar.stop()


def _make_bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=32),
        MofNCompleteColumn(),
        TextColumn("batches"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        transient=True,
        disable=not sys.stdout.isatty(),
    )
