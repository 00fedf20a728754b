"""Random operators of an eager step -> the counter-based noise that compiled loops draw.

A dispatch mode stands in for PyTorch's random operators while a step runs, so that a pair of row and step has the same
noise whatever else runs, and the backward pass of a recomputed segment draws it again.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from throughtime.loop.noise import draw_seed, normal, uniform

__all__ = ["CounterNoise"]

aten = torch.ops.aten


class CounterNoise(TorchDispatchMode):
    """Noise for the steps of one call. `user_rows` is the user's row of each loop row.

    The seed is drawn when a step first asks for noise, so a step without any leaves PyTorch's generator alone.
    """

    changes_noise_only = True
    """A loop inside a step need not heed this mode."""

    def __init__(self, user_rows: np.ndarray) -> None:
        super().__init__()
        self.user_rows = user_rows
        self.seed: int | None = None
        self.step, self.rows, self.operator = 0, 0, 0

    def at(self, step: int, rows: int) -> "CounterNoise":
        """Before a step: which one it is, and how many rows still run."""
        self.step, self.rows, self.operator = step, rows, 0
        return self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        draw = DRAWS.get(func)
        if draw is None or (func is aten.native_dropout.default and not args[2]):
            return func(*args, **(kwargs or {}))
        return draw(self, func, args, kwargs or {})

    def uniform_like(self, like: Tensor) -> Tensor:
        return self._draw(uniform, like)

    def normal_like(self, like: Tensor) -> Tensor:
        return self._draw(normal, like)

    def _draw(self, distribution: Callable[..., Tensor], like: Tensor) -> Tensor:
        """An axis of rows times heads, as in attention, has a row's heads beside each other."""
        if self.seed is None:
            self.seed = draw_seed()
        if like.dim() == 0 or like.shape[0] % self.rows:
            raise _NotByRow
        rows = torch.from_numpy(self.user_rows[: self.rows]).to(like.device)
        steps = torch.full_like(rows, self.step)
        columns = like.numel() // self.rows
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        noise = distribution(self.seed, self.operator, rows, steps, columns, dtype)
        self.operator += 1
        return noise.reshape(like.shape)


class _NotByRow(Exception):
    """Noise that does not belong to rows: PyTorch draws it."""


def _or_pytorch(draw: Callable[..., Any]) -> Callable[..., Any]:
    def run(noise: CounterNoise, func: Any, args: Any, kwargs: Any) -> Any:
        try:
            return draw(noise, *args, **{k: v for k, v in kwargs.items() if k != "generator"})
        except _NotByRow:
            return func(*args, **kwargs)

    return run


def _native_dropout(noise: CounterNoise, x: Tensor, p: float, train: bool) -> tuple[Tensor, Tensor]:
    keep = noise.uniform_like(x) < 1.0 - p
    return x * keep * (0.0 if p == 1.0 else 1.0 / (1.0 - p)), keep


def _bernoulli_in_place(noise: CounterNoise, x: Tensor, p: Any = 0.5) -> Tensor:
    return x.copy_(noise.uniform_like(x) < p)


def _bernoulli(noise: CounterNoise, x: Tensor, p: Any = None) -> Tensor:
    return (noise.uniform_like(x) < (x if p is None else p)).to(x.dtype)


def _uniform_in_place(noise: CounterNoise, x: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    return x.copy_(noise.uniform_like(x) * (high - low) + low)


def _normal_in_place(noise: CounterNoise, x: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    return x.copy_(noise.normal_like(x) * std + mean)


def _rand_like(noise: CounterNoise, x: Tensor, dtype: Any = None, **_: Any) -> Tensor:
    return noise.uniform_like(x).to(dtype or x.dtype)


def _randn_like(noise: CounterNoise, x: Tensor, dtype: Any = None, **_: Any) -> Tensor:
    return noise.normal_like(x).to(dtype or x.dtype)


def _rand(noise: CounterNoise, size: Any, dtype: Any = None, device: Any = None, **_: Any) -> Tensor:
    return noise.uniform_like(torch.empty(size, dtype=dtype, device=device))


def _randn(noise: CounterNoise, size: Any, dtype: Any = None, device: Any = None, **_: Any) -> Tensor:
    return noise.normal_like(torch.empty(size, dtype=dtype, device=device))


def _normal(
    noise: CounterNoise, mean: Any, std: Any = 1.0, size: Any = None, dtype: Any = None, device: Any = None, **_: Any
) -> Tensor:
    """Of a size, or shaped like the mean, the deviation, or both."""
    if size is None:
        given = [t for t in (mean, std) if isinstance(t, Tensor)]
        size, dtype, device = torch.broadcast_shapes(*(t.shape for t in given)), given[0].dtype, given[0].device
    like = torch.empty(size, dtype=dtype, device=device)
    return noise.normal_like(like).to(like.dtype) * std + mean


def _exponential_in_place(noise: CounterNoise, x: Tensor, rate: float = 1.0) -> Tensor:
    u = noise.uniform_like(x)
    return x.copy_(torch.log1p(-u).clamp(max=-torch.finfo(u.dtype).eps / 2) / -rate)


def _randint(noise: CounterNoise, *bounds_and_size: Any, dtype: Any = torch.int64, device: Any = None, **_: Any) -> Any:
    *bounds, size = bounds_and_size
    return _whole(noise, torch.empty(size, dtype=torch.float64, device=device), bounds).to(dtype or torch.int64)


def _randint_like(noise: CounterNoise, x: Tensor, *bounds: int, dtype: Any = None, **_: Any) -> Tensor:
    return _whole(noise, torch.empty_like(x, dtype=torch.float64), bounds).to(dtype or x.dtype)


def _whole(noise: CounterNoise, like: Tensor, bounds: Any) -> Tensor:
    low, high = (0, *bounds)[-2:]
    return torch.floor(noise.uniform_like(like) * (high - low)) + low


DRAWS = {
    aten.native_dropout.default: _or_pytorch(_native_dropout),
    aten.bernoulli_.float: _or_pytorch(_bernoulli_in_place),
    aten.bernoulli_.Tensor: _or_pytorch(_bernoulli_in_place),
    aten.bernoulli.default: _or_pytorch(_bernoulli),
    aten.bernoulli.p: _or_pytorch(_bernoulli),
    aten.uniform_.default: _or_pytorch(_uniform_in_place),
    aten.normal_.default: _or_pytorch(_normal_in_place),
    aten.rand_like.default: _or_pytorch(_rand_like),
    aten.randn_like.default: _or_pytorch(_randn_like),
    aten.rand.default: _or_pytorch(_rand),
    aten.randn.default: _or_pytorch(_randn),
    aten.normal.Tensor_float: _or_pytorch(_normal),
    aten.normal.float_Tensor: _or_pytorch(_normal),
    aten.normal.Tensor_Tensor: _or_pytorch(_normal),
    aten.normal.float_float: _or_pytorch(_normal),
    aten.exponential_.default: _or_pytorch(_exponential_in_place),
    aten.randint.default: _or_pytorch(_randint),
    aten.randint.low: _or_pytorch(_randint),
    aten.randint_like.default: _or_pytorch(_randint_like),
    aten.randint_like.low_dtype: _or_pytorch(_randint_like),
}
