"""Images of another size, of the nearest entries of the old: those of an axis are repeated, or read by number."""

from typing import Any

import torch

from throughtime.capture.formulas import NEAREST
from throughtime.capture.rules.making import constant
from throughtime.capture.rules.table import rule
from throughtime.capture.tape import Call
from throughtime.capture.values import Value, Values


@rule(*NEAREST)
def _nearest(v: Values, call: Call, x: Value, sizes: Any, *scales: Any) -> Value:
    for axis, (size, scale) in enumerate(_along(sizes, scales), 2):
        x = _resized(v, x, axis, _sources(call, x.sizes[axis], size, scale))
    return x


@rule(*(f"{name}_backward" for name in NEAREST))
def _nearest_backward(v: Values, call: Call, d_y: Value, sizes: Any, old_sizes: Any, *scales: Any) -> Value:
    for axis, (size, scale) in enumerate(_along(sizes, scales), 2):
        d_y = _gathered(v, d_y, axis, old_sizes[axis], _sources(call, old_sizes[axis], size, scale))
    return d_y


def _along(sizes: Any, scales: Any) -> list[tuple[int, float | None]]:
    return list(zip(sizes, (*scales, *[None] * len(sizes))))


def _sources(call: Call, old: int, new: int, scale: float | None) -> torch.Tensor:
    """Which old entry each new one is, as PyTorch itself has it: the rounding is its own."""
    line = torch.ops.aten._upsample_nearest_exact1d if "exact" in call.name else torch.ops.aten.upsample_nearest1d
    numbers = torch.arange(old, dtype=torch.float64).view(1, 1, old)
    return line.default(numbers, [new], scale).long().view(new)


def _times(sources: torch.Tensor, old: int) -> int | None:
    """How often each old entry stands there, if all do as often."""
    times, rest = divmod(len(sources), old)
    return times if rest == 0 and torch.equal(sources, torch.arange(old).repeat_interleave(times)) else None


def _resized(v: Values, x: Value, dim: int, sources: torch.Tensor) -> Value:
    axis = v.feature_axis(x, dim, "resizes an image along the rows")
    old, new = x.sizes[dim], len(sources)
    times = _times(sources, old)
    if times is None:
        sizes = (*x.sizes[:dim], new, *x.sizes[dim + 1 :])
        return v.emit("index_select", (x.ref, constant(v, sources).ref), sizes, x.place, x.dtype, dim=axis)
    tall = v.view(x, (*x.sizes[: dim + 1], 1, *x.sizes[dim + 1 :]))
    wide = v.expand(tall, (*x.sizes[: dim + 1], times, *x.sizes[dim + 1 :]))
    return v.view(wide, (*x.sizes[:dim], new, *x.sizes[dim + 1 :]))


def _gathered(v: Values, d_y: Value, dim: int, old: int, sources: torch.Tensor) -> Value:
    """The sum over all that an old entry became."""
    axis = v.feature_axis(d_y, dim, "resizes an image along the rows")
    times, sizes = _times(sources, old), d_y.sizes
    if times is not None:
        apart = v.view(d_y, (*sizes[:dim], old, times, *sizes[dim + 1 :]))
        return v.reduce("sum", apart, [dim + 1], False, d_y.dtype)
    zeros = v.full((*sizes[:dim], old, *sizes[dim + 1 :]), 0, d_y.dtype)
    args = (v.placed(zeros, d_y.place).ref, constant(v, sources).ref, d_y.ref)
    return v.emit("index_add", args, zeros.sizes, d_y.place, d_y.dtype, dim=axis)
