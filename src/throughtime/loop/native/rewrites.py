"""Row nodes -> row nodes that passes and products have: look-ups, places and running sums by plainer operators.

No element is read where a number says: an entry is looked up by comparing its place with all places. One that names no
place is 0 where it is looked up, and changes nothing where it is written.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from throughtime.capture.graph import ROWS, Input, Node, Ref, Shape

__all__ = ["rewrite"]


def rewrite(nodes: Sequence[Node], values: Mapping[str, Input | Node]) -> list[Node]:
    """values: every input and node by name."""
    known = dict(values)
    return [new for node in nodes for new in _rewritten(node, known)]


def _rewritten(node: Node, values: Mapping[str, Input | Node]) -> list[Node]:
    write = _REWRITES.get(node.op)
    if write is None or node.attributes["dim"] == 0:
        return [node]
    steps = _Steps(node, values)
    write(steps)
    return [*steps.made[:-1], replace(steps.made[-1], name=node.name)]


class _Steps:
    """The nodes on the way to one."""

    def __init__(self, node: Node, values: Mapping[str, Input | Node]) -> None:
        self.node, self.values = node, dict(values)
        self.axis: int = node.attributes["dim"]
        self.made: list[Node] = []

    def shape(self, value: Ref) -> Shape:
        return self.values[value.name].shape

    def make(self, op: str, args: tuple[Any, ...], shape: Shape, dtype: torch.dtype, **attributes: Any) -> Ref:
        name = f"{self.node.name}.{len(self.made)}"
        node = Node(name, op, args, tuple(attributes.items()), shape, dtype)
        self.made.append(node)
        self.values[name] = node
        return Ref(name)

    def elementwise(self, op: str, *args: Any, shape: Shape, dtype: torch.dtype | None = None) -> Ref:
        return self.make(op, args, shape, dtype or self.node.dtype)

    def view(self, value: Ref, shape: Shape) -> Ref:
        return self.make("view", (value,), shape, self.values[value.name].dtype)

    def fitted(self, value: Ref, dim: int, size: int, fill: int = 0) -> Ref:
        """The value, cut or filled up at the end of an axis."""
        shape, dtype = self.shape(value), self.values[value.name].dtype
        if (missing := size - int(shape[dim])) > 0:
            filler = self.make("full", (), _with(shape, dim, missing), dtype, value=fill)
            return self.make("cat", (value, filler), _with(shape, dim, size), dtype, dim=dim)
        if missing == 0:
            return value
        return self.make("slice", (value,), _with(shape, dim, size), dtype, dim=dim, start=0, end=size, step=1)

    def places(self, dim: int, shape: Shape) -> Ref:
        """The place of each element along an axis."""
        return self.make("index", (), shape, torch.int64, dim=dim)

    def reduced(self, op: str, value: Ref, dim: int) -> Ref:
        shape = self.shape(value)
        dtype = self.values[value.name].dtype
        return self.make(op, (value,), (*shape[:dim], *shape[dim + 1 :]), dtype, dims=(dim,), keepdim=False)


def _with(shape: Shape, dim: int, size: int) -> Shape:
    return (*shape[:dim], size, *shape[dim + 1 :])


# --- look-ups


def _look_up(s: _Steps) -> Ref:
    """Before: gather(x[.., C], index[.., J], -1)
    After:  sum over C of where(index[.., J, 1] == place, x[.., 1, C], 0)
    """
    x, index = s.node.args
    axis, entries = s.axis, int(s.shape(x)[s.axis])
    for dim in range(1, len(s.node.shape)):
        if dim != axis:
            x = s.fitted(x, dim, int(s.node.shape[dim]))
    shape = (*s.node.shape[: axis + 1], entries, *s.node.shape[axis + 1 :])
    hit = s.elementwise("eq", _tall(s, index), s.places(axis + 1, shape), shape=shape, dtype=torch.bool)
    wide = s.view(x, _with(shape, axis, 1))
    return s.reduced("sum", s.elementwise("where", hit, wide, 0, shape=shape), axis + 1)


def _tall(s: _Steps, index: Ref) -> Ref:
    """An index of each row, or one for all rows, with an axis for the entries after its own."""
    own = s.shape(index)
    if ROWS not in own:
        return s.view(index, (*own, 1, *[1] * (len(s.node.shape) - s.axis - 1)))
    return s.view(index, (*own[: s.axis + 1], 1, *own[s.axis + 1 :]))


def _add(s: _Steps) -> Ref:
    """Before: scatter_add(x[.., C], index[.., J], y[.., J], -1)
    After:  x + sum over J of where(index[.., J, 1] == place, y[.., J, 1], 0)
    """
    hit, source, shape = _written(s)
    added = s.reduced("sum", s.elementwise("where", hit, source, 0, shape=shape), s.axis)
    return s.elementwise("add", s.node.args[0], added, shape=s.node.shape)


def _put(s: _Steps) -> Ref:
    """Before: scatter(x[.., C], index[.., J], y[.., J], -1)
    After:  where(last >= 0, sum over J of where(last == j, y, 0), x)     last: the last j that names the place, or -1
    """
    hit, source, shape = _written(s)
    numbers = s.places(s.axis, shape)
    last = s.reduced("amax", s.elementwise("where", hit, numbers, -1, shape=shape, dtype=torch.int64), s.axis)
    wide = s.view(last, _with(shape, s.axis, 1))
    chosen = s.elementwise("eq", wide, numbers, shape=shape, dtype=torch.bool)
    new = s.reduced("sum", s.elementwise("where", chosen, source, 0, shape=shape), s.axis)
    is_named = s.elementwise("ge", last, 0, shape=s.node.shape, dtype=torch.bool)
    return s.elementwise("where", is_named, new, s.node.args[0], shape=s.node.shape)


def _written(s: _Steps) -> tuple[Ref, Ref, Shape]:
    """Which entry each place gets, the entries, the shape of both. Entries that are not there name no place."""
    _, index, source = s.node.args
    axis, own = s.axis, s.shape(index)
    across = _with(s.node.shape, axis, int(own[axis if ROWS in own else 0]))
    for dim in range(1, len(across)):
        if ROWS in own:
            source = s.fitted(source, dim, int(own[dim]))
            index, source = s.fitted(index, dim, int(across[dim]), -1), s.fitted(source, dim, int(across[dim]))
    shape = (*across[: axis + 1], s.node.shape[axis], *across[axis + 1 :])
    hit = s.elementwise("eq", _tall(s, index), s.places(axis + 1, shape), shape=shape, dtype=torch.bool)
    return hit, s.view(source, _with(shape, axis + 1, 1)), shape


# --- places


def _first(s: _Steps) -> Ref:
    """Before: argmax(a)
    After:  amin(where(a == amax(a) or a is NaN, place, last))      the first of equal ones, and of NaNs
    """
    (a,) = s.node.args
    axis, shape, own = s.axis, s.shape(a), s.values[a.name].dtype
    op = "amax" if s.node.op == "argmax" else "amin"
    extreme = s.make(op, (a,), _with(shape, axis, 1), own, dims=(axis,), keepdim=True)
    hit = s.elementwise("eq", a, extreme, shape=shape, dtype=torch.bool)
    nothing = s.elementwise("ne", a, a, shape=shape, dtype=torch.bool)
    found = s.elementwise("logical_or", hit, nothing, shape=shape, dtype=torch.bool)
    place = s.elementwise("where", found, s.places(axis, shape), int(shape[axis]) - 1, shape=shape, dtype=torch.int64)
    return s.make("amin", (place,), s.node.shape, torch.int64, dims=(axis,), keepdim=s.node.attributes["keepdim"])


# --- running sums


def _scanned(s: _Steps, total: Ref, neutral: float, combine: Callable[[_Steps, Ref, Ref], Ref]) -> Ref:
    """Before: cumsum(a)
    After:  a + shifted(a, 1) = b;  b + shifted(b, 2) = c;  c + shifted(c, 4);  ...      filled with zeros

    Source: Hillis and Steele 1986, "Data parallel algorithms".
    """
    axis, shape, dtype = s.axis, s.shape(total), s.values[total.name].dtype
    size, shift = int(shape[axis]), 1
    if size <= 1:
        return s.view(total, shape)
    while shift < size:
        first = s.make("full", (), _with(shape, axis, shift), dtype, value=neutral)
        shifted = s.make("cat", (first, s.fitted(total, axis, size - shift)), shape, dtype, dim=axis)
        total = combine(s, total, shifted)
        shift *= 2
    return total


def _by(op: str) -> Callable[[_Steps, Ref, Ref], Ref]:
    return lambda s, a, b: s.elementwise(op, a, b, shape=s.shape(a), dtype=s.values[a.name].dtype)


def _running(op: str, neutral: int) -> Callable[[_Steps], Ref]:
    return lambda s: _scanned(s, s.node.args[0], neutral, _by(op))


def _log_of_sum(s: _Steps, a: Ref, b: Ref) -> Ref:
    """max + log1p(exp(min - max)), and the larger one itself where it is infinite."""
    most, least = _by("maximum")(s, a, b), _by("minimum")(s, a, b)
    ratio = s.elementwise("exp", _by("sub")(s, least, most), shape=s.shape(a))
    total = _by("add")(s, most, s.elementwise("log1p", ratio, shape=s.shape(a)))
    infinite = s.elementwise("isinf", most, shape=s.shape(a), dtype=torch.bool)
    return s.elementwise("where", infinite, most, total, shape=s.shape(a))


def _running_log_of_sum(s: _Steps) -> Ref:
    return _scanned(s, s.node.args[0], -float("inf"), _log_of_sum)


def _running_extreme(op: str) -> Callable[[_Steps], Ref]:
    def write(s: _Steps) -> Ref:
        """The extreme so far; or where it stands: at the last of equal ones, and of NaNs."""
        (a,) = s.node.args
        own, shape = s.values[a.name].dtype, s.node.shape
        least = -float("inf") if own.is_floating_point else torch.iinfo(own).min
        most = float("inf") if own.is_floating_point else torch.iinfo(own).max
        extreme = _scanned(s, a, least if op == "maximum" else most, _by(op))
        if s.node.attributes["output"] == 0:
            return extreme
        hit = s.elementwise("eq", a, extreme, shape=shape, dtype=torch.bool)
        nothing = s.elementwise("ne", a, a, shape=shape, dtype=torch.bool)
        found = s.elementwise("logical_or", hit, nothing, shape=shape, dtype=torch.bool)
        place = s.elementwise("where", found, s.places(s.axis, shape), 0, shape=shape, dtype=torch.int64)
        return _scanned(s, place, 0, _by("maximum"))

    return write


_REWRITES: dict[str, Callable[[_Steps], Ref]] = {
    "gather": _look_up,
    "index_select": _look_up,
    "scatter_add": _add,
    "index_add": _add,
    "scatter": _put,
    "index_copy": _put,
    "argmax": _first,
    "argmin": _first,
    "cummax": _running_extreme("maximum"),
    "cummin": _running_extreme("minimum"),
    "cumprod": _running("mul", 1),
    "cumsum": _running("add", 0),
    "logcumsumexp": _running_log_of_sum,
}
