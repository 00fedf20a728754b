"""Room for a call's buffers, lent again to the next call.

Memory fresh from the system costs a page fault for every 4 KB that is touched: with few steps, a quarter of a training
step. A buffer comes back when nothing uses it any more, wherever that is, and is kept for the next one of its size.
"""

import functools
import math
import os
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["Empty", "Room", "fresh", "room"]

Empty = Callable[[Sequence[int], torch.dtype], Tensor]

SMALL = 1 << 16
"""Bytes below which the allocator's own lists are as good."""


class Room:
    """Keeps at most so many bytes that nobody uses."""

    def __init__(self, most_kept: int) -> None:
        self.most_kept = most_kept
        self._free: dict[int, np.ndarray] = {}

    @property
    def kept(self) -> int:
        """Bytes that are held ready."""
        return sum([block.nbytes for block in list(self._free.values())])

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """As `torch.empty`."""
        size = math.prod(shape) * dtype.itemsize
        if size < SMALL:
            return fresh(shape, dtype)
        block = self._take(_rounded(size))
        loan = _Loan(shape, _numpy_dtype(dtype), block)
        loan.room, loan.block = self, block
        return torch.from_numpy(loan)

    def _take(self, size: int) -> np.ndarray:
        """A garbage collection may give blocks back at any line, so each line stands alone."""
        for key, block in list(self._free.items()):
            if block.nbytes == size and self._free.pop(key, None) is not None:
                return block
        return torch.empty(size, dtype=torch.uint8).numpy()

    def give_back(self, block: np.ndarray) -> None:
        """What was not used for the longest goes."""
        self._free[id(block)] = block
        while self._free and self.kept > self.most_kept:
            self._free.pop(next(iter(self._free), 0), None)


class _Loan(np.ndarray):
    """A block as a tensor sees it, which holds this object as long as anything uses it."""

    room: Room
    block: np.ndarray

    def __del__(self) -> None:
        self.room.give_back(self.block)


@functools.cache
def _numpy_dtype(dtype: torch.dtype) -> np.dtype:
    return torch.empty(0, dtype=dtype).numpy().dtype


def fresh(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Room that goes back to the system."""
    return torch.empty(*shape, dtype=dtype)


def _rounded(size: int) -> int:
    """Up, by less than a quarter, so that batches of about the same size find each other's room."""
    step = 1 << max(0, size.bit_length() - 3)
    return -(-size // step) * step


def _physical_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 8 << 30


room = Room(_physical_bytes() // 64)
