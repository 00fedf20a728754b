"""Tables looked up by rows, and entries of a feature axis by index."""

from typing import Any

import torch

from throughtime.capture.rows import FRONT, MixedRows, Place
from throughtime.capture.rules.making import ROW_NUMBERS
from throughtime.capture.rules.table import rule
from throughtime.capture.tape import Call
from throughtime.capture.values import Value, Values

__all__ = ["kept", "over_features"]

_REMEDY = "use torch.gather, an embedding, or index_select along a feature axis"


@rule("embedding")
def _embedding(v: Values, call: Call, table: Value, index: Value, *_: Any, **__: Any) -> Value:
    return _look_up(v, table, index)


def _look_up(v: Values, table: Value, index: Value) -> Value:
    """`table[index]` along the table's first axis."""
    if table.place is not None:
        raise MixedRows(f"it takes some rows by index; {_REMEDY}")
    flat = v.view(table, (table.sizes[0], -(-_numel(table) // max(table.sizes[0], 1))))
    sizes = (*index.sizes, flat.sizes[1])
    found = v.emit("embedding", (flat.ref, index.ref), sizes, index.place, table.dtype)
    return v.view(found, (*index.sizes, *table.sizes[1:]))


def _numel(x: Value) -> int:
    count = 1
    for n in x.sizes:
        count *= n
    return count


@rule("embedding_dense_backward")
def _embedding_backward(
    v: Values, call: Call, d_y: Value, index: Value, num_weights: int, padding_idx: int, scale: bool
) -> Value:
    if scale:
        raise MixedRows("scale_grad_by_freq counts the entries of the other rows")
    return _look_up_backward(v, d_y, index, num_weights, padding_idx)


def _look_up_backward(v: Values, d_y: Value, index: Value, entries: int, padding_idx: int) -> Value:
    _backward_only(v, index)
    sizes = (entries, d_y.sizes[-1])
    args = (d_y.ref, index.ref)
    attributes = {"num_weights": entries, "padding_idx": padding_idx}
    return v.emit("embedding_dense_backward", args, sizes, None, d_y.dtype, **attributes)


def _backward_only(v: Values, index: Value) -> None:
    if index.place is not None and not v.backward:
        raise MixedRows(f"it writes by index what all rows share; {_REMEDY}")


@rule("index_select")
def _index_select(v: Values, call: Call, x: Value, dim: int, index: Value) -> Value:
    if x.place is None and dim % len(x.sizes) == 0:
        return _look_up(v, x, index)
    return _along(v, call, "index_select", x, dim, (x, index))


def _along(v: Values, call: Call, op: str, x: Value, dim: int, operands: tuple[Value, ...]) -> Value:
    """`op(x, index, …)` along a feature axis of `x` by an index that all rows share."""
    axis = v.feature_axis(x, dim, f"takes some rows by index; {_REMEDY}")
    if operands[1].place is not None:
        raise MixedRows(f"its index differs from row to row; {_REMEDY}")
    args = tuple(o.ref for o in operands)
    return v.emit(op, args, call.result.shape, x.place, x.dtype, dim=axis)


@rule("index", "_unsafe_index")
def _index(v: Values, call: Call, x: Value, indices: Any) -> Value:
    """`x[:, :, index]` with one index, or one for each row: `x[arange(B), index]`."""
    own = _own_index(v, x, indices)
    if own is not None:
        wide = v.expand(own, (*own.sizes[:2], *x.sizes[2:]))
        return v.view(_by_row(v, call, "gather", 1, (x, wide)), call.result.shape)
    dim, index = _only_index(v, x, indices)
    if x.place is None and dim == 0:
        return _look_up(v, x, index)
    if index.place is not None:
        raise MixedRows(f"it takes some rows by index; {_REMEDY}")
    flat = v.view(index, (_numel(index),))
    sizes = (*x.sizes[:dim], flat.sizes[0], *x.sizes[dim + 1 :])
    axis = v.feature_axis(x, dim, f"takes some rows by index; {_REMEDY}")
    found = v.emit("index_select", (x.ref, flat.ref), sizes, x.place, x.dtype, dim=axis)
    return v.view(found, call.result.shape)


def _is_mask(indices: Any) -> bool:
    return len(indices) == 1 and indices[0] is not None and indices[0].dtype == torch.bool


def _only_index(v: Values, x: Value, indices: Any) -> tuple[int, Value]:
    given = [(dim, index) for dim, index in enumerate(indices) if index is not None]
    if len(given) != 1:
        raise MixedRows(f"it indexes several axes at once; {_REMEDY}")
    dim, index = given[0]
    if index.dtype == torch.bool:
        raise MixedRows("it selects by a mask; use torch.where")
    return dim, _counted_from_front(v, index, x.sizes[dim])


def _own_index(v: Values, x: Value, indices: Any) -> Value | None:
    """The index [B, 1, 1, …] along axis 1 of `x[arange(B), index]`."""
    given = list(indices)
    if len(given) != 2 or any(i is None or i.place != FRONT or len(i.sizes) != 1 for i in given):
        return None
    if x.place != FRONT or v.builder.made_by(given[0].ref, ROW_NUMBERS) is None:
        return None
    index = _counted_from_front(v, given[1], x.sizes[1])
    return v.view(index, (x.sizes[0], 1, *[1] * (len(x.sizes) - 2)))


def _counted_from_front(v: Values, index: Value, size: int) -> Value:
    """Negative indices count from the end."""
    number = v.builder.made_by(index.ref, "constant")
    if number is not None and not any(i < 0 for i in _flat(number.attributes["data"])):
        return index
    negative = v.pointwise("lt", index, 0, dtype=torch.bool, within=index.dtype)
    from_end = v.pointwise("add", index, size, dtype=index.dtype)
    return v.pointwise("where", negative, from_end, index, dtype=index.dtype)


def _flat(data: Any) -> list[Any]:
    return [leaf for part in data for leaf in _flat(part)] if isinstance(data, tuple) else [data]


@rule("index_put", "_unsafe_index_put", "_index_put_impl")
def _index_put(v: Values, call: Call, x: Value, indices: Any, new: Value, accumulate: bool = False, *_: Any) -> Value:
    if _is_mask(indices) and _numel(new) == 1 and not accumulate:
        mask = v.view(indices[0], (*indices[0].sizes, *[1] * (len(x.sizes) - len(indices[0].sizes))))
        return v.pointwise("where", mask, v.view(new, ()), x, dtype=x.dtype)
    own = _own_index(v, x, indices)
    if own is not None:
        wide = v.expand(own, (*own.sizes[:2], *x.sizes[2:]))
        source = v.view(v.expand(v.cast(new, x.dtype), (x.sizes[0], *x.sizes[2:])), wide.sizes)
        return _by_row(v, call, "scatter_add" if accumulate else "scatter", 1, (x, wide, source))
    dim, index = _only_index(v, x, indices)
    if x.place is None and index.place is not None:
        return _add_to_table(v, x, dim, index, new, accumulate)
    if index.place is not None:
        raise MixedRows(f"its index differs from row to row; {_REMEDY}")
    flat = v.view(index, (_numel(index),))
    wide = v.expand(new, (*x.sizes[:dim], *index.sizes, *x.sizes[dim + 1 :]))
    source = v.view(wide, (*x.sizes[:dim], flat.sizes[0], *x.sizes[dim + 1 :]))
    op = "index_add" if accumulate else "index_copy"
    return _along(v, call, op, x, dim, (x, flat, v.cast(source, x.dtype)))


def _add_to_table(v: Values, x: Value, dim: int, index: Value, new: Value, accumulate: bool) -> Value:
    """The gradient of `table[index]`."""
    _backward_only(v, index)
    if dim != 0 or not accumulate or v.number(x) != 0:
        raise MixedRows(f"it writes by index what all rows share; {_REMEDY}")
    width = _numel(x) // max(x.sizes[0], 1)
    d_y = v.view(v.expand(new, (*index.sizes, *x.sizes[1:])), (*index.sizes, width))
    return v.view(_look_up_backward(v, d_y, index, x.sizes[0], -1), x.sizes)


@rule("index_add")
def _index_add(v: Values, call: Call, x: Value, dim: int, index: Value, source: Value, alpha: Any = 1) -> Value:
    if alpha != 1:
        source = v.pointwise("mul", source, alpha, dtype=source.dtype)
    if x.place is None and index.place is not None:
        return _add_to_table(v, x, dim % len(x.sizes), index, source, True)
    return _along(v, call, "index_add", x, dim, (x, index, source))


@rule("index_copy")
def _index_copy(v: Values, call: Call, x: Value, dim: int, index: Value, source: Value) -> Value:
    return _along(v, call, "index_copy", x, dim, (x, index, source))


@rule("index_fill")
def _index_fill(v: Values, call: Call, x: Value, dim: int, index: Value, value: Any) -> Value:
    sizes = (*x.sizes[:dim], _numel(index), *x.sizes[dim + 1 :])
    number = v.number(value)
    filled = v.expand(v.cast(value, x.dtype), sizes) if number is None else v.full(sizes, number, x.dtype)
    return _along(v, call, "index_copy", x, dim % len(x.sizes), (x, index, filled))


@rule("gather")
def _gather(v: Values, call: Call, x: Value, dim: int, index: Value, sparse_grad: bool = False) -> Value:
    return _by_row(v, call, "gather", dim, (x, index))


@rule("scatter_add")
def _scatter_add(v: Values, call: Call, x: Value, dim: int, index: Value, source: Value) -> Value:
    return _by_row(v, call, "scatter_add", dim, (x, index, source))


@rule("scatter")
def _scatter(v: Values, call: Call, x: Value, dim: int, index: Value, source: Any, reduce: Any = None) -> Value:
    if reduce is not None:
        raise MixedRows("scatter with reduce= is not supported; use scatter_add")
    if not isinstance(source, Value):
        source = v.full(index.sizes, v.plain(source), x.dtype)
    return _by_row(v, call, "scatter", dim, (x, index, source))


def _by_row(v: Values, call: Call, op: str, dim: int, operands: tuple[Value, ...]) -> Value:
    operands = tuple(v.placed(o, operands[1].place) for o in operands)
    x, index = operands[:2]
    axis = v.feature_axis(x, dim, f"takes some rows by index; {_REMEDY}")
    if any(o.place != x.place for o in operands):
        raise MixedRows("its operands must all have their rows on the same axis")
    sizes = index.sizes if op == "gather" else x.sizes
    args = tuple(o.ref for o in operands)
    return v.emit(op, args, sizes, x.place, x.dtype, dim=axis)


@rule("value_selecting_reduction_backward")
def _max_backward(v: Values, call: Call, d_y: Value, dim: int, index: Value, sizes: Any, keepdim: bool) -> Value:
    """Each gradient goes to the one entry that was chosen."""
    dim %= len(sizes)
    if not keepdim:
        tall = (*d_y.sizes[:dim], 1, *d_y.sizes[dim:])
        d_y, index = v.view(d_y, tall), v.view(index, tall)
    zeros = v.full(sizes, 0, d_y.dtype)
    return _by_row(v, call, "scatter", dim, (zeros, index, d_y))


_POOLS = ("avg_pool1d", "avg_pool2d", "avg_pool3d", "avg_pool2d_backward", "avg_pool3d_backward",
          "max_pool2d_with_indices", "max_pool3d_with_indices",
          "max_pool2d_with_indices_backward", "max_pool3d_with_indices_backward", "im2col", "col2im")  # fmt: skip


@rule(*_POOLS)
def over_features(v: Values, call: Call, *args: Any, **kwargs: Any) -> Any:
    """Operators on images, whose first axis is the batch."""
    least = 4 if "2d" in call.name or "col" in call.name else 5 if "3d" in call.name else 3
    for x in args:
        if isinstance(x, Value) and (x.place not in (None, FRONT) or len(x.sizes) < least):
            raise MixedRows("it works on images [rows, channels, …]; put the rows first")
    return kept(v, call, args, kwargs, FRONT)


def kept(v: Values, call: Call, args: Any, kwargs: Any, place: Place | None) -> Any:
    """The operator as it is, under its own name."""

    def plain(a: Any) -> Any:
        if isinstance(a, Value):
            return a.ref
        if isinstance(a, (list, tuple)):
            return tuple(plain(part) for part in a)
        if isinstance(a, int) and not isinstance(a, bool):
            return v.rows_word(a)
        return v.plain(a)

    words = tuple(plain(a) for a in args)
    options = {k: plain(a) for k, a in kwargs.items() if not isinstance(a, (torch.device, torch.layout))}
    if isinstance(call.result, torch.Tensor):
        return v.emit(call.name, words, call.result.shape, place, call.result.dtype, **options)
    return [
        v.emit(call.name, words, made.shape, place, made.dtype, **options, output=i)
        for i, made in enumerate(call.result)
    ]
