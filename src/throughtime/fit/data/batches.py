"""A Table -> batches of sequences of similar length, in an order fixed by (seed, epoch)."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from throughtime.fit.data.table import Table

__all__ = ["Batch", "Batches", "padding_share"]

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


class Batches:
    """Iterating gives an epoch's batches; `set_epoch`, `state_dict` and `load_state_dict` are what Lightning calls.

    Epoch e's order depends on (seed, e) alone, so a position is a number of batches. Without a seed the order is by
    length alone, the same in every epoch. Each process takes every world-th row of a batch, longest first: equal work.
    """

    def __init__(self, table: Table, size: int, seed: int | None = None, rank: int = 0, world: int = 1) -> None:
        self.table, self.size, self.seed = table, size, seed
        self.rank, self.world = rank, world
        self.epoch = self.position = self.begin_at = 0
        if seed is not None:
            self.sampler = self  # where Lightning looks for set_epoch

    def __len__(self) -> int:
        return math.ceil(len(self.table) / self.size)

    def __iter__(self) -> Iterator[Batch]:
        self.position, self.begin_at = self.begin_at, 0
        for rows in self.order()[self.position :]:
            self.position += 1
            yield self._make_batch(rows)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position % max(len(self), 1)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.begin_at = state["position"]

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

    def _cut(self, rows: np.ndarray) -> list[np.ndarray]:
        return [rows[start : start + self.size] for start in range(0, len(rows), self.size)]

    def _make_batch(self, rows: np.ndarray) -> Batch:
        table, share = self.table, rows[self.rank :: self.world]
        lengths = table.lengths[share]
        longest = int(table.lengths[rows].max(initial=0))
        values = np.zeros((len(share), longest, *table.values.shape[1:]), table.values.dtype)
        values[np.arange(longest) < lengths[:, None]] = table.values[table.steps_of(share)]
        labels = None if table.labels is None else torch.from_numpy(table.labels[share])
        numbers = torch.from_numpy(table.rows[share])
        return Batch(torch.from_numpy(values), torch.from_numpy(lengths), labels, numbers, len(rows))


def padding_share(batches: Batches) -> float:
    """How much of this epoch's rectangles is padding, 0 to 1."""
    lengths = batches.table.lengths
    cells = sum(len(rows) * int(lengths[rows].max(initial=0)) for rows in batches.order())
    return 1 - int(lengths.sum()) / cells if cells else 0.0
