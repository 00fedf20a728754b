"""Padded arrays, or an iterator of chunks -> a batch whose pairs are read when steps need them, and never held.

Arrays may be mapped: a range of steps is read at a time. An iterator gives each chunk once, and a backward pass needs
all of them again, so chunks go to a private file as they come.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from throughtime._errors import SequenceError
from throughtime._nested import Nested, leaves, leaves_as, leaves_with_paths, map_leaves, restructure
from throughtime._sequence import Ragged, common_axes, pairs_of, read_lengths, rows_per_step, sort_lengths, spread_out
from throughtime._state import describe
from throughtime.loop.spill import StepFile

__all__ = ["are_chunks", "can_be_read_by_steps", "read_by_steps", "read_chunks"]


def are_chunks(inputs: Any) -> bool:
    """A file, a loader or a generator of chunks: what is neither a tensor nor a structure of them."""
    held = isinstance(inputs, (Tensor, np.ndarray, str)) or leaves(inputs) != [inputs]
    return not held and isinstance(inputs, Iterable)


def can_be_read_by_steps(inputs: Nested) -> bool:
    """Whether every leaf is an array in main memory, or mapped into it, that wants no gradient."""
    return all(isinstance(leaf, np.ndarray) or _is_plain(leaf) for leaf in leaves(inputs))


def _is_plain(leaf: Any) -> bool:
    plain = type(leaf) in (Tensor, nn.Parameter) and leaf.device.type == "cpu" and leaf.layout is torch.strided
    return plain and not leaf.is_nested and not leaf.requires_grad


def read_by_steps(inputs: Nested, sequence_length: Any = None, time_major: bool = False) -> Ragged:
    """Padded tensors or NumPy arrays, [B, T, ...] in every leaf. Raises SequenceError."""
    batch_size, steps = common_axes(inputs, 1 if time_major else 0)
    before = _versions(inputs)

    def read(start: int, stop: int) -> Nested:
        if _versions(inputs) != before:
            raise SequenceError(
                "unroll_loss: inputs or targets were changed in place before the backward pass, which reads them "
                "again. Change a clone, or call backward first."
            )
        return map_leaves(lambda leaf: _time_first(_some_steps(leaf, start, stop, time_major), time_major), inputs)

    return _ragged(read, batch_size, steps, sequence_length, time_major)


def _versions(inputs: Nested) -> list[int]:
    return [leaf._version for leaf in leaves(inputs) if isinstance(leaf, Tensor) and not leaf.is_inference()]


def _some_steps(array: Any, start: int, stop: int, time_major: bool) -> Tensor:
    return _as_tensor(array[start:stop] if time_major else array[:, start:stop])


def _as_tensor(part: Any) -> Tensor:
    """What is closed to writing is copied: PyTorch's tensors can be written on."""
    if isinstance(part, Tensor):
        return part
    return torch.from_numpy(part if part.flags.writeable else np.array(part))


def _time_first(part: Tensor, time_major: bool) -> Tensor:
    return part if time_major else part.transpose(0, 1)


def read_chunks(
    chunks: Iterable[Any], sequence_length: Any = None, time_major: bool = False, directory: str | None = None
) -> Ragged:
    """Pairs `(inputs, targets)` of some steps each, one after the other. Raises SequenceError and SpillError."""
    spool = _Spool(time_major, directory)
    for chunk in chunks:
        spool.add(chunk)
        del chunk  # let go of before the next one is made
    if not spool.files:
        raise SequenceError("unroll_loss: there is no chunk. An iterator can be used once only: make a new one.")
    return _ragged(spool.read, leaves(spool.no_steps)[0].shape[1], spool.files[0].steps, sequence_length, time_major)


class _Spool:
    """Inputs and targets in files, one for each leaf, time first. no_steps: what all chunks are alike in."""

    def __init__(self, time_major: bool, directory: str | None) -> None:
        self.time_major, self.directory = time_major, directory
        self.files: list[StepFile] = []
        self.no_steps: Nested = None
        self.chunks = 0

    def add(self, chunk: Any) -> None:
        steps = map_leaves(lambda leaf: _time_first(_as_tensor(leaf), self.time_major), self._named(chunk))
        no_steps = map_leaves(lambda leaf: leaf.new_empty(0, *leaf.shape[1:]), steps)
        if self.chunks == 0:
            self.no_steps, self.files = no_steps, [StepFile(self.directory) for _ in leaves(steps)]
        if describe(self.no_steps) != describe(no_steps):
            raise SequenceError(
                f"unroll_loss: chunks differ in their number of steps only: chunk 0 without its steps is "
                f"{describe(self.no_steps)}, chunk {self.chunks} is {describe(no_steps)}. Give all of them the same "
                f"rows, features and dtypes."
            )
        for file, leaf in zip(self.files, leaves_as(steps, self.no_steps), strict=True):
            file.add(leaf.contiguous())
        self.chunks += 1

    def read(self, start: int, stop: int) -> Nested:
        return restructure([file.read(start, stop) for file in self.files], self.no_steps)

    def _named(self, chunk: Any) -> Nested:
        if not isinstance(chunk, (tuple, list)) or len(chunk) != 2:
            raise SequenceError(
                f"unroll_loss: each chunk is a pair (inputs, targets), chunk {self.chunks} is a "
                f"{type(chunk).__name__}. Let the iterator yield both."
            )
        named = {"inputs": chunk[0], "targets": chunk[1]}
        for path, leaf in leaves_with_paths(named, "chunk"):
            if not isinstance(leaf, (Tensor, np.ndarray)) or (isinstance(leaf, Tensor) and leaf.requires_grad):
                raise SequenceError(
                    f"unroll_loss: chunks hold tensors or arrays that want no gradient, as they go to a file: in chunk "
                    f"{self.chunks}, {path} is not one. Detach it, or give all inputs as one tensor."
                )
        common_axes(named, 1 if self.time_major else 0)
        return named


def _ragged(
    read: Callable[[int, int], Nested], batch_size: int, steps: int, sequence_length: Any, time_major: bool
) -> Ragged:
    """read: (start, stop) -> padded steps, time first."""
    full = np.full(batch_size, steps, dtype=np.int64)
    lengths = full if sequence_length is None else read_lengths(sequence_length, batch_size, steps)
    source = _Source(read, steps, *sort_lengths(lengths), time_major)
    xs = source(0, min(1, len(source.active)))
    return Ragged(xs, source.lengths, source.order, source.unpack, steps, source)


@dataclass(frozen=True)
class _Source:
    """(start, stop) -> the pairs of these steps. lengths, order: as in the ragged form."""

    read: Callable[[int, int], Nested]
    steps: int
    lengths: np.ndarray
    order: np.ndarray | None
    time_major: bool

    def __call__(self, start: int, stop: int) -> Nested:
        places = self._places(start, stop)

        def pack(x_TB: Tensor) -> Tensor:
            flat = x_TB.reshape(x_TB.shape[0] * x_TB.shape[1], *x_TB.shape[2:])
            return flat if places is None else flat.index_select(0, places)

        return map_leaves(pack, self.read(start, stop))

    def unpack(self, ys: Tensor) -> Tensor:
        """All pairs -> padded; the padding is zero."""
        places, padded = self._places(0, len(self.active)), ys
        if places is not None:
            padded = spread_out(ys, places, self.steps * len(self.lengths))
        y_TB = padded.reshape(self.steps, len(self.lengths), *ys.shape[1:])
        return _time_first(y_TB, self.time_major)

    @cached_property
    def active(self) -> np.ndarray:
        return rows_per_step(self.lengths)

    def _places(self, start: int, stop: int) -> Tensor | None:
        """Of the pairs of these steps in [stop - start, B] with its axes joined; None where they are all there is."""
        rows = len(self.lengths)
        if rows and self.lengths[-1] == self.steps:
            return None
        step, row = pairs_of(self.active[start:stop])
        return torch.from_numpy(step * rows + (row if self.order is None else self.order[row]))
