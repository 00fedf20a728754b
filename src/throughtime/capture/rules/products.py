"""Matrix products and convolutions, with the rows on whichever side the cell has them."""

from math import prod
from typing import Any

import torch

from throughtime.capture.graph import ROWS, Ref
from throughtime.capture.rows import FRONT, MixedRows, Place
from throughtime.capture.rules.table import rule
from throughtime.capture.tape import Call
from throughtime.capture.values import Value, Values

_MOST_UNROLLED = 16


@rule("mm")
def _mm(v: Values, call: Call, a: Value, b: Value) -> Value:
    return _cut_off(v, call, a, b) or _product(v, _rounded(v, a), _rounded(v, b), call.result.dtype)


@rule("mv")
def _mv(v: Values, call: Call, a: Value, x: Value) -> Value:
    column = v.view(_rounded(v, x), (x.sizes[0], 1))
    return v.view(_product(v, _rounded(v, a), column, call.result.dtype), call.result.shape)


def _rounded(v: Values, x: Value) -> Value:
    """Under autocast the operands of products are rounded, and nothing else."""
    return v.cast(x, v.product_dtype) if v.product_dtype and x.dtype == torch.float32 else x


def _product(v: Values, a: Value, b: Value, dtype: torch.dtype) -> Value:
    sizes = (a.sizes[0], b.sizes[1])
    if a.place is None and b.place is None:
        return v.emit("mm", (a.ref, b.ref), sizes, None, dtype)
    if b.place is None and a.place is not None and a.place.axis == 0:
        return v.emit("mm", (a.ref, b.ref), sizes, a.place, dtype)
    if a.place is None:  # w @ x.T = (x @ w.T).T
        return v.permute(_product(v, v.permute(b, (1, 0)), v.permute(a, (1, 0)), dtype), (1, 0))
    if b.place is not None and (a.place.axis, b.place.axis) == (1, 0):
        return _contracted(v, a, b, dtype)
    raise MixedRows("it multiplies values of all rows with values of all rows")


def _contracted(v: Values, a: Value, b: Value, dtype: torch.dtype) -> Value:
    """Sum over rows of a[M, rows] b[rows, N]: the gradient of a matrix that the rows share."""
    if not v.backward:
        raise MixedRows("it sums over the row axis")
    assert a.place is not None
    assert b.place is not None
    if (a.place.before, a.place.after) != (b.place.before, b.place.after):
        raise MixedRows("it pairs the rows of one value with other rows of another")
    (m, _), (_, n) = a.sizes, b.sizes
    inner = prod(a.place.parts)
    if inner == 1:
        flipped = v.builder.emit("permute", (a.ref,), (m, ROWS), a.dtype, dims=(1, 0))
        return v.emit("mm", (flipped, b.ref), (m, n), None, dtype)
    left = v.builder.view(a.ref, (ROWS, m, inner))
    right = v.builder.view(b.ref, (ROWS, inner, n))
    each = v.builder.emit("bmm", (left, right), (ROWS, m, n), dtype)
    return v.emit("sum", (each,), (m, n), None, dtype, dims=(0,), keepdim=False)


@rule("bmm")
def _bmm(v: Values, call: Call, a: Value, b: Value) -> Value:
    return _cut_off(v, call, a, b) or _products(v, _rounded(v, a), _rounded(v, b), call.result.dtype)


def _cut_off(v: Values, call: Call, a: Value, b: Value) -> Value | None:
    """A gradient of zero comes from a path that is cut, and stays zero whatever it meets."""
    if v.backward and 0 in (v.number(a), v.number(b)):
        return v.full(call.result.shape, 0, call.result.dtype)
    return None


def _products(v: Values, a: Value, b: Value, dtype: torch.dtype) -> Value:
    """`a[n] @ b[n]` for each n, rows anywhere."""
    sizes = (a.sizes[0], a.sizes[1], b.sizes[2])
    left, right = (None if x.place is None else x.place.axis for x in (a, b))
    if left is None and right is None:
        return v.emit("bmm", (a.ref, b.ref), sizes, None, dtype)
    if (left, right) == (0, 0):
        return _products_of_rows(v, a, b, dtype)
    if (left, right) == (1, None):
        return _heads(v, a, b, dtype)
    if (left, right) == (None, 2):
        flipped = _products(v, v.permute(b, (0, 2, 1)), v.permute(a, (0, 2, 1)), dtype)
        return v.permute(flipped, (0, 2, 1))
    if (left, right) == (2, 1):
        return _contracted_heads(v, a, b, dtype)
    raise MixedRows("it multiplies values of all rows with values of all rows")


def _products_of_rows(v: Values, a: Value, b: Value, dtype: torch.dtype) -> Value:
    if a.place != b.place:
        raise MixedRows("it pairs the rows of one value with other rows of another")
    sizes = (a.sizes[0], a.sizes[1], b.sizes[2])
    shared = _same_for_all(v, b)
    if shared is not None:
        return v.emit("mm", (a.ref, shared), sizes, a.place, dtype)
    shared = _same_for_all(v, a)
    if shared is not None:  # w @ x = (x.T @ w.T).T
        flipped = v.permute(b, (0, 2, 1))
        w = v.builder.permute(shared, (1, 0))
        turned = v.emit("mm", (flipped.ref, w), (sizes[0], sizes[2], sizes[1]), a.place, dtype)
        return v.permute(turned, (0, 2, 1))
    return v.emit("bmm", (a.ref, b.ref), sizes, a.place, dtype)


def _same_for_all(v: Values, x: Value) -> Ref | None:
    """Before: bmm(x, expand(w, [B, K, N]))
    After:  mm(x, w)
    """
    expanded = v.builder.made_by(x.ref, "expand")
    cast = v.builder.made_by(x.ref, "to_dtype")
    if cast is not None:
        expanded = v.builder.made_by(cast.args[0], "expand")
    if expanded is None:
        return None
    narrow = v.builder.shape(expanded.args[0])
    if any(n != 1 for n in narrow[:-2]):
        return None
    whole = v.builder.expand(expanded.args[0], (*narrow[:-2], *expanded.shape[-2:]))
    matrix = v.builder.cast(v.builder.view(whole, expanded.shape[-2:]), x.dtype)
    assert isinstance(matrix, Ref)
    return matrix


def _heads(v: Values, a: Value, b: Value, dtype: torch.dtype) -> Value:
    """a[n, B, K] with a matrix of its own for each n, the same for all rows: block-diagonal weights."""
    n, rows, k = a.sizes
    width = b.sizes[2]
    if n <= _MOST_UNROLLED:
        parts = [_product(v, _at(v, a, i), _at(v, b, i), dtype) for i in range(n)]
        return v.cat([v.view(p, (1, rows, width)) for p in parts], 0)
    assert a.place is not None
    inner = prod(a.place.parts)
    left = v.builder.view(a.ref, (ROWS, n, inner, k))
    w = v.builder.expand(v.builder.view(b.ref, (1, n, k, width)), (ROWS, n, k, width))
    each = v.builder.emit("bmm", (left, w), (ROWS, n, inner, width), dtype)
    return v.wrap(v.builder.view(each, (ROWS, n, *a.place.parts, width)), (n, rows, width), a.place)


def _contracted_heads(v: Values, a: Value, b: Value, dtype: torch.dtype) -> Value:
    """a[n, M, rows] b[n, rows, N] for each n: the gradient of block-diagonal weights."""
    n, m, _ = a.sizes
    width = b.sizes[2]
    if n <= _MOST_UNROLLED:
        parts = [_product(v, _at(v, a, i), _at(v, b, i), dtype) for i in range(n)]
        return v.cat([v.view(p, (1, m, width)) for p in parts], 0)
    if not v.backward or a.place is None or a.place.parts or b.place != Place(1):
        raise MixedRows("it sums over the row axis")
    left, right = v.builder.view(a.ref, (ROWS, n, m, 1)), v.builder.view(b.ref, (ROWS, n, 1, width))
    each = v.builder.emit("bmm", (left, right), (ROWS, n, m, width), dtype)
    return v.emit("sum", (each,), (n, m, width), None, dtype, dims=(0,), keepdim=False)


def _at(v: Values, x: Value, i: int) -> Value:
    return v.view(v.slice(x, 0, i, i + 1), x.sizes[1:])


_CONVOLUTION = ("stride", "padding", "dilation", "transposed", "output_padding", "groups")


@rule("convolution")
def _convolution(v: Values, call: Call, x: Value, w: Value, bias: Value | None, *options: Any) -> Value:
    if x.place != FRONT or w.place is not None or (bias is not None and bias.place is not None):
        raise MixedRows("it slides over the row axis; rows are the batch of a convolution, and its weight is shared")
    args = (_rounded(v, x).ref, _rounded(v, w).ref, None if bias is None else _rounded(v, bias).ref)
    return v.emit("convolution", args, call.result.shape, FRONT, call.result.dtype, **_options(options))


@rule("convolution_backward")
def _convolution_backward(
    v: Values, call: Call, d_y: Value, x: Value, w: Value, bias_sizes: Any, *options: Any
) -> list[Value | None]:
    args = tuple(_rounded(v, a).ref for a in (d_y, x, w))
    *shape_options, wanted = options
    results: list[Value | None] = []
    for i, made in enumerate(call.result):
        place = FRONT if i == 0 else None
        options_now = {**_options(shape_options), "output": i}
        results.append(
            v.emit("convolution_backward", args, made.shape, place, made.dtype, **options_now) if wanted[i] else None
        )
    return results


def _options(options: Any) -> dict[str, Any]:
    return {name: tuple(o) if isinstance(o, (list, tuple)) else o for name, o in zip(_CONVOLUTION, options)}
