"""A value as the cell sees it -> one in the graph: the arithmetic that all lowering rules share."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from throughtime.capture.builder import Builder, Number, Operand, as_dtype
from throughtime.capture.folding import fold, simplify
from throughtime.capture.graph import ROWS, Input, Ref
from throughtime.capture.rows import (
    MixedRows,
    Place,
    Sizes,
    find_place,
    graph_axes,
    graph_shape,
    list_sizes,
    moved,
    row_axis,
)

__all__ = ["Value", "Values", "place_without", "without"]


@dataclass(frozen=True, slots=True)
class Value:
    """`sizes` is what the cell sees, `place` where its rows are in there, `ref` the value in the graph."""

    ref: Ref
    sizes: Sizes
    place: Place | None
    dtype: torch.dtype


class Values:
    """Makes values of values. `backward`: the operator at hand belongs to the gradient."""

    def __init__(self, rows: int, product_dtype: torch.dtype | None = None) -> None:
        self.rows = rows
        self.product_dtype = product_dtype
        self.builder = Builder()
        self.backward = False
        self._noises = 0

    def input(self, described: Input, sizes: Sizes) -> Value:
        ref = self.builder.add_input(described)
        return Value(ref, sizes, find_place(sizes, self.rows), described.dtype)

    def wrap(self, ref: Ref, sizes: Sequence[int], place: Place | None) -> Value:
        value = Value(ref, tuple(sizes), place, self.builder.dtype(ref))
        assert self.builder.shape(ref) == graph_shape(value.sizes, place), "a rule gives a value its true shape"
        return value

    def emit(
        self,
        op: str,
        args: tuple[Any, ...],
        sizes: Sequence[int],
        place: Place | None,
        dtype: torch.dtype,
        /,
        **kw: Any,
    ) -> Value:
        shape = graph_shape(tuple(sizes), place)
        return self.wrap(self.builder.emit(op, args, shape, dtype, **kw), sizes, place)

    def full(self, sizes: Sequence[int], value: Number, dtype: torch.dtype) -> Value:
        sizes = tuple(sizes)
        place = find_place(sizes, self.rows)
        return self.wrap(self.builder.full(graph_shape(sizes, place), value, dtype), sizes, place)

    def noise(self, sizes: Sequence[int], distribution: Any, dtype: torch.dtype) -> Value:
        sizes = tuple(sizes)
        place = find_place(sizes, self.rows)
        if place is None:
            raise MixedRows(
                "it draws one random value for all rows at each step, but noise belongs to a row; draw it with one "
                "entry per row, or once a call (an attribute of the cell, or its row_consts)"
            )
        self._noises += 1
        name = f"noise_{self._noises}"
        described = Input(name, "noise", name, graph_shape(sizes, place), dtype, distribution=distribution)
        return Value(self.builder.add_input(described), sizes, place, dtype)

    def number(self, x: "Value | Number") -> Number | None:
        return self.builder.number(x.ref) if isinstance(x, Value) else self.plain(x)

    def plain(self, number: Any) -> Any:
        """A Python number of the step, which must not be the batch size."""
        if type(number) is int and number and abs(number) % self.rows == 0:
            raise MixedRows("it computes with the batch size")
        return number

    def rows_in(self, tensor: torch.Tensor) -> bool:
        return row_axis(tensor.shape, self.rows) is not None

    def rows_word(self, n: int) -> Any:
        """A size in an attribute: a multiple of the batch size as `ROWS`, if it is just that."""
        return ROWS if n == self.rows else self.plain(n)

    def pointwise(
        self, op: str, *operands: "Value | Number", dtype: torch.dtype, within: torch.dtype | None = None
    ) -> Value:
        """Elementwise: operands are brought to the dtype `within` (that of the result, unless said)."""
        within = within or dtype
        sizes = broadcast([x.sizes for x in operands if isinstance(x, Value)])
        given = self._with_numbers(operands, sizes)
        del operands
        place = self._common_place(given, len(sizes))
        shape = graph_shape(sizes, place)
        args = [self._operand(x, len(sizes), place, within) for x in given]
        if op == "where" and isinstance(given[0], Value):
            args[0] = self.arranged(given[0], len(sizes), place)
        numbers = [self.builder.number(a) for a in args]
        if all(n is not None for n in numbers):
            return self.wrap(self.builder.full(shape, fold(op, numbers, within), dtype), sizes, place)
        ref = simplify(self.builder, op, tuple(args), shape, dtype, self.backward)
        return self.wrap(ref or self.builder.emit(op, tuple(args), shape, dtype), sizes, place)

    def _common_place(self, operands: Sequence["Value | Number"], rank: int) -> Place | None:
        """Values that are filled with one number have their rows wherever they are wanted."""
        values = [x for x in operands if isinstance(x, Value) and x.place is not None]
        telling = [x for x in values if self.number(x) is None] or values[:1]
        places = {
            Place(x.place.axis + rank - len(x.sizes), x.place.before, x.place.after)
            for x in telling
            if x.place is not None
        }
        if len(places) > 1:
            shown = " and ".join(list_sizes(x.sizes, self.rows) for x in operands if isinstance(x, Value))
            raise MixedRows(f"it combines {shown}, whose rows are not on the same axis")
        return places.pop() if places else None

    def _operand(self, x: "Value | Number", rank: int, place: Place | None, dtype: torch.dtype) -> Operand:
        if not isinstance(x, Value):
            return as_dtype(self.plain(x), dtype)
        return self.builder.cast(self.arranged(x, rank, place), dtype)

    def _with_numbers(self, operands: Sequence["Value | Number"], sizes: Sizes) -> Sequence["Value | Number"]:
        """Values that are filled with one number become the number, as long as the sizes need no other operand."""
        others = [x.sizes for x in operands if isinstance(x, Value) and self.number(x) is None]
        if not others or broadcast(others) != sizes:
            return operands
        return [x if (number := self.number(x)) is None else number for x in operands]

    def arranged(self, x: Value, rank: int, place: Place | None) -> Ref:
        """`x` in the graph so that it broadcasts against a value of `rank` axes with rows at `place`."""
        if place is None:
            return x.ref
        x = self.placed(x, Place(place.axis + len(x.sizes) - rank, place.before, place.after))
        missing = rank - len(x.sizes)
        shape = self.builder.shape(x.ref)
        if x.place is not None:
            return self.builder.view(x.ref, (shape[0], *[1] * missing, *shape[1:]))
        behind = rank - 1 - place.axis
        if len(x.sizes) <= behind:
            return x.ref
        tail = x.sizes[len(x.sizes) - behind :]
        front = x.sizes[: max(place.axis - missing, 0)]
        middle = [1] * len(place.parts) if front else []
        return self.builder.view(x.ref, (*front, *middle, *tail))

    def placed(self, x: Value, place: Place | None) -> Value:
        """The same, with its rows at `place` if it is filled with one number."""
        number = self.number(x)
        if x.place is None or x.place == place or number is None:
            return x
        return self.wrap(self.builder.full(graph_shape(x.sizes, place), number, x.dtype), x.sizes, place)

    def expand(self, x: Value, sizes: Sequence[int]) -> Value:
        sizes = tuple(sizes)
        if x.sizes == sizes:
            return x
        place = self._common_place([x], len(sizes)) or find_place(sizes, self.rows)
        shape = graph_shape(sizes, place)
        ref = self.arranged(x, len(sizes), place)
        narrow = self.builder.shape(ref)
        ref = self.builder.view(ref, (*[1] * (len(shape) - len(narrow)), *narrow))
        return self.wrap(self.builder.expand(ref, shape), sizes, place)

    def view(self, x: Value, sizes: Sequence[int]) -> Value:
        sizes = tuple(sizes)
        number = self.number(x)
        if number is not None or not prod(sizes):
            return self.full(sizes, number or 0, x.dtype)
        place = None if x.place is None else moved(x.sizes, x.place, sizes, self.rows)
        return self.wrap(self.builder.view(x.ref, graph_shape(sizes, place)), sizes, place)

    def permute(self, x: Value, dims: Sequence[int]) -> Value:
        dims = [d % len(x.sizes) for d in dims]
        sizes = [x.sizes[d] for d in dims]
        if x.place is None:
            return self.wrap(self.builder.permute(x.ref, tuple(dims)), sizes, None)
        axes = [a for d in dims for a in graph_axes(d, x.place) if a != 0]
        place = Place(dims.index(x.place.axis), x.place.before, x.place.after)
        return self.wrap(self.builder.permute(x.ref, (0, *axes)), sizes, place)

    def slice(self, x: Value, dim: int, start: int, end: int, step: int = 1) -> Value:
        """`start` and `end` within the axis."""
        sizes = (*x.sizes[:dim], len(range(start, end, step)), *x.sizes[dim + 1 :])
        if sizes == x.sizes and step == 1:
            return x
        axis = self.feature_axis(x, dim, "takes some rows out of the batch")
        return self.wrap(self.builder.slice(x.ref, axis, start, end, step), sizes, x.place)

    def cat(self, parts: Sequence[Value], dim: int) -> Value:
        place = self._common_place(parts, len(parts[0].sizes))
        if place is not None and place.axis == dim:
            raise MixedRows("it joins values along the row axis")
        sizes = list(parts[0].sizes)
        sizes[dim] = sum(p.sizes[dim] for p in parts)
        axis = graph_axes(dim, place)[0]
        return self.wrap(self.builder.cat([self.placed(p, place).ref for p in parts], axis), sizes, place)

    def padded(self, x: Value, dim: int, size: int, start: int) -> Value:
        """`x` at `start` of an axis of `size` zeros."""
        end = start + x.sizes[dim]

        def zeros(n: int) -> Value:
            return self.full((*x.sizes[:dim], n, *x.sizes[dim + 1 :]), 0, x.dtype)

        return x if end - start == size else self.cat([zeros(start), x, zeros(size - end)], dim)

    def reduce(self, op: str, x: Value, dims: Sequence[int], keepdim: bool, dtype: torch.dtype) -> Value:
        dims = sorted({d % len(x.sizes) for d in dims}) if x.sizes else []
        if x.place is not None and x.place.axis in dims:
            return self._reduce_rows(op, x, dims, keepdim, dtype)
        sizes = without(x.sizes, dims, keepdim)
        axes = tuple(a for d in dims for a in graph_axes(d, x.place))
        if not dims or (op != "prod" and all(x.sizes[d] == 1 for d in dims)):
            return self.view(self.cast(x, dtype), sizes)
        place = place_without(x.place, dims, keepdim)
        return self.emit(op, (x.ref,), sizes, place, dtype, dims=axes, keepdim=keepdim)

    def _reduce_rows(self, op: str, x: Value, dims: Sequence[int], keepdim: bool, dtype: torch.dtype) -> Value:
        """A sum over all rows: the gradient of what they share."""
        if not self.backward or op != "sum":
            raise MixedRows("it reduces over the row axis (a batch norm in training does so; call .eval() on it)")
        axes = tuple(sorted(a for d in dims for a in graph_axes(d, x.place)))
        sizes = without(x.sizes, dims, False)
        total = self.emit(op, (x.ref,), sizes, None, dtype, dims=axes, keepdim=False)
        return self.view(total, without(x.sizes, dims, keepdim))

    def cast(self, x: Value, dtype: torch.dtype) -> Value:
        ref = self.builder.cast(x.ref, dtype)
        assert isinstance(ref, Ref)
        return self.wrap(ref, x.sizes, x.place)

    def feature_axis(self, x: Value, dim: int, wrong: str) -> int:
        """The axis in the graph of an axis that is not the rows'."""
        dim %= max(len(x.sizes), 1)
        if x.place is not None and dim == x.place.axis:
            raise MixedRows(f"it {wrong}")
        return graph_axes(dim, x.place)[0]


def broadcast(shapes: Sequence[Sequence[Any]]) -> tuple[Any, ...]:
    rank = max(map(len, shapes), default=0)
    padded = [(*[1] * (rank - len(s)), *s) for s in shapes]
    return tuple(next((n for n in axis if n != 1), 1) for axis in zip(*padded))


def without(sizes: Sizes, dims: Sequence[int], keepdim: bool) -> Sizes:
    if keepdim:
        return tuple(1 if i in dims else n for i, n in enumerate(sizes))
    return tuple(n for i, n in enumerate(sizes) if i not in dims)


def place_without(place: Place | None, dims: Sequence[int], keepdim: bool) -> Place | None:
    """Where the rows are, when these axes are gone."""
    if place is None or keepdim:
        return place
    return Place(place.axis - sum(d < place.axis for d in dims), place.before, place.after)
