"""Elementwise operators on known numbers -> numbers; operators that change nothing -> their operand."""

from collections.abc import Sequence
from typing import Any

import torch

from throughtime.capture.builder import Builder, Operand
from throughtime.capture.graph import Ref, Shape

__all__ = ["fold", "simplify"]


def fold(op: str, numbers: Sequence[Any], dtype: torch.dtype) -> Any:
    """The operator on one number each, computed in `dtype`."""
    dtypes = [torch.bool if op == "where" and i == 0 else dtype for i in range(len(numbers))]
    tensors = [torch.tensor(n, dtype=d, device="cpu") for n, d in zip(numbers, dtypes)]
    return getattr(torch.ops.aten, op)(*tensors).item()


def simplify(b: Builder, op: str, args: tuple[Operand, ...], shape: Shape, dtype: torch.dtype, backward: bool) -> Any:
    """The value without the operator, or None."""
    if op == "pow":
        return _power(b, args, shape, dtype)
    if op == "where":
        return _chosen(b, args, shape)
    if op not in ("add", "sub", "mul", "div") or len(args) != 2:
        return None
    a, second = args
    if op == "add" and isinstance(a, Ref) and isinstance(second, Ref) and (merged := _added_apart(b, a, second)):
        return merged
    for x, number in ((a, second), (second, a)) if op in ("add", "mul") else ((a, second),):
        if isinstance(number, Ref) or not isinstance(x, Ref):
            continue
        if number == (0 if op in ("add", "sub") else 1) and b.shape(x) == shape:
            return x
        # In a gradient a zero comes from a path that is cut, and must stay zero whatever it meets, NaN included.
        if op == "mul" and number == 0 and backward:
            return b.full(shape, 0, dtype)
    return None


def _power(b: Builder, args: tuple[Operand, ...], shape: Shape, dtype: torch.dtype) -> Ref | None:
    x, exponent = args
    if not isinstance(x, Ref) or isinstance(exponent, Ref) or b.shape(x) != shape:
        return None
    if exponent in (1, 2, 3):
        power = x
        for _ in range(int(exponent) - 1):
            power = b.emit("mul", (power, x), shape, dtype)
        return power
    if not dtype.is_floating_point:
        return None
    root = {0.5: "sqrt", -0.5: "rsqrt", -1: "reciprocal"}.get(exponent)
    return b.emit(root, (x,), shape, dtype) if root else None


def _chosen(b: Builder, args: tuple[Operand, ...], shape: Shape) -> Ref | None:
    condition, yes, no = args
    number = b.number(condition)
    if number is None:
        return None
    chosen = yes if number else no
    return chosen if isinstance(chosen, Ref) and b.shape(chosen) == shape else None


def _added_apart(b: Builder, left: Ref, right: Ref) -> Ref | None:
    """Before: cat([a, 0]) + cat([0, b])      the gradients of the parts of a value
    After:  cat([a, b])
    """
    one, two = b.made_by(left, "cat"), b.made_by(right, "cat")
    if one is None or two is None or one.kwargs != two.kwargs or one.shape != two.shape:
        return None
    dim = one.attributes["dim"]
    pieces = sorted(_pieces(b, one.args, dim) + _pieces(b, two.args, dim), key=lambda piece: piece[0])
    parts: list[Ref] = []
    offset = 0
    for start, end, part in [*pieces, (int(one.shape[dim]), int(one.shape[dim]), None)]:
        if start < offset:
            return None
        if start > offset:
            gap = (*one.shape[:dim], start - offset, *one.shape[dim + 1 :])
            parts.append(b.full(gap, 0, one.dtype))
        if part is not None:
            parts.append(part)
        offset = end
    return b.cat(parts, dim)


def _pieces(b: Builder, parts: Sequence[Ref], dim: int) -> list[tuple[int, int, Ref | None]]:
    """(start, end, part) of those that are not zero."""
    found: list[tuple[int, int, Ref | None]] = []
    offset = 0
    for part in parts:
        end = offset + int(b.shape(part)[dim])
        if b.number(part) != 0:
            found.append((offset, end, part))
        offset = end
    return found
