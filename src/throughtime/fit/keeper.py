"""A run under way -> its files: the curve, the best weights so far, and what --resume needs."""

import csv
import io
import time
from typing import Any

import pytorch_lightning as pl
from torch.utils.tensorboard import SummaryWriter

from throughtime.fit.files import write_text
from throughtime.fit.run_directory import RunDirectory
from throughtime.fit.training import Batch, Totals, Training

__all__ = ["Epoch", "RunKeeper"]

Epoch = dict[str, Any]


class RunKeeper(pl.Callback):
    """At the end of each epoch: a line of the curve, the weights if they are the best, then a checkpoint.

    The order makes a kill harmless at any place: files written after the last checkpoint are written again, with the
    same contents, when the run is resumed from it.

    history: one row an epoch. best: the row whose weights are saved.
    """

    def __init__(self, run: RunDirectory, checkpoint_every: int) -> None:
        self.run, self.checkpoint_every = run, checkpoint_every
        self.history: list[Epoch] = []
        self.best: Epoch | None = None
        self._seconds = 0.0  # of this epoch, before it was interrupted
        self._began = 0.0
        self._writer: SummaryWriter | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._began = time.monotonic()
        if trainer.is_global_zero:
            self._writer = SummaryWriter(str(self.run.tensorboard), purge_step=trainer.global_step + 1)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Training, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if self._writer is not None:
            self._writer.add_scalar("step/train_loss", pl_module.batch_loss, trainer.global_step)
        last = batch_idx + 1 == trainer.num_training_batches
        if self.checkpoint_every and not last and (batch_idx + 1) % self.checkpoint_every == 0:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Training) -> None:
        row = self._take_row(trainer, pl_module)
        self.history.append(row)
        improved = self.best is None or _rank(row) > _rank(self.best)
        self.best = row if improved else self.best
        if trainer.is_global_zero:
            self._write(row)
            if improved:
                self.run.write_model(pl_module.model, row["epoch"])
        self._save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self._writer is not None:
            self._writer.close()

    def state_dict(self) -> dict[str, Any]:
        seconds = self._seconds + time.monotonic() - self._began
        return {"history": self.history, "best": self.best, "seconds": seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history, self.best = state_dict["history"], state_dict["best"]
        self._seconds = state_dict["seconds"]

    def _take_row(self, trainer: pl.Trainer, module: Training) -> Epoch:
        now = time.monotonic()
        seconds, self._seconds, self._began = self._seconds + now - self._began, 0.0, now
        row: Epoch = {"epoch": len(self.history) + 1, "step": trainer.global_step}
        for part in ("train", "validation"):
            totals, module.totals[part] = module.totals[part], Totals()
            known = totals.rows > 0
            row[f"{part}_loss"] = totals.mean_loss if known else None
            row[f"{part}_{module.score.name}"] = module.score.of(totals) if known else None
        return {**row, "seconds": seconds}

    def _write(self, row: Epoch) -> None:
        lines = io.StringIO()
        table = csv.DictWriter(lines, list(row), lineterminator="\n")
        table.writeheader()
        table.writerows(self.history)
        write_text(self.run.metrics, lines.getvalue())
        assert self._writer is not None
        for name, value in row.items():
            if name not in ("epoch", "step") and value is not None:
                self._writer.add_scalar(f"epoch/{name}", value, row["step"])
        self._writer.flush()

    def _save(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.run.checkpoint)


def _rank(row: Epoch) -> tuple[float, float]:
    """The larger the better: the share of validation rows that are right, where it is known, then the loss; without
    validation, the later the better."""
    if row["validation_loss"] is None:
        return row["epoch"], 0.0
    shares = [row[name] for name in ("validation_accuracy", "validation_exact_match") if name in row]
    return (shares or [0.0])[0], -row["validation_loss"]
