"""The rows of one call as numbers, and its tensors by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor

__all__ = ["Batch", "Bound", "Located"]


@dataclass(frozen=True)
class Batch:
    """The rows of one call, longest first.

    active, offsets: int64, the running rows and the first pair of each step; offsets has N at its end.
    """

    active: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray
    threads: int

    @property
    def steps(self) -> int:
        return len(self.active)

    @property
    def pairs(self) -> int:
        return int(self.offsets[-1])

    def pairs_of(self, start: int, stop: int) -> int:
        """The number of pairs in the steps [start, stop)."""
        return int(self.offsets[stop] - self.offsets[start])

    def shares(self, start: int, stop: int) -> np.ndarray:
        """Bounds of contiguous ranges of rows with about the same number of pairs in these steps."""
        rows = int(self.active[start])
        count = max(1, min(self.threads, rows))
        if count == 1 or self.active[stop - 1] == rows:
            return np.linspace(0, rows, count + 1).astype(np.int64)
        done = np.cumsum(np.minimum(self.lengths[:rows] - start, stop - start))
        marks = np.searchsorted(done, done[-1] * np.arange(1, count) / count, side="left") + 1
        return np.concatenate([[0], marks, [rows]]).astype(np.int64)

    def pair_shares(self, start: int, stop: int) -> np.ndarray:
        """Bounds of equal ranges of the pairs in these steps."""
        low, high = int(self.offsets[start]), int(self.offsets[stop])
        count = max(1, min(self.threads, high - low))
        return np.linspace(low, high, count + 1).astype(np.int64)


class Located(NamedTuple):
    """A buffer with one entry per pair, from the pair `first` on."""

    tensor: Tensor
    first: int = 0

    def pointer_to(self, pair: int) -> int:
        """The address of a pair's entry."""
        return self.tensor.data_ptr() + (pair - self.first) * self.tensor.stride(0) * self.tensor.element_size()

    def cut(self, low: int, high: int) -> Tensor:
        """The entries of the pairs [low, high)."""
        return self.tensor[low - self.first : high - self.first]


@dataclass(frozen=True)
class Bound:
    """One call's tensors. consts: by name in the plan. xs (one entry per pair) and row_consts: by name in the programs.

    seed, user_rows: of the noise, which is keyed by the user's row.
    """

    batch: Batch
    consts: Mapping[str, Tensor]
    xs: Mapping[str, Located]
    row_consts: Mapping[str, Tensor]
    seed: int | None
    user_rows: np.ndarray | None
