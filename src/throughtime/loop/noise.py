"""(seed, operator, row, step, column) -> noise: each number by itself, whatever is computed beside it.

A counter-based generator: the five numbers are mixed by the finalizer of SplitMix64, so that any chunk, any order and
any backend draws the same noise. Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators".
"""

import math

import torch
from torch import Tensor

__all__ = ["draw_seed", "normal", "uniform"]

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1, _MIX_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def draw_seed() -> int:
    """One number from PyTorch's generator: what makes a call's noise its own."""
    return int(torch.randint(0, 2**62, ()).item())


def uniform(seed: int, operator: int, rows: Tensor, steps: Tensor, columns: int, dtype: torch.dtype) -> Tensor:
    """[P, columns] in [0, 1), for pairs of the user's row and the step, int64 [P] each."""
    digits = 53 if dtype == torch.float64 else 24
    bits = _bits(seed, operator, rows, steps, columns)
    return _logical_shift(bits, 64 - digits).to(dtype) * 2.0**-digits


def normal(seed: int, operator: int, rows: Tensor, steps: Tensor, columns: int, dtype: torch.dtype) -> Tensor:
    """[P, columns], standard normal, by Box and Muller 1958."""
    first = uniform(seed, 2 * operator, rows, steps, columns, torch.float64)
    second = uniform(seed, 2 * operator + 1, rows, steps, columns, torch.float64)
    radius = torch.sqrt(-2.0 * torch.log1p(-first))
    return (radius * torch.cos(2.0 * math.pi * second)).to(dtype)


def _bits(seed: int, operator: int, rows: Tensor, steps: Tensor, columns: int) -> Tensor:
    by_pair = _mix(_mix(rows + _signed(seed + operator * _GOLDEN)) + steps)
    column = torch.arange(1, columns + 1, device=rows.device, dtype=torch.int64)
    return _mix(by_pair.unsqueeze(1) + column * _signed(_GOLDEN))


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _logical_shift(x, 30)) * _signed(_MIX_1)
    x = (x ^ _logical_shift(x, 27)) * _signed(_MIX_2)
    return x ^ _logical_shift(x, 31)


def _logical_shift(x: Tensor, by: int) -> Tensor:
    """int64 taken as 64 bits without a sign."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def _signed(number: int) -> int:
    number &= 0xFFFFFFFFFFFFFFFF
    return number - (1 << 64) if number >= 1 << 63 else number
