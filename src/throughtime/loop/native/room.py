"""Room for a call's buffers, lent again to the next call.

Memory fresh from the system costs a page fault for every 4 KB that is touched: with few steps, a quarter of a training
step. A buffer comes back when nothing uses it any more, wherever that is, and is kept for the next one of its size.
"""

import math
import os
import weakref
from collections.abc import Callable, Sequence

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
        self._free: dict[int, tuple[int, Tensor]] = {}

    @property
    def kept(self) -> int:
        """Bytes that are held ready."""
        return sum(size for size, _ in list(self._free.values()))

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """As `torch.empty`."""
        size = math.prod(shape) * dtype.itemsize
        if size < SMALL:
            return fresh(shape, dtype)
        whole = _rounded(size)
        block = self._take(whole)
        loan = block.numpy()
        weakref.finalize(loan, self._give_back, whole, block).atexit = False
        return torch.from_numpy(loan)[:size].view(dtype).view(*shape)

    def _take(self, size: int) -> Tensor:
        """A garbage collection may give blocks back at any line, so each line stands alone."""
        for key, (free, block) in list(self._free.items()):
            if free == size and self._free.pop(key, None) is not None:
                return block
        return torch.empty(size, dtype=torch.uint8)

    def _give_back(self, size: int, block: Tensor) -> None:
        """What was not used for the longest goes."""
        self._free[id(block)] = size, block
        while self._free and self.kept > self.most_kept:
            self._free.pop(next(iter(self._free), 0), None)


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
