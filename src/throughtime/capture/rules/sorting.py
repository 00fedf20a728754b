"""Sorting along a feature axis -> comparisons and sums: no element is read where a number says.

An entry's *rank* is how many entries come before it; what has rank r is a sum over all entries of which one counts. The
few largest of many are taken one after the other. What is too long for either stays the operator that it is.
"""

from math import prod
from typing import Any

import torch

from throughtime.capture.rules.making import LARGEST_TABLE, constant
from throughtime.capture.rules.reductions import with_order
from throughtime.capture.rules.table import rule
from throughtime.capture.tape import Call
from throughtime.capture.values import Value, Values, place_without

MOST_RANKED = 128
"""Entries that are compared with each other; of 256, PyTorch's own sort takes half the time."""
MOST_TAKEN = 8
"""Entries that are taken one after the other; each is some operators, and 8 take 0.3 s to compile."""


@rule("sort")
def _sort(v: Values, call: Call, x: Value, *args: Any, **kwargs: Any) -> list[Value]:
    options = {**dict(zip(_names(call), args)), **kwargs}
    dim, descending = options.get("dim", -1), options.get("descending", False)
    axis = v.feature_axis(x, dim, "sorts the rows")
    if not 0 < x.sizes[dim] <= MOST_RANKED:
        return _kept(v, call, x, dim=axis, descending=descending)
    return _Entries(v, x, dim).ranked(x.sizes[dim], descending)


def _names(call: Call) -> list[str]:
    return [a.name for a in call.operator._schema.arguments[1:]]


@rule("topk")
def _topk(v: Values, call: Call, x: Value, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    axis = v.feature_axis(x, dim, "takes the largest of the rows")
    size = x.sizes[dim]
    if largest and 0 < k <= min(MOST_TAKEN, size // 2) and size <= LARGEST_TABLE:
        return _Entries(v, x, dim).largest(k)
    if 0 < k <= size <= MOST_RANKED:
        return _Entries(v, x, dim).ranked(k, largest)
    return _kept(v, call, x, k=k, dim=axis, largest=largest, sorted=sorted)


@rule("kthvalue")
def _kth(v: Values, call: Call, x: Value, k: int, dim: int = -1, keepdim: bool = False) -> list[Value]:
    if x.sizes and x.sizes[dim] <= MOST_RANKED:
        v.feature_axis(x, dim, "compares the rows")
        return _Entries(v, x, dim).of_rank(k - 1, keepdim)
    return _pairs(v, call, call.result, x, dim, keepdim, k=k)


@rule("median")
def _median(v: Values, call: Call, x: Value, dim: int | None = None, keepdim: bool = False) -> Any:
    """The lower one of two in the middle; NaN, if there is one."""
    if dim is None:
        x, dim = v.view(x, (prod(x.sizes),)), 0
        made: Any = [call.result]
    else:
        made = call.result
    v.feature_axis(x, dim, "compares the rows")
    if x.sizes and 0 < x.sizes[dim] <= MOST_RANKED:
        entries = _Entries(v, x, dim)
        found = entries.of_rank(entries.middle(), keepdim)
    else:
        found = _pairs(v, call, made, x, dim, keepdim)
    return found[0] if len(made) == 1 else found


@rule("mode")
def _mode(v: Values, call: Call, x: Value, dim: int = -1, keepdim: bool = False) -> list[Value]:
    return _pairs(v, call, call.result, x, dim, keepdim)


def _pairs(v: Values, call: Call, made: Any, x: Value, dim: int, keepdim: bool, **attributes: Any) -> list[Value]:
    """A value and its index along one axis."""
    axis = v.feature_axis(x, dim, "compares the rows")
    place = place_without(x.place, [dim % len(x.sizes)], keepdim)
    attributes |= {"dim": axis, "keepdim": keepdim}
    return [v.emit(call.name, (x.ref,), r.shape, place, r.dtype, **attributes, output=i) for i, r in enumerate(made)]


def _kept(v: Values, call: Call, x: Value, **attributes: Any) -> list[Value]:
    """Values and indices, of an operator that stays as it is."""
    return [
        v.emit(call.name, (x.ref,), made.shape, x.place, made.dtype, **attributes, output=i)
        for i, made in enumerate(call.result)
    ]


class _Entries:
    """The entries of a value along one axis. Equal ones keep their order; NaN is the largest."""

    def __init__(self, v: Values, x: Value, dim: int) -> None:
        self.v, self.dim = v, dim % len(x.sizes)
        self.given = x.dtype
        self.x = with_order(v, x)
        self.size, self.is_real = x.sizes[dim], x.dtype.is_floating_point
        self.counted = torch.float64 if x.dtype == torch.float64 else torch.float32 if self.is_real else torch.int64
        self.behind = len(x.sizes) - self.dim - 1
        self.numbers = self._line(self.size, self.behind)
        """0, 1, … along the axis."""

    def ranked(self, count: int, descending: bool) -> list[Value]:
        """The first `count` in order, and their places."""
        ranks = self._line(count, self.behind + 1)
        hit = self._compare("eq", ranks, self._others(self._ranks(descending)), self.counted)
        return self._finished(
            *(self._sum_where(hit, self._others(a), self.dim + 1, False) for a in (self.x, self.numbers))
        )

    def of_rank(self, rank: Value | int, keepdim: bool) -> list[Value]:
        """The one of an ascending rank (along the axis, of size 1), and its place."""
        hit = self._compare("eq", self._ranks(False), rank, self.counted)
        return self._finished(*(self._sum_where(hit, a, self.dim, keepdim) for a in (self.x, self.numbers)))

    def middle(self) -> Value | int:
        """The rank of the lower middle, or of the first NaN."""
        middle = (self.size - 1) // 2
        if not self.is_real:
            return middle
        count = self.v.reduce("sum", self.v.cast(self._is_nan(self.x), self.counted), [self.dim], True, self.counted)
        first = self.v.pointwise("sub", self.size, count, dtype=self.counted)
        some = self._compare("gt", count, 0, self.counted)
        return self.v.pointwise("where", some, first, middle, dtype=self.counted)

    def largest(self, count: int) -> list[Value]:
        """One after the other; what is taken becomes the least number, and is not looked at again."""
        v, rest, free = self.v, self.x, None
        lowest = -float("inf") if self.is_real else torch.iinfo(self.x.dtype).min
        values, places = [], []
        for _ in range(count):
            value = v.reduce("amax", rest, [self.dim], True, self.x.dtype)
            hit = self._compare("eq", rest, value, self.x.dtype)
            hit = self._logical("or", hit, self._is_nan(rest)) if self.is_real else hit
            hit = hit if free is None else self._logical("and", hit, free)
            named = v.pointwise("where", hit, self.numbers, self.size, dtype=self.counted)
            place = v.reduce("amin", named, [self.dim], True, self.counted)
            other = self._compare("ne", self.numbers, place, self.counted)
            free = other if free is None else self._logical("and", free, other)
            rest = v.pointwise("where", other, rest, lowest, dtype=self.x.dtype)
            values.append(value)
            places.append(place)
        return self._finished(v.cat(values, self.dim), v.cat(places, self.dim))

    def _ranks(self, descending: bool) -> Value:
        """How many come before each: what is more, or the same and further in front."""
        v, value, place = self.v, self.x, self.numbers
        if self.is_real:
            nan = self._is_nan(value)
            behind = v.pointwise("add", place, -self.size if descending else self.size, dtype=self.counted)
            place = v.pointwise("where", nan, behind, place, dtype=self.counted)
            value = v.pointwise("where", nan, float("inf"), value, dtype=value.dtype)
        sign = "gt" if descending else "lt"
        more = self._compare(sign, self._others(value), self._own(value), value.dtype)
        same = self._compare("eq", self._others(value), self._own(value), value.dtype)
        earlier = self._compare("lt", self._others(place), self._own(place), self.counted)
        before = self._logical("or", more, self._logical("and", same, earlier))
        return v.reduce("sum", v.cast(before, self.counted), [self.dim + 1], False, self.counted)

    def _finished(self, values: Value, places: Value) -> list[Value]:
        return [self.v.cast(values, self.given), self.v.cast(places, torch.int64)]

    def _line(self, count: int, behind: int) -> Value:
        """0, 1, …, count - 1 along an axis with so many behind it."""
        return constant(self.v, torch.arange(count, dtype=self.counted).reshape(count, *[1] * behind))

    def _own(self, a: Value) -> Value:
        """Entries along the axis, with an axis behind it for the others."""
        return self._with_axis(a, len(a.sizes) - self.behind)

    def _others(self, a: Value) -> Value:
        return self._with_axis(a, len(a.sizes) - self.behind - 1)

    def _with_axis(self, a: Value, at: int) -> Value:
        return self.v.view(a, (*a.sizes[:at], 1, *a.sizes[at:]))

    def _sum_where(self, hit: Value, a: Value, dim: int, keepdim: bool) -> Value:
        return self.v.reduce("sum", self.v.pointwise("where", hit, a, 0, dtype=a.dtype), [dim], keepdim, a.dtype)

    def _compare(self, op: str, a: Value | int, b: Value | int, within: torch.dtype) -> Value:
        return self.v.pointwise(op, a, b, dtype=torch.bool, within=within)

    def _logical(self, op: str, a: Value, b: Value) -> Value:
        return self.v.pointwise(f"logical_{op}", a, b, dtype=torch.bool)

    def _is_nan(self, a: Value) -> Value:
        return self._compare("ne", a, a, a.dtype)
