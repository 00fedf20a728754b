"""Images of another size, axis by axis: entries that are repeated or read by number, or a product with a table."""

from typing import Any

import torch

from throughtime.capture.formulas import NEAREST
from throughtime.capture.rules.indexing import over_features
from throughtime.capture.rules.making import LARGEST_TABLE, constant
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


# --- what mixes neighbours


@rule("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d")
def _linear(v: Values, call: Call, x: Value, sizes: Any, align: bool, *scales: Any) -> Value:
    tables = _linear_tables(x, x.sizes[2:], sizes, align, scales)
    return _mixed(v, x, tables) or over_features(v, call, x, sizes, align, *scales)


@rule("upsample_linear1d_backward", "upsample_bilinear2d_backward", "upsample_trilinear3d_backward")
def _linear_backward(v: Values, call: Call, d_y: Value, sizes: Any, old_sizes: Any, align: bool, *scales: Any) -> Value:
    tables = _linear_tables(d_y, old_sizes[2:], sizes, align, scales)
    return _mixed(v, d_y, [t.T for t in tables]) or over_features(v, call, d_y, sizes, old_sizes, align, *scales)


@rule("_adaptive_avg_pool2d", "_adaptive_avg_pool3d")
def _means(v: Values, call: Call, x: Value, sizes: Any) -> Value:
    return _mixed(v, x, _mean_tables(x, sizes)) or over_features(v, call, x, sizes)


@rule("_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward")
def _means_backward(v: Values, call: Call, d_y: Value, x: Value) -> Value:
    tables = _mean_tables(x, d_y.sizes[2:])
    return _mixed(v, d_y, [t.T for t in tables]) or over_features(v, call, d_y, x)


def _linear_tables(x: Value, old_sizes: Any, sizes: Any, align: bool, scales: Any) -> list[torch.Tensor]:
    line = torch.ops.aten.upsample_linear1d.default
    both = zip(old_sizes, _along(sizes, scales))
    return [line(_units(x, old), [new], align, scale)[0] for old, (new, scale) in both]


def _mean_tables(x: Value, sizes: Any) -> list[torch.Tensor]:
    return [torch.nn.functional.adaptive_avg_pool1d(_units(x, old), new)[0] for old, new in zip(x.sizes[2:], sizes)]


def _units(x: Value, size: int) -> torch.Tensor:
    """[1, size, size]: what PyTorch makes of these, with its own rounding, is a table [size, new size]."""
    return torch.eye(size, dtype=x.dtype)[None]


def _mixed(v: Values, x: Value, tables: list[torch.Tensor]) -> Value | None:
    """The product with a table along each axis of an image; None if one is too large for a step."""
    if any(table.numel() > LARGEST_TABLE for table in tables):
        return None
    for dim, table in enumerate(tables, 2):
        v.feature_axis(x, dim, "resizes an image along the rows")
        if torch.equal(table, torch.eye(*table.shape, dtype=table.dtype)):
            continue
        order = [*(d for d in range(len(x.sizes)) if d != dim), dim]
        last = v.permute(x, order)
        args = (last.ref, constant(v, table).ref)
        made = v.emit("mm", args, (*last.sizes[:-1], table.shape[1]), last.place, x.dtype)
        x = v.permute(made, [order.index(d) for d in range(len(order))])
    return x
