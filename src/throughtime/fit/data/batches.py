"""Rows of a table -> batches of rows of similar length, in an order fixed by (seed, epoch), one share a process."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from throughtime.fit.data.table import Table

__all__ = ["Batch", "Batches", "ResumableBatches", "pad", "padded", "padding_share"]

POOL = 50  # batches; sequences are sorted by length within a pool of so many batches


class Batch(NamedTuple):
    """This process's rows of one batch.

    values: [B, T, I] numbers or [B, T] token ids, zero past each row's length.
    lengths: [B].
    labels: [B], or None.
    rows: [B], numbers in the source.
    total: rows of the batch over all processes.
    """

    values: Tensor
    lengths: Tensor
    labels: Tensor | None
    rows: Tensor
    total: int

    @property
    def units(self) -> int:
        return self.total


class ResumableBatches(ABC):
    """Iterating gives an epoch's batches; `set_epoch`, `state_dict` and `load_state_dict` are what Lightning calls.

    An epoch's batches depend on its number alone, so a position is a number of batches.
    """

    def __init__(self) -> None:
        self.epoch = self.position = self.begin_at = 0

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def order(self) -> Sequence[Any]:
        """What stands for each batch of this epoch."""

    @abstractmethod
    def make(self, item: Any) -> Any:
        """That -> the batch."""

    def __iter__(self) -> Iterator[Any]:
        self.position, self.begin_at = self.begin_at, 0
        for item in self.order()[self.position :]:
            self.position += 1
            yield self.make(item)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position % max(len(self), 1)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.begin_at = state["position"]


class Rows(Protocol):
    """Rows of some lengths."""

    @property
    def lengths(self) -> np.ndarray: ...


Collate = Callable[[Any, np.ndarray, np.ndarray], Any]


def pad(table: Table, rows: np.ndarray, share: np.ndarray) -> Batch:
    """This process's share of these rows, padded to the longest of all of them."""
    values = padded(table, share, int(table.lengths[rows].max(initial=0)))
    labels = None if table.labels is None else torch.from_numpy(table.labels[share])
    lengths, numbers = (torch.from_numpy(column[share]) for column in (table.lengths, table.rows))
    return Batch(values, lengths, labels, numbers, len(rows))


def padded(table: Table, rows: np.ndarray, steps: int) -> Tensor:
    """The steps of these rows as a rectangle, zero past each row's length."""
    values = np.zeros((len(rows), steps, *table.values.shape[1:]), table.values.dtype)
    values[np.arange(steps) < table.lengths[rows][:, None]] = table.values[table.steps_of(rows)]
    return torch.from_numpy(values)


class Batches(ResumableBatches):
    """Batches of rows of similar length; without a seed in the order of length alone, the same in every epoch.

    Each process takes every world-th row of a batch, longest first: equal work. collate: (table, rows of the batch,
    rows of this process) -> the batch.
    """

    def __init__(
        self, table: Rows, size: int, seed: int | None = None, rank: int = 0, world: int = 1, collate: Collate = pad
    ) -> None:
        super().__init__()
        self.table, self.size, self.seed, self.collate = table, size, seed, collate
        self.rank, self.world = rank, world
        if seed is not None:
            self.sampler = self  # where Lightning looks for set_epoch

    def __len__(self) -> int:
        return math.ceil(len(self.table.lengths) / self.size)

    def order(self) -> list[np.ndarray]:
        """The rows of each batch of this epoch, longest row first."""
        lengths = self.table.lengths
        if self.seed is None:
            by_length = np.argsort(-lengths, kind="stable")
            return self._cut(by_length)
        random = np.random.default_rng([self.seed, self.epoch])
        drawn = random.permutation(len(lengths))
        pool = POOL * self.size
        pools = [drawn[start : start + pool] for start in range(0, len(drawn), pool)]
        batches = [rows for p in pools for rows in self._cut(p[np.argsort(-lengths[p], kind="stable")])]
        return [batches[i] for i in random.permutation(len(batches))]

    def make(self, item: np.ndarray) -> Any:
        return self.collate(self.table, item, item[self.rank :: self.world])

    def _cut(self, rows: np.ndarray) -> list[np.ndarray]:
        return [rows[start : start + self.size] for start in range(0, len(rows), self.size)]


def padding_share(batches: Batches) -> float:
    """How much of this epoch's rectangles is padding, 0 to 1."""
    lengths = batches.table.lengths
    cells = sum(len(rows) * int(lengths[rows].max(initial=0)) for rows in batches.order())
    return 1 - int(lengths.sum()) / cells if cells else 0.0
