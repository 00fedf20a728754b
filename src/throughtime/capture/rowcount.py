"""The batch size while a step is traced: an int that may be a size and nothing else.

Tracing runs with one fixed batch size, so a branch on it would go unseen. What the cell reads as `x.shape[0]` is
therefore a `RowCount`: as a size it is an ordinary int, and B times the heads is one too, but comparing it with a
number, or computing with it, stops the trace at that line.
"""

import operator
import threading
from collections.abc import Callable
from typing import Any

import torch

from throughtime._errors import CaptureError

__all__ = ["RowCount", "is_row_count", "mark_rows", "plain_sizes", "rows_are"]

_trace = threading.local()


class rows_are:
    """Within this block, on this thread, sizes that are multiples of `rows` are row counts."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __enter__(self) -> None:
        self.outer = _rows()
        _trace.rows = self.rows

    def __exit__(self, *_: object) -> None:
        _trace.rows = self.outer


def mark_rows(size: Any) -> Any:
    """Sizes as the cell reads them, with the row axis marked."""
    if isinstance(size, torch.Size):
        return torch.Size([_mark(n) for n in size])
    return _mark(size) if type(size) is int else size


def plain_sizes(value: Any) -> Any:
    """The same without marks: PyTorch's own code may compare as it likes."""
    if isinstance(value, torch.Size):
        return torch.Size([plain_sizes(n) for n in value])
    return int.__add__(value, 0) if isinstance(value, RowCount) else value


def _rows() -> int | None:
    return getattr(_trace, "rows", None)


def is_row_count(n: Any) -> bool:
    """Also of a plain one, such as `len(x)` gives."""
    rows = _rows()
    return isinstance(n, int) and bool(rows and n and int.__mod__(n, rows) == 0)


def _mark(n: int) -> int:
    return RowCount(n) if is_row_count(n) else n


def _refuse(what: str) -> CaptureError:
    return CaptureError(
        f"the step {what} the batch size, but a row must not depend on how many other rows there are: the loop drops "
        "finished rows as it goes. Write one step that fits every batch size."
    )


class RowCount(int):
    """A multiple of the batch size, of which no more is known than that it is at least one."""

    __hash__ = int.__hash__

    def __mul__(self, other: Any) -> Any:
        if isinstance(other, RowCount) and _rows():
            raise _refuse("squares")
        return _mark(int.__mul__(self, other)) if isinstance(other, int) else int.__mul__(self, other)

    __rmul__ = __mul__

    def __floordiv__(self, other: Any) -> Any:
        quotient = int.__floordiv__(self, other)
        if _rows() and int.__mod__(self, other):
            raise _refuse(f"divides by {other}")
        return quotient if isinstance(other, RowCount) else _mark(quotient)

    def __mod__(self, other: Any) -> Any:
        remainder = int.__mod__(self, other)
        if (rows := _rows()) and remainder and not (isinstance(other, int) and other % rows == 0):
            raise _refuse(f"takes modulo {other}")
        return remainder


def _comparison(name: str, known: Callable[[Any], bool]) -> Any:
    """A comparison with a number is allowed where it has one answer for all counts from one up."""
    compare = getattr(int, name)

    def method(self: RowCount, other: Any) -> Any:
        free = _rows() is None or not isinstance(other, (int, float)) or is_row_count(other)
        if free or known(other):
            return compare(self, other)
        raise _refuse(f"compares {other} with")

    return method


def _arithmetic(name: str) -> Any:
    plain = getattr(int, name)

    def method(self: RowCount, *others: Any) -> Any:
        if _rows():
            raise _refuse("computes with")
        return plain(self, *others)

    return method


_KNOWN = {"__eq__": 1, "__ne__": 1, "__gt__": 1, "__le__": 1, "__lt__": 2, "__ge__": 2}
for _name, _from in _KNOWN.items():
    setattr(RowCount, _name, _comparison(_name, lambda other, _from=_from: operator.lt(other, _from)))
for _name in (
    *("__add__", "__radd__", "__sub__", "__rsub__", "__truediv__", "__rtruediv__", "__rfloordiv__", "__rmod__"),
    *("__pow__", "__rpow__", "__neg__", "__float__", "__divmod__", "__rdivmod__", "__and__", "__or__", "__xor__"),
):
    setattr(RowCount, _name, _arithmetic(_name))
