"""(seed, row, step) -> one number from 0 to 1: the same whatever else is in the batch, and in whatever order.

Counter-based: no stream to keep, so rows may be dropped, and a row draws what it would draw alone.
Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators" (the mixing of SplitMix64).
"""

import numpy as np
import torch
from torch import Tensor

__all__ = ["Noise"]

BLOCK = 64  # steps whose numbers are drawn at once
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


class Noise:
    """Uniform numbers of a call. Without a seed one is drawn from PyTorch's generator."""

    def __init__(self, seed: int | None, rows: int, device: torch.device) -> None:
        if seed is None:
            seed = int(torch.randint(2**62, ()))
        self.seed, self.rows, self.device = seed, rows, device
        self._block = -1
        self._table = torch.empty(0)

    def uniform(self, time: int, rows: Tensor | None = None) -> Tensor:
        """float64 [len(rows)] in (0, 1), for these rows of the batch; None: for all."""
        block, place = divmod(time, BLOCK)
        if block != self._block:
            self._block = block
            self._table = self._draw(block).to(self.device)
        numbers = self._table[place]
        return numbers if rows is None else numbers[rows]

    def _draw(self, block: int) -> Tensor:
        """[BLOCK, rows]."""
        steps = np.arange(block * BLOCK, (block + 1) * BLOCK, dtype=np.uint64)[:, None]
        rows = np.arange(self.rows, dtype=np.uint64)
        key = _mix(np.full(1, self.seed % 2**64, dtype=np.uint64))
        bits = _mix(_mix(key ^ rows) ^ steps)
        # 40 bits: the product with a sum of probabilities stays below that sum.
        return torch.from_numpy(((bits >> np.uint64(24)).astype(np.float64) + 0.5) / 2.0**40)


def _mix(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        x = x + _GOLDEN
        x = (x ^ (x >> np.uint64(30))) * _MIX[0]
        x = (x ^ (x >> np.uint64(27))) * _MIX[1]
        return x ^ (x >> np.uint64(31))
