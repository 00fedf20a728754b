"""Views, transpositions, pieces and their joining; and what the gradient of a piece is."""

from typing import Any

import torch

from throughtime.capture.rows import MixedRows
from throughtime.capture.rules.making import constant
from throughtime.capture.rules.table import rule
from throughtime.capture.tape import Call
from throughtime.capture.values import Value, Values


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "unsqueeze", "squeeze", "flatten", "unflatten")
def _view(v: Values, call: Call, x: Value, *_: Any, **__: Any) -> Value:
    return v.view(x, call.result.shape)


@rule("expand")
def _expand(v: Values, call: Call, x: Value, *_: Any, **__: Any) -> Value:
    return v.expand(x, call.result.shape)


@rule("permute")
def _permute(v: Values, call: Call, x: Value, dims: Any) -> Value:
    return v.permute(x, dims)


@rule("t")
def _t(v: Values, call: Call, x: Value) -> Value:
    return v.permute(x, range(len(x.sizes))[::-1])


@rule("transpose")
def _transpose(v: Values, call: Call, x: Value, a: int, b: int) -> Value:
    dims = list(range(len(x.sizes)))
    if dims:
        dims[a], dims[b] = dims[b], dims[a]
    return v.permute(x, dims)


@rule("slice")
def _slice(v: Values, call: Call, x: Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Value:
    dim %= len(x.sizes)
    start, end = _bounds(x.sizes[dim], start, end)
    return v.slice(x, dim, start, end, step)


def _bounds(size: int, start: Any, end: Any) -> tuple[int, int]:
    start, end, _ = slice(start, end).indices(size)
    return start, max(start, end)


@rule("select")
def _select(v: Values, call: Call, x: Value, dim: int, index: int) -> Value:
    dim %= len(x.sizes)
    index %= x.sizes[dim]
    return v.view(v.slice(x, dim, index, index + 1), call.result.shape)


@rule("split_with_sizes", "split", "unbind", "unsafe_split", "unsafe_split_with_sizes", "chunk", "unsafe_chunk")
def _split(v: Values, call: Call, x: Value, *args: Any, **kwargs: Any) -> list[Value]:
    by_one = call.name == "unbind"
    dim = kwargs.get("dim", args[0] if by_one and args else args[1] if len(args) > 1 else 0) % len(x.sizes)
    parts, start = [], 0
    for made in call.result:
        end = start + (1 if by_one else made.shape[dim])
        parts.append(v.view(v.slice(x, dim, start, end), made.shape))
        start = end
    return parts


@rule("cat")
def _cat(v: Values, call: Call, parts: Any, dim: int = 0) -> Value:
    joined = [v.cast(p, call.result.dtype) for p in parts if p.sizes != (0,)]
    return v.cat(joined, dim % len(call.result.shape))


@rule("stack")
def _stack(v: Values, call: Call, parts: Any, dim: int = 0) -> Value:
    dim %= len(call.result.shape)
    tall = [v.cast(p, call.result.dtype) for p in parts]
    return v.cat([v.view(p, (*p.sizes[:dim], 1, *p.sizes[dim:])) for p in tall], dim)


@rule("repeat")
def _repeat(v: Values, call: Call, x: Value, repeats: Any) -> Value:
    x = v.view(x, (*[1] * (len(repeats) - len(x.sizes)), *x.sizes))
    for dim, times in enumerate(repeats):
        if x.sizes[dim] == 1:
            x = v.expand(x, (*x.sizes[:dim], times, *x.sizes[dim + 1 :]))
        elif times != 1:
            x = v.cat([x] * times, dim)
    return x


@rule("constant_pad_nd")
def _pad(v: Values, call: Call, x: Value, pad: Any, value: Any = 0) -> Value:
    for i in range(len(pad) // 2):
        dim = len(x.sizes) - 1 - i
        before, after = pad[2 * i], pad[2 * i + 1]
        x = v.slice(x, dim, max(-before, 0), x.sizes[dim] - max(-after, 0))

        def filled(n: int, x: Value = x, dim: int = dim) -> Value:
            return v.full((*x.sizes[:dim], max(n, 0), *x.sizes[dim + 1 :]), value, x.dtype)

        if before > 0 or after > 0:
            x = v.cat([filled(before), x, filled(after)], dim)
    return x


@rule("flip")
def _flip(v: Values, call: Call, x: Value, dims: Any) -> Value:
    axes = tuple(v.feature_axis(x, d, "reverses the rows") for d in dims)
    return v.emit("flip", (x.ref,), x.sizes, x.place, x.dtype, dims=axes)


@rule("roll")
def _roll(v: Values, call: Call, x: Value, shifts: Any, dims: Any = ()) -> Value:
    if not dims:
        raise MixedRows("it rolls the rows into one another; give it dims=")
    for shift, dim in zip(shifts, dims):
        size = x.sizes[dim]
        cut = -shift % size if size else 0
        x = v.cat(
            [v.slice(x, dim % len(x.sizes), cut, size), v.slice(x, dim % len(x.sizes), 0, cut)], dim % len(x.sizes)
        )
    return x


@rule("slice_backward")
def _slice_backward(v: Values, call: Call, d_y: Value, sizes: Any, dim: int, start: Any, end: Any, step: int) -> Value:
    dim %= len(sizes)
    start, _ = _bounds(sizes[dim], start, end)
    return _spread(v, d_y, dim, sizes[dim], start, step)


def _spread(v: Values, x: Value, dim: int, size: int, start: int, step: int) -> Value:
    """`x` at `start, start + step, …` of an axis of `size` zeros."""
    if step != 1:
        n = x.sizes[dim]
        tall = v.view(x, (*x.sizes[: dim + 1], 1, *x.sizes[dim + 1 :]))
        wide = v.padded(tall, dim + 1, step, 0)
        flat = v.view(wide, (*x.sizes[:dim], n * step, *x.sizes[dim + 1 :]))
        x = v.slice(flat, dim, 0, min(n * step, size - start))
    return v.padded(x, dim, size, start)


@rule("select_backward")
def _select_backward(v: Values, call: Call, d_y: Value, sizes: Any, dim: int, index: int) -> Value:
    dim %= len(sizes)
    tall = v.view(d_y, (*sizes[:dim], 1, *sizes[dim + 1 :]))
    return v.padded(tall, dim, sizes[dim], index % sizes[dim])


@rule("slice_scatter")
def _slice_scatter(
    v: Values, call: Call, x: Value, new: Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Value:
    dim %= len(x.sizes)
    start, end = _bounds(x.sizes[dim], start, end)
    if step == 1:
        return _replaced(v, x, new, dim, start, end)
    for i, at in enumerate(range(start, end, step)):
        x = _replaced(v, x, v.slice(new, dim, i, i + 1), dim, at, at + 1)
    return x


@rule("select_scatter")
def _select_scatter(v: Values, call: Call, x: Value, new: Value, dim: int, index: int) -> Value:
    dim %= len(x.sizes)
    index %= x.sizes[dim]
    tall = v.view(new, (*x.sizes[:dim], 1, *x.sizes[dim + 1 :]))
    return _replaced(v, x, tall, dim, index, index + 1)


def _replaced(v: Values, x: Value, new: Value, dim: int, start: int, end: int) -> Value:
    size = x.sizes[dim]
    if (start, end) == (0, size):
        return v.cast(new, x.dtype)
    return v.cat([v.slice(x, dim, 0, start), v.cast(new, x.dtype), v.slice(x, dim, end, size)], dim)


@rule("unfold")
def _unfold(v: Values, call: Call, x: Value, dim: int, size: int, step: int) -> Value:
    """Windows of one axis; the places in a window become the last axis."""
    dim %= len(x.sizes)
    axis = v.feature_axis(x, dim, "puts windows over the rows")
    windows = call.result.shape[dim]
    index = constant(v, (torch.arange(windows)[:, None] * step + torch.arange(size)).reshape(-1))
    sizes = (*x.sizes[:dim], windows * size, *x.sizes[dim + 1 :])
    found = v.emit("index_select", (x.ref, index.ref), sizes, x.place, x.dtype, dim=axis)
    apart = v.view(found, (*x.sizes[:dim], windows, size, *x.sizes[dim + 1 :]))
    last = [d for d in range(len(apart.sizes)) if d != dim + 1]
    return v.permute(apart, [*last, dim + 1])


@rule("diagonal")
def _diagonal(v: Values, call: Call, x: Value, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Value:
    """Of a matrix whose lines follow each other, every entry that is a line and one further on."""
    both = [d % len(x.sizes) for d in (dim1, dim2)]
    for d in both:
        v.feature_axis(x, d, "takes the diagonal of the rows")
    lead = [d for d in range(len(x.sizes)) if d not in both]
    matrix = v.permute(x, [*lead, *both])
    height, width = matrix.sizes[-2:]
    count = call.result.shape[-1]
    if not count:
        return v.view(x, call.result.shape)
    flat = v.view(matrix, (*matrix.sizes[:-2], height * width))
    start = offset if offset >= 0 else -offset * width
    return v.slice(flat, len(lead), start, start + (count - 1) * (width + 1) + 1, width + 1)


@rule("diagonal_scatter")
def _diagonal_scatter(
    v: Values, call: Call, x: Value, new: Value, offset: int = 0, dim1: int = 0, dim2: int = 1
) -> Value:
    """Before: x with `new` on a diagonal
    After:  where(on the diagonal, new spread over the longer axis, x)
    """
    last = [d for d in range(len(x.sizes)) if d not in (dim1 % len(x.sizes), dim2 % len(x.sizes))]
    order = [*last, dim1 % len(x.sizes), dim2 % len(x.sizes)]
    turned = v.permute(x, order)
    height, width = turned.sizes[-2:]
    for d in (-2, -1):
        v.feature_axis(turned, d, "writes on the diagonal of the rows")
    mask = constant(v, torch.ones(height, width, dtype=torch.bool).tril(offset).triu(offset))
    row = v.padded(new, len(last), width, max(offset, 0)) if offset >= 0 else None
    spread = v.view(row, (*row.sizes[:-1], 1, width)) if row is not None else _as_column(v, new, height, -offset)
    placed = v.pointwise("where", mask, spread, turned, dtype=x.dtype)
    return v.permute(placed, [order.index(d) for d in range(len(order))])


def _as_column(v: Values, new: Value, height: int, start: int) -> Value:
    column = v.padded(new, len(new.sizes) - 1, height, start)
    return v.view(column, (*column.sizes, 1))


@rule("tril", "triu")
def _triangle(v: Values, call: Call, x: Value, diagonal: int = 0) -> Value:
    for d in (-2, -1):
        v.feature_axis(x, d, "takes a triangle of the rows")
    if x.place is None:
        return v.emit(call.name, (x.ref,), x.sizes, None, x.dtype, diagonal=diagonal)
    line, column = (constant(v, torch.arange(n)) for n in x.sizes[-2:])
    last = v.pointwise("add", v.view(line, (x.sizes[-2], 1)), diagonal, dtype=torch.int64)
    kept = v.pointwise("le" if call.name == "tril" else "ge", column, last, dtype=torch.bool, within=torch.int64)
    return v.pointwise("where", kept, x, 0, dtype=x.dtype)
