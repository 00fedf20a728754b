"""A model and batches -> one step of training, validation or prediction, and the trainer that repeats them.

The tasks write what a batch's loss is; noise, rates, sums over processes and checkpoints are the same for all.
"""

import dataclasses
import logging
import math
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from torch import Tensor, nn

from throughtime.fit.checkpoint import SafeCheckpoint
from throughtime.fit.options import TrainingOptions
from throughtime.fit.seeds import seed_noise
from throughtime.fit.words import figure, percent

__all__ = ["Batch", "Processes", "Score", "Totals", "Training", "make_trainer"]


@dataclass
class Totals:
    """Sums over (a part of) an epoch, in all processes; `units` are what the loss is the mean of, rows or tokens."""

    loss: float = 0.0
    correct: float = 0.0
    rows: float = 0.0
    units: float = 0.0

    def add(self, loss: float, correct: float, rows: float, units: float) -> None:
        self.loss, self.correct = self.loss + loss, self.correct + correct
        self.rows, self.units = self.rows + rows, self.units + units

    @property
    def mean_loss(self) -> float:
        return self.loss / max(self.units, 1)

    @property
    def share_correct(self) -> float:
        return self.correct / max(self.rows, 1)


@dataclass(frozen=True)
class Score:
    """What a person reads beside the loss. share: from 0 to 1, the more the better; else it follows the loss."""

    name: str
    short: str
    share: bool
    of: Callable[[Totals], float]

    def show(self, value: float | None) -> str:
        return percent(value) if self.share else figure(value)


class Batch(Protocol):
    """This process's rows of a batch; over all processes it has `total` rows, and `units` that the loss is of."""

    @property
    def lengths(self) -> Tensor: ...
    @property
    def total(self) -> int: ...
    @property
    def units(self) -> int: ...


class Training(pl.LightningModule, ABC):
    """The mean loss over the units of the whole batch, whichever process holds them. A task writes `measure`.

    totals: of the epoch so far; whoever reads them at its end makes new ones. batch_loss: of the last batch.
    """

    score: Score

    def __init__(self, model: nn.Module, options: TrainingOptions) -> None:
        super().__init__()
        self.model = model
        self.options = options
        self.totals = {"train": Totals(), "validation": Totals()}
        self.batch_loss = 0.0

    @abstractmethod
    def measure(self, batch: Any, part: str) -> tuple[Tensor, Tensor]:
        """The sum of the losses of this process's rows, and how many of these rows are right."""

    @abstractmethod
    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        """What the model says of a batch; the task puts it together."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.model.parameters(), lr=self.options.learning_rate)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """The noise and the rate of a step depend on the step alone, so that a resumed run has the same."""
        steps: int = self.trainer.max_epochs * self.trainer.num_training_batches  # type: ignore[operator,assignment]
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = _rate(self.options, self.global_step / steps)
        seed_noise(self.options.seed, 1 + self.global_step, self.global_rank)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self._measure(batch, "train")
        if not bool(batch.lengths.any()):
            loss = loss + self._nothing()
        # The gradients of the processes are averaged; each must count with what it holds of the whole batch.
        return loss * self.trainer.world_size / batch.units

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._measure(batch, "validation")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["totals"] = dataclasses.asdict(self.totals["train"])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.totals["train"] = Totals(**checkpoint["totals"])

    def _measure(self, batch: Batch, part: str) -> Tensor:
        """The sum of the losses of this process's rows; those of all processes go into the totals."""
        loss, correct = self.measure(batch, part)
        local = torch.stack([loss.detach(), correct.to(loss.dtype)])
        summed: Any = self.trainer.strategy.reduce(local, reduce_op="sum")
        loss_sum, correct_sum = summed.tolist()
        self.totals[part].add(loss_sum, correct_sum, batch.total, batch.units)
        self.batch_loss = loss_sum / batch.units
        return loss

    def _nothing(self) -> Tensor:
        """0 that depends on every parameter: where no row has a step, the cells would have no gradient at all."""
        return torch.stack([(p * 0).sum() for p in self.model.parameters()]).sum()


def _rate(options: TrainingOptions, done: float) -> float:
    """The learning rate when this share of the training is done."""
    if options.schedule == "constant":
        return options.learning_rate
    return options.learning_rate * (1 + math.cos(math.pi * done)) / 2


@dataclass(frozen=True)
class Processes:
    """Who takes part, as torchrun says."""

    rank: int
    world: int
    local: int

    @staticmethod
    def from_environment() -> "Processes":
        rank, world, local = (int(os.environ.get(name, default)) for name, default in _TORCHRUN.items())
        return Processes(rank, world, local)

    @property
    def first(self) -> bool:
        return self.rank == 0


_TORCHRUN = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}


def make_trainer(
    options: TrainingOptions, callbacks: Sequence[pl.Callback], processes: Processes | None = None
) -> pl.Trainer:
    """Lightning's trainer; without `processes` for this process alone."""
    _quieten()
    together = processes is not None and processes.world > 1
    spread: dict[str, Any] = {"devices": 1}
    plugins: list[Any] = [SafeCheckpoint()]
    if together and processes is not None:
        nodes = processes.world // processes.local
        spread = {"devices": processes.local, "num_nodes": nodes, "strategy": "ddp"}
    else:
        plugins.append(LightningEnvironment())  # even where torchrun started this process
    return pl.Trainer(
        accelerator=options.accelerator,
        precision=options.precision,
        max_epochs=options.epochs,
        gradient_clip_val=options.clip or None,
        callbacks=list(callbacks),
        plugins=plugins,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        **spread,
    )


def _quieten() -> None:
    """Lightning's remarks about devices, workers and other products say nothing about this run."""
    for name in ("pytorch_lightning", "lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for module in ("pytorch_lightning", "lightning_fabric", "torchmetrics"):
        warnings.filterwarnings("ignore", module=rf"{module}\..*")
