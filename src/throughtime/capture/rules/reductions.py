"""Sums, extremes, and what runs along one feature axis."""

from math import prod
from typing import Any

import torch

from throughtime.capture.rules.elementwise import truth
from throughtime.capture.rules.table import rule
from throughtime.capture.tape import Call
from throughtime.capture.values import Value, Values, place_without, without

__all__ = ["with_order"]


def _dims(x: Value, dim: Any) -> list[int]:
    dims: list[int] = [dim] if isinstance(dim, int) else list(dim or ())
    return dims or list(range(len(x.sizes)))


@rule("sum")
def _sum(v: Values, call: Call, x: Value, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Value:
    made = call.result.dtype
    return v.reduce("sum", v.cast(x, made), _dims(x, dim), keepdim, made)


@rule("amax", "amin")
def _extreme(v: Values, call: Call, x: Value, dim: Any = (), keepdim: bool = False) -> Value:
    return v.reduce(call.name, x, _dims(x, dim), keepdim, x.dtype)


@rule("prod")
def _prod(v: Values, call: Call, x: Value, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Value:
    made = call.result.dtype
    return v.reduce("prod", v.cast(x, made), _dims(x, dim), keepdim, made)


@rule("any", "all")
def _any_all(v: Values, call: Call, x: Value, dim: Any = None, keepdim: bool = False) -> Value:
    return v.reduce({"any": "amax", "all": "amin"}[call.name], truth(v, x), _dims(x, dim), keepdim, torch.bool)


@rule("max", "min")
def _max(v: Values, call: Call, x: Value, dim: int | None = None, keepdim: bool = False) -> Any:
    extreme, where = ("amax", "argmax") if call.name == "max" else ("amin", "argmin")
    if dim is None:
        return v.reduce(extreme, x, _dims(x, None), False, x.dtype)
    return [v.reduce(extreme, x, [dim], keepdim, x.dtype), _argument(v, x, where, dim, keepdim)]


@rule("argmax", "argmin")
def _arg(v: Values, call: Call, x: Value, dim: int | None = None, keepdim: bool = False) -> Value:
    if dim is None:
        x, dim = v.view(x, (prod(x.sizes),)), 0
    return _argument(v, x, call.name, dim, keepdim)


def with_order(v: Values, x: Value) -> Value:
    """Truth as 0 and 1."""
    return v.cast(x, torch.int64) if x.dtype == torch.bool else x


def _argument(v: Values, x: Value, op: str, dim: int, keepdim: bool) -> Value:
    axis = v.feature_axis(x, dim, "searches among the rows")
    x = with_order(v, x)
    dim %= len(x.sizes)
    sizes, place = without(x.sizes, [dim], keepdim), place_without(x.place, [dim], keepdim)
    return v.emit(op, (x.ref,), sizes, place, torch.int64, dim=axis, keepdim=keepdim)


@rule("cumsum", "cumprod")
def _cumulative(v: Values, call: Call, x: Value, dim: int, dtype: Any = None) -> Value:
    axis = v.feature_axis(x, dim, "accumulates over the rows")
    x = v.cast(x, call.result.dtype)
    return v.emit(call.name, (x.ref,), x.sizes, x.place, x.dtype, dim=axis)


@rule("logcumsumexp")
def _logcumsumexp(v: Values, call: Call, x: Value, dim: int) -> Value:
    axis = v.feature_axis(x, dim, "accumulates over the rows")
    return v.emit(call.name, (x.ref,), x.sizes, x.place, x.dtype, dim=axis)


@rule("cummax", "cummin")
def _cumulative_extreme(v: Values, call: Call, x: Value, dim: int) -> list[Value]:
    """Values and indices."""
    axis = v.feature_axis(x, dim, "accumulates over the rows")
    given, x = x.dtype, with_order(v, x)
    found = [
        v.emit(call.name, (x.ref,), x.sizes, x.place, dtype, dim=axis, output=i)
        for i, dtype in enumerate((x.dtype, torch.int64))
    ]
    return [v.cast(found[0], given), found[1]]
