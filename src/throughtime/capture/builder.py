"""Operators in the words of a graph -> its nodes, each value once.

Nothing here knows where the cell had its rows: shapes are those of the graph.
"""

from math import prod
from typing import Any

import torch

from throughtime.capture.graph import ROWS, Input, Node, Ref, Shape

__all__ = ["Builder", "Number", "Operand"]

Number = int | float | bool
Operand = Ref | Number


class Builder:
    """Nodes in the order in which they were first asked for."""

    def __init__(self) -> None:
        self.inputs: list[Input] = []
        self.nodes: list[Node] = []
        self._known: dict[Any, Ref] = {}
        self._values: dict[str, Input | Node] = {}

    def add_input(self, value: Input) -> Ref:
        self.inputs.append(value)
        self._values[value.name] = value
        return Ref(value.name)

    def emit(self, op: str, args: tuple[Any, ...], shape: Shape, dtype: torch.dtype, /, **attributes: Any) -> Ref:
        """The value of the operator: the node that already computes it, or a new one."""
        kwargs = tuple(attributes.items())
        key = (op, _exact(args), _exact(kwargs), shape, dtype)
        if key not in self._known:
            node = Node(f"v{len(self.nodes)}", op, args, kwargs, shape, dtype)
            self.nodes.append(node)
            self._values[node.name] = node
            self._known[key] = Ref(node.name)
        return self._known[key]

    def value(self, ref: Ref) -> Input | Node:
        return self._values[ref.name]

    def made_by(self, ref: Operand, op: str) -> Node | None:
        value = self._values[ref.name] if isinstance(ref, Ref) else None
        return value if isinstance(value, Node) and value.op == op else None

    def shape(self, ref: Ref) -> Shape:
        return self._values[ref.name].shape

    def dtype(self, ref: Ref) -> torch.dtype:
        return self._values[ref.name].dtype

    def number(self, ref: Operand) -> Number | None:
        """The one number that the value is filled with, if that is known."""
        if not isinstance(ref, Ref):
            return ref
        full = self.made_by(ref, "full")
        return None if full is None else full.attributes["value"]

    def full(self, shape: Shape, value: Number, dtype: torch.dtype) -> Ref:
        return self.emit("full", (), shape, dtype, shape=shape, value=as_dtype(value, dtype))

    def view(self, x: Ref, shape: Shape) -> Ref:
        if self.shape(x) == shape:
            return x
        if (number := self.number(x)) is not None:
            return self.full(shape, number, self.dtype(x))
        before = self.made_by(x, "view")
        if before is not None:
            return self.view(before.args[0], shape)
        return self.emit("view", (x,), shape, self.dtype(x), shape=shape)

    def permute(self, x: Ref, dims: tuple[int, ...]) -> Ref:
        shape = self.shape(x)
        if dims == tuple(range(len(dims))):
            return x
        new_shape: Shape = tuple(shape[d] for d in dims)
        if (number := self.number(x)) is not None:
            return self.full(new_shape, number, self.dtype(x))
        if [d for d in dims if shape[d] != 1] == [d for d in range(len(dims)) if shape[d] != 1]:
            return self.view(x, new_shape)
        before = self.made_by(x, "permute")
        if before is not None:
            return self.permute(before.args[0], tuple(before.attributes["dims"][d] for d in dims))
        return self.emit("permute", (x,), new_shape, self.dtype(x), dims=dims)

    def expand(self, x: Ref, shape: Shape) -> Ref:
        """`x` has as many axes as `shape`."""
        if self.shape(x) == shape:
            return x
        if (number := self.number(x)) is not None:
            return self.full(shape, number, self.dtype(x))
        before = self.made_by(x, "expand")
        if before is not None:
            return self.expand(before.args[0], shape)
        return self.emit("expand", (x,), shape, self.dtype(x), shape=shape)

    def cast(self, x: Operand, dtype: torch.dtype) -> Operand:
        if not isinstance(x, Ref):
            return as_dtype(x, dtype)
        if self.dtype(x) == dtype:
            return x
        if (number := self.number(x)) is not None:
            return self.full(self.shape(x), number, dtype)
        return self.emit("to_dtype", (x,), self.shape(x), dtype, dtype=dtype)

    def slice(self, x: Ref, dim: int, start: int, end: int, step: int = 1) -> Ref:
        shape = self.shape(x)
        size = shape[dim]
        assert isinstance(size, int), "slices are of feature axes"
        if (start, step) == (0, 1) and end >= size:
            return x
        new_shape = (*shape[:dim], len(range(start, end, step)), *shape[dim + 1 :])
        if (number := self.number(x)) is not None:
            return self.full(new_shape, number, self.dtype(x))
        found = self._part(x, dim, start, end) if step == 1 else None
        if found is not None:
            return found
        return self.emit("slice", (x,), new_shape, self.dtype(x), dim=dim, start=start, end=end, step=step)

    def _part(self, x: Ref, dim: int, start: int, end: int) -> Ref | None:
        """Before: cat([a, b], dim)[start:end] where that is inside one of the parts, or a slice of a slice
        After:  the part's own slice
        """
        sliced = self.made_by(x, "slice")
        if sliced is not None and sliced.attributes["dim"] == dim and sliced.attributes["step"] == 1:
            offset = sliced.attributes["start"]
            return self.slice(sliced.args[0], dim, offset + start, offset + end)
        joined = self.made_by(x, "cat")
        if joined is None or joined.attributes["dim"] != dim:
            return None
        offset = 0
        for part in joined.args:
            width = self.shape(part)[dim]
            assert isinstance(width, int)
            if offset <= start and end <= offset + width:
                return self.slice(part, dim, start - offset, end - offset)
            offset += width
        return None

    def cat(self, parts: list[Ref], dim: int) -> Ref:
        """Parts of width 0 are left out; parts that are themselves joined along `dim` are opened."""
        flat: list[Ref] = []
        for part in parts:
            joined = self.made_by(part, "cat")
            opened = joined.args if joined is not None and joined.attributes["dim"] == dim else (part,)
            flat += [p for p in opened if self.shape(p)[dim] != 0]
        if not flat:
            return parts[0]
        if len(flat) == 1:
            return flat[0]
        shape = self.shape(flat[0])
        width = sum(int(self.shape(p)[dim]) for p in flat)
        new_shape = (*shape[:dim], width, *shape[dim + 1 :])
        whole = self._rejoined(flat, dim, new_shape)
        return whole or self.emit("cat", tuple(flat), new_shape, self.dtype(flat[0]), dim=dim)

    def _rejoined(self, parts: list[Ref], dim: int, shape: Shape) -> Ref | None:
        """Before: cat([x[:a], x[a:]])
        After:  x
        """
        offset, source = 0, None
        for part in parts:
            node = self.made_by(part, "slice")
            if node is None or node.attributes["dim"] != dim or node.attributes["step"] != 1:
                return None
            if node.attributes["start"] != offset or source not in (None, node.args[0]):
                return None
            source = node.args[0]
            offset = node.attributes["end"]
        return source if source is not None and self.shape(source) == shape else None

    def features(self, x: Ref) -> int:
        """Numbers per row, or in all for a value without rows."""
        return prod(int(n) for n in self.shape(x) if n != ROWS)


def as_dtype(value: Number, dtype: torch.dtype) -> Number:
    if dtype == torch.bool:
        return bool(value)
    if dtype.is_complex:
        return value
    return float(value) if dtype.is_floating_point else int(value)


def _exact(value: Any) -> Any:
    """1, 1.0 and True are equal and hash alike, and so do 0.0 and -0.0, but as operands they differ."""
    if isinstance(value, tuple):
        return tuple(_exact(v) for v in value)
    return (type(value), repr(value)) if isinstance(value, (bool, int, float)) else value
