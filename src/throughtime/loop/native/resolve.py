"""Row nodes -> items to compute, and for every value where its elements lie.

A shape operator becomes a view, a `full` a number, a concatenation a buffer that its parts are stored into. What is
left is an item: an elementwise operator or a reduction (part of a pass over the row), a product, a table lookup.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from throughtime._errors import BackendError
from throughtime.capture.graph import ROWS, Input, Node, Ref
from throughtime.loop.native.operators import ELEMENTWISE, REDUCTIONS, unfit
from throughtime.loop.native.program import INDEX, Buffer, Immediate, is_whole
from throughtime.loop.native.views import Features, View, contiguous, feature_shape, squeeze, view_through

__all__ = ["SHAPE_OPERATORS", "Item", "Resolved", "Want", "is_rounded", "same_elements"]

SHAPE_OPERATORS = frozenset({"view", "permute", "expand", "slice", "flip", "windows"})
_MOVES = SHAPE_OPERATORS | {"cat", "copy"}


@dataclass(frozen=True)
class Want:
    """A value that must be stored in `buffer`, where `to` says; `add`ed to what is there."""

    value: str | Immediate
    buffer: Buffer
    to: View
    add: bool = False


@dataclass
class Item:
    """A node to compute. It walks over `walk`, the feature shape of its elements, and reduces the axes `reduced`.

    space, axes: the same without axes of size 1, by which walks are compared.
    """

    node: Node
    walk: Features
    reduced: tuple[int, ...] = ()
    rank: int = 0

    @property
    def is_pass(self) -> bool:
        return self.node.op not in ("affine", "embedding")

    @property
    def space(self) -> Features:
        return squeeze(self.walk)

    @property
    def axes(self) -> tuple[int, ...]:
        places = [i for i, n in enumerate(self.walk) if n != 1]
        return tuple(places.index(i) for i in self.reduced if i in places)


@dataclass
class Resolved:
    """values: every input and node. sources: where each lies, as a view of a buffer or of an item's result."""

    values: dict[str, Input | Node]
    sources: dict[str, View]
    buffers: dict[str, Buffer]
    wants: list[Want]
    immediates: dict[str, Immediate] = field(default_factory=dict)
    items: dict[str, Item] = field(default_factory=dict)
    joined: set[str] = field(default_factory=set)
    """Buffers of concatenations: what reads them comes after all their parts are stored."""

    def take(self, nodes: Sequence[Node]) -> None:
        for node in nodes:
            self.values[node.name] = node
            self._take(node)
        self.wants = [self._with_number(want) for want in self.wants]

    def _with_number(self, want: Want) -> Want:
        number = self.immediates.get(want.value) if isinstance(want.value, str) else None
        return want if number is None else replace(want, value=number)

    def base_item(self, name: str) -> Item | None:
        """The item whose result a value looks at, if any."""
        view = self.sources.get(name)
        return None if view is None else self.items.get(view.base)

    def has_rows(self, name: str) -> bool:
        return ROWS in self.values[name].shape

    def scratch(self, value: str) -> Buffer:
        like = self.values[value]
        width = math.prod(feature_shape(like.shape))
        buffer = Buffer(f"scratch:{value}", "block", width, integer=is_whole(like.dtype))
        self.buffers[buffer.name] = buffer
        return buffer

    def _take(self, node: Node) -> None:
        if node.op == "full":
            self.immediates[node.name] = Immediate(node.attributes["value"])
        elif node.op == "index":
            self._take_index(node)
        elif node.op in SHAPE_OPERATORS:
            self._take_view(node)
        elif node.op == "cat":
            self._take_cat(node)
        elif node.op == "pad":
            self._take_pad(node)
        elif node.op == "bmm":
            self._take_bmm(node)
        elif node.op == "affine":
            self._take_affine(node)
        elif node.op in REDUCTIONS:
            self._take_reduction(node)
        elif node.op in ELEMENTWISE:
            self._take_elementwise(node)
        elif node.op == "embedding":
            self._compute(Item(node, feature_shape(node.shape)))
        else:
            raise BackendError(f"operator '{node.op}' ({node}) is not in the native backend's table")

    def _take_elementwise(self, node: Node) -> None:
        sort = unfit(node, [self.values[operand].dtype for operand in node.operands])
        if sort is not None:
            raise BackendError(f"'{node.op}' ({node}) takes no {sort} in machine code")
        self._compute(Item(node, feature_shape(node.shape)))

    def _compute(self, item: Item) -> None:
        name = item.node.name
        self.items[name] = item
        self.sources[name] = contiguous(name, feature_shape(item.node.shape))

    def _take_view(self, node: Node) -> None:
        operand = node.operands[0]
        if operand in self.immediates:
            self.immediates[node.name] = self.immediates[operand]
            return
        rows = self.has_rows(operand)
        view = view_through(node, self.sources[operand], rows)
        if view is None and rows:
            view = view_through(node, self.sources[self._copy(operand)], rows)
        assert view is not None, "capturing keeps the row axis in front"
        self.sources[node.name] = view

    def _copy(self, name: str) -> str:
        """The value's elements in order and in a place of their own."""
        like = self.values[name]
        copy = Node(f"{name}.copy", "copy", (Ref(name),), (), like.shape, like.dtype)
        if copy.name not in self.items:
            self.values[copy.name] = copy
            self._compute(Item(copy, feature_shape(like.shape)))
        return copy.name

    def _take_cat(self, node: Node) -> None:
        shape = feature_shape(node.shape)
        axis = node.attributes["dim"] - 1
        assert axis >= 0, "capturing refuses to join rows"
        buffer = self._home_of_cat(node) or self.scratch(node.name)
        self.joined.add(buffer.name)
        whole = contiguous(buffer.name, shape)
        start = 0
        for part in node.operands:
            part_shape = feature_shape(self.values[part].shape)
            to = View(buffer.name, part_shape, whole.strides, start * whole.strides[axis])
            self.wants.append(Want(self.immediates.get(part, part), buffer, to))
            start += part_shape[axis]
        self.sources[node.name] = whole

    def _take_pad(self, node: Node) -> None:
        """The number before and after each axis in turn, as long as the axes before it, and the value within."""
        (part,) = node.operands
        buffer = self._home_of_cat(node) or self.scratch(node.name)
        self.joined.add(buffer.name)
        whole = contiguous(buffer.name, feature_shape(node.shape))
        inner, number = whole, Immediate(node.attributes["value"])
        for axis, (low, high) in enumerate(zip(node.attributes["before"], node.attributes["after"])):
            size = inner.shape[axis]
            for start, end in ((0, low), (size - high, size)):
                if start < end:
                    self.wants.append(Want(number, buffer, inner.between(axis, start, end)))
            inner = inner.between(axis, low, size - high)
        self.wants.append(Want(self.immediates.get(part, part), buffer, inner))
        self.sources[node.name] = whole

    def _home_of_cat(self, node: Node) -> Buffer | None:
        """Parts go straight to where the whole is wanted, if that is a place of its own."""
        for want in self.wants:
            if want.value == node.name and want.buffer.kind == "pair" and want.buffer.name not in self.joined:
                self.wants.remove(want)
                return want.buffer
        return None

    def _take_reduction(self, node: Node) -> None:
        axes = tuple(d - 1 for d in node.attributes["dims"])
        assert min(axes, default=0) >= 0, "a sum over rows is a reduction of the plan"
        self._reduce(node, feature_shape(self.values[node.operands[0]].shape), axes)

    def _reduce(self, node: Node, over: Features, axes: tuple[int, ...]) -> None:
        """Along axes of one element there is nothing to reduce."""
        if all(over[a] == 1 for a in axes):
            self._take_view(replace(node, op="view"))
        else:
            self._compute(Item(node, over, axes))

    def _take_index(self, node: Node) -> None:
        strides = tuple(1 if i == node.attributes["dim"] else 0 for i in range(1, len(node.shape)))
        self.sources[node.name] = View(INDEX, feature_shape(node.shape), strides)

    def _take_affine(self, node: Node) -> None:
        """Products read whole vectors: an operand that lies otherwise is copied first."""
        bias, *pairs = node.args
        args = [bias]
        for x, w in zip(pairs[::2], pairs[1::2]):
            ready = x.name in self.sources and self._is_row_of_vectors(x.name)
            args += [x if ready else Ref(self._copy(x.name)), w]
        ready_node = replace(node, args=tuple(args))
        self.values[node.name] = ready_node
        self._compute(Item(ready_node, feature_shape(node.shape)))

    def _is_row_of_vectors(self, name: str) -> bool:
        view = self.sources[name]
        if not self.has_rows(name) or self._is_const(view):
            return False
        if len(view.shape) == 1:
            return view.shape[0] == 1 or view.strides[0] == 1
        width = self._width(view.base)
        return view.is_whole and view.offset == 0 and math.prod(view.shape) == width

    def _is_const(self, view: View) -> bool:
        return view.base in self.buffers and self.buffers[view.base].kind == "const"

    def _width(self, base: str) -> int:
        return self.buffers[base].width if base in self.buffers else math.prod(self.items[base].walk)

    def _take_bmm(self, node: Node) -> None:
        """Before: bmm(a[.., M, K], b[.., K, N])
        After:  sum(a[.., M, 1, K] * b[.., 1, N, K])   the axis of the sum last if b's elements lie so, else before N
        """
        places = (self._copy(name) if name in self.immediates else name for name in node.operands)
        a, b = (self.sources[name] for name in places)
        *lead, m, n = feature_shape(node.shape)
        k, count = a.shape[-1], len(lead)
        last = b.strides[-2] == 1 and b.strides[-1] != 1
        space = (*lead, *((m, n, k) if last else (m, k, n)))
        (rows, inner), (down, across) = a.strides[-2:], b.strides[-2:]
        left = View(a.base, space, (*a.strides[:count], *((rows, 0, inner) if last else (rows, inner, 0))), a.offset)
        right = View(b.base, space, (*b.strides[:count], *((0, across, down) if last else (0, down, across))), b.offset)
        like = replace(node, shape=(ROWS, *space), kwargs=())
        factors = []
        for side, view in (("left", left), ("right", right)):
            factor = replace(like, name=f"{node.name}.{side}", op="view", args=())
            self.values[factor.name], self.sources[factor.name] = factor, view
            factors.append(Ref(factor.name))
        times = replace(like, name=f"{node.name}.times", op="mul", args=tuple(factors))
        self.values[times.name] = times
        self._compute(Item(times, space))
        total = replace(node, op="sum", args=(Ref(times.name),), kwargs=())
        self.values[node.name] = total
        self._reduce(total, space, (count + (2 if last else 1),))


def same_elements(view: View, of: Item) -> bool:
    """Whether a view is all of an item's result, in order."""
    shape = squeeze(feature_shape(of.node.shape))
    return view.offset == 0 and view.is_whole and squeeze(view.shape) == shape


def is_rounded(name: str, values: Mapping[str, Input | Node]) -> bool:
    """Whether a value's elements are numbers of bfloat16: what a step computes in that dtype is kept in float32, and
    only its explicit rounding rounds; what is computed once per call, PyTorch rounds.
    """
    value = values[name]
    if value.dtype != torch.bfloat16:
        return False
    if ROWS not in value.shape:
        return True
    if isinstance(value, Input):
        return value.kind in ("row_const", "xs")
    if value.op in _MOVES or (value.op == "pad" and value.attributes["value"] == 0):
        return all(is_rounded(operand, values) for operand in value.operands)
    return value.op == "to_dtype"
