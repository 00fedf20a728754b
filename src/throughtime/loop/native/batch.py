"""The rows of one call as numbers, and its tensors by name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy as np
from torch import Tensor

from throughtime.loop.native.room import Empty

__all__ = ["Batch", "Bound", "Constants", "Located", "Source"]

Source = Callable[[int, int], Sequence[Tensor]]
"""(start, stop) -> the pairs of these steps, of each input."""


@dataclass(frozen=True, eq=False)
class Batch:
    """The rows of one call, longest first.

    active, offsets: int64, the running rows and the first pair of each step; offsets has N at its end.
    """

    active: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray
    threads: int
    _most_pairs: dict[tuple, int] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, lengths: np.ndarray, threads: int) -> "Batch":
        """Lengths, longest first. Arrays over steps are the only ones that grow with them; no copy of them is made."""
        steps, rows = (int(lengths[0]), len(lengths)) if len(lengths) else (0, 0)
        if rows and lengths[-1] == steps:
            return _even_batch_again(rows, steps, threads) if steps <= FEW_STEPS else _even_batch(rows, steps, threads)
        offsets = np.empty(steps + 1, np.int64)
        active = rows - np.cumsum(np.bincount(lengths, minlength=steps + 1))[:steps]
        offsets[0] = 0
        np.cumsum(active, out=offsets[1:])
        return cls(active, offsets, lengths, threads)

    @property
    def steps(self) -> int:
        return len(self.active)

    @cached_property
    def addresses(self) -> tuple[int, int]:
        """Of `active` and `offsets`."""
        return self.active.ctypes.data, self.offsets.ctypes.data

    @property
    def pairs(self) -> int:
        return int(self.offsets[-1])

    def has_few_rows(self, step: int) -> bool:
        """For a share, at this step."""
        rows = int(self.active[step])
        return rows < FEW_ROWS * min(self.threads, rows)

    def pairs_of(self, start: int, stop: int) -> int:
        """The number of pairs in the steps [start, stop)."""
        return int(self.offsets[stop] - self.offsets[start])

    def shares(self, start: int, stop: int) -> list[int]:
        """Bounds of contiguous ranges of rows with about the same number of pairs in these steps."""
        rows = int(self.active[start])
        count = max(1, min(self.threads, rows))
        if count == 1 or self.active[stop - 1] == rows:
            return _even(0, rows, count)
        done = np.minimum(self.lengths[:rows] - start, stop - start).cumsum()
        marks = done.searchsorted([int(done[-1]) * i / count for i in range(1, count)]) + 1
        return [0, *marks.tolist(), rows]

    def pair_shares(self, start: int, stop: int) -> list[int]:
        """Bounds of equal ranges of the pairs in these steps."""
        low, high = int(self.offsets[start]), int(self.offsets[stop])
        return _even(low, high, max(1, min(self.threads, high - low)))

    @cached_property
    def row_counts(self) -> np.ndarray:
        """The numbers of rows that steps have, each once."""
        last = self.active[-1:]
        return np.concatenate((self.active[:-1][self.active[1:] != self.active[:-1]], last))

    def most_pairs(self, chunk: int, few: bool | None = None, within: int | None = None) -> int:
        """The most pairs of a window: of those with few rows, or with many; in ranges of so many steps."""
        key = (chunk, few, within)
        if key not in self._most_pairs:
            self._most_pairs[key] = self._count_most_pairs(*key)
        return self._most_pairs[key]

    def _count_most_pairs(self, chunk: int, few: bool | None, within: int | None) -> int:
        rows = self.row_counts
        if few is not None:
            rows = rows[(rows < FEW_ROWS * np.minimum(self.threads, rows)) == few]
        steps = np.minimum(np.maximum(1, PAIRS_PER_CALL // rows // chunk) * chunk, within or self.steps)
        return min(self.pairs, int((rows * steps).max(initial=0)))

    def windows(self, chunk: int, start: int = 0, stop: int | None = None) -> list[tuple[int, int]]:
        """Ranges of steps, each of one chunk or, with few rows, of several, so that calls stay rare."""
        stop = self.steps if stop is None else stop
        found = []
        while start < stop:
            chunks = max(1, PAIRS_PER_CALL // int(self.active[start]) // chunk)
            found.append((start, min(start + chunk * chunks, stop)))
            start = found[-1][1]
        return found


def _even_batch(rows: int, steps: int, threads: int) -> Batch:
    offsets = np.arange(0, (steps + 1) * rows, rows)
    return Batch(np.full(steps, rows), offsets, np.full(rows, steps), threads)


_even_batch_again = lru_cache(maxsize=8)(_even_batch)
"""Training goes on with batches of one size: what is known of one is kept."""

FEW_STEPS = 4096
"""Whose numbers are worth keeping."""

PAIRS_PER_CALL = 1024
FEW_ROWS = 12
"""With fewer rows to a share, what is free of the states runs over all pairs of the chunk at once."""


def _even(low: int, high: int, count: int) -> list[int]:
    return [low + (high - low) * i // count for i in range(count + 1)]


class Located:
    """A buffer with one entry per pair, from the pair `first` on. Asked for addresses again and again."""

    __slots__ = ("_address", "_entry", "first", "tensor")

    def __init__(self, tensor: Tensor, first: int = 0) -> None:
        self.tensor, self.first = tensor, first
        self._address, self._entry = tensor.data_ptr(), tensor.stride(0) * tensor.element_size()

    def pointer_to(self, pair: int) -> int:
        """The address of a pair's entry."""
        return self._address + (pair - self.first) * self._entry

    def cut(self, low: int, high: int) -> Tensor:
        """The entries of the pairs [low, high)."""
        return self.tensor[low - self.first : high - self.first]


@dataclass(frozen=True)
class Constants:
    """What is the same for every row, by name in the plan; weights in panels, packed when a program first asks."""

    values: Mapping[str, Tensor]
    packed: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Bound:
    """One call's tensors. row_consts: by name in the programs.

    xs: the inputs, one entry per pair, by name in the programs; or a source, (start, stop) -> those of these steps.
    seed, user_rows: of the noise, which is keyed by the user's row. empty: makes room for the call's own buffers.
    """

    batch: Batch
    constants: Constants
    xs: Mapping[str, Located]
    row_consts: Mapping[str, Tensor]
    seed: int | None
    user_rows: np.ndarray | None
    empty: Empty
    source: Callable[[int, int], Mapping[str, Located]] | None = None

    @property
    def consts(self) -> Mapping[str, Tensor]:
        return self.constants.values

    def inputs(self, start: int, stop: int) -> Mapping[str, Located]:
        """Of at least these steps."""
        return self.xs if self.source is None else self.source(start, stop)
