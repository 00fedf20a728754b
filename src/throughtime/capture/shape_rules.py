"""The shapes of results, for what most steps are made of.

PyTorch has rules for all operators. They are written in Python, and the first that is used imports PyTorch's whole
compiler, which takes longer than everything that is done here.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["META", "empty_like", "shape_of_result"]

aten = torch.ops.aten

META = torch.device("meta")

_TRUTHS = frozenset(
    {aten.eq, aten.ne, aten.lt, aten.le, aten.gt, aten.ge, aten.isnan, aten.isinf, aten.isfinite, aten.isneginf}
    | {aten.isposinf, aten.signbit, aten.logical_not, aten.logical_and, aten.logical_or, aten.logical_xor}
)
_OTHERWISE = ("__", "bitwise_", "gcd", "lcm", "equal", "float_power", "conj", "positive", "rrelu")
"""How the names begin of operators that take or make something else, or may return their operand."""


def empty_like(tensor: Tensor, sizes: Sequence[int] | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """A shape for the tensor, or for one of other sizes. Foreign code that reads its memory gets an exception."""
    dtype = tensor.dtype if dtype is None else dtype
    if sizes is None:
        made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype, device=META)
    else:
        made = torch.empty(sizes, dtype=dtype, device=META)
    torch._C._set_throw_on_mutable_data_ptr(made)
    return made


def shape_of_result(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """None where PyTorch's own rule must answer, and where the arguments do not fit."""
    if func.overloadpacket in (aten.rand_like, aten.randn_like):
        return _drawn_like(*args, **kwargs)
    rule = _RULES.get(func.overloadpacket)
    if rule is not None:
        return None if kwargs else rule(*args)
    schema = func._schema
    if torch.Tag.pointwise not in func.tags or schema.is_mutable or len(schema.returns) != 1 or set(kwargs) - {"alpha"}:
        return None
    if func.overloadpacket.__name__.startswith(_OTHERWISE):
        return None
    return _truths(args) if func.overloadpacket in _TRUTHS else _pointwise(args)


def _pointwise(args: Sequence[Any]) -> Tensor | None:
    """A result of the operands' dtype."""
    tensors = [a for a in args if isinstance(a, Tensor)]
    sizes = _broadcast(tensors)
    if len({t.dtype for t in tensors}) != 1 or not tensors[0].is_floating_point() or sizes is None:
        return None
    return empty_like(tensors[0], sizes)


def _truths(args: Sequence[Any]) -> Tensor | None:
    tensors = [a for a in args if isinstance(a, Tensor)]
    sizes = None if any(t.is_complex() for t in tensors) else _broadcast(tensors)
    return None if sizes is None else empty_like(tensors[0], sizes, torch.bool)


def _where(condition: Tensor, *args: Any) -> Tensor | None:
    numbers = len(args) == 2 and all(isinstance(a, Tensor) for a in args)
    made = _pointwise(args) if numbers and condition.dtype == torch.bool else None
    sizes = None if made is None else _broadcast([condition, made])
    return None if made is None or sizes is None else empty_like(made, sizes)


def _broadcast(tensors: Sequence[Tensor]) -> list[int] | None:
    sizes: list[int] = []
    for tensor in tensors:
        if not _is_in_order(tensor):
            return None
        missing = len(sizes) - tensor.dim()
        here, sizes = [1] * missing + list(tensor.shape), [1] * -missing + sizes
        if any(a != b and 1 not in (a, b) for a, b in zip(sizes, here, strict=True)):
            return None
        sizes = [b if a == 1 else a for a, b in zip(sizes, here, strict=True)]
    return sizes


def _is_in_order(tensor: Tensor) -> bool:
    """Whether the entries lie one row after the other; the result's then do too."""
    strides = [step for size, step in zip(tensor.shape, tensor.stride(), strict=True) if size > 1 and step > 0]
    return strides == sorted(strides, reverse=True)


def _like_first(x: Tensor, *_: Any) -> Tensor | None:
    return empty_like(x, x.shape) if _is_in_order(x) and x.is_floating_point() else None


def _drawn_like(x: Tensor, dtype: Any = None, memory_format: Any = None, **_: Any) -> Tensor | None:
    return _like_first(x) if dtype in (None, x.dtype) and memory_format in (None, torch.preserve_format) else None


def _softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor | None:
    return None if half_to_float or not -x.dim() <= dim < x.dim() else _like_first(x)


def _dropout(x: Tensor, p: float, train: bool | None) -> tuple[Tensor, Tensor] | None:
    dropped = _like_first(x)
    return None if dropped is None or train is False else (dropped, empty_like(dropped, dtype=torch.bool))


def _dropout_backward(d_y: Tensor, keep: Tensor, scale: float) -> Tensor | None:
    return _like_first(d_y) if d_y.shape == keep.shape else None


def _product(dims: int) -> Callable[[Tensor, Tensor], Tensor | None]:
    def shape(a: Tensor, b: Tensor) -> Tensor | None:
        if a.dtype != b.dtype or not a.dim() == b.dim() == dims:
            return None
        fits = a.shape[:-2] == b.shape[:-2] and a.shape[-1] == b.shape[-2]
        return empty_like(a, (*a.shape[:-1], b.shape[-1])) if fits else None

    return shape


def _reduced(x: Tensor, dims: Sequence[int] | None = None, keepdim: bool = False) -> Tensor | None:
    if not dims or not x.is_floating_point() or any(not -x.dim() <= d < x.dim() for d in dims):
        return None
    gone = {d % x.dim() for d in dims}
    sizes = [1 if d in gone else n for d, n in enumerate(x.shape) if keepdim or d not in gone]
    return empty_like(x, sizes) if len(gone) == len(dims) else None


def _cat(parts: Sequence[Tensor], dim: int = 0) -> Tensor | None:
    first = parts[0]
    if not -first.dim() <= dim < first.dim():
        return None
    axis = dim % first.dim()
    kinds = {(t.dtype, t.shape[:axis], t.shape[axis + 1 :], t.dim()) for t in parts}
    if len(kinds) > 1 or not all(map(_is_in_order, parts)):
        return None
    joined = sum(t.shape[axis] for t in parts)
    return empty_like(first, (*first.shape[:axis], joined, *first.shape[axis + 1 :]))


def _stack(parts: Sequence[Tensor], dim: int = 0) -> Tensor | None:
    first = parts[0]
    alike = {(t.dtype, t.shape) for t in parts}
    if len(alike) > 1 or not all(map(_is_in_order, parts)) or not -first.dim() - 1 <= dim <= first.dim():
        return None
    axis = dim % (first.dim() + 1)
    return empty_like(first, (*first.shape[:axis], len(parts), *first.shape[axis:]))


def _masked_fill(x: Tensor, mask: Tensor, value: Any) -> Tensor | None:
    is_number = not isinstance(value, Tensor) or value.dim() == 0
    return _where(mask, x, x) if is_number and _broadcast([x, mask]) == list(x.shape) else None


def _along(x: Tensor, dim: int) -> Tensor | None:
    return _like_first(x) if -x.dim() <= dim < x.dim() else None


def _mv(a: Tensor, v: Tensor) -> Tensor | None:
    fits = a.dtype == v.dtype and (a.dim(), v.dim()) == (2, 1) and a.shape[1] == v.shape[0]
    return empty_like(a, a.shape[:1]) if fits else None


def _embedding(table: Tensor, ids: Tensor, *_: Any) -> Tensor | None:
    return empty_like(table, (*ids.shape, table.shape[1])) if table.dim() == 2 and not ids.is_floating_point() else None


_RULES: dict[Any, Callable[..., Any]] = {
    aten.where: _where,
    aten._softmax: _softmax,
    aten._log_softmax: _softmax,
    aten.native_dropout: _dropout,
    aten.native_dropout_backward: _dropout_backward,
    aten.mm: _product(2),
    aten.bmm: _product(3),
    aten.sum: _reduced,
    aten.amax: _reduced,
    aten.amin: _reduced,
    aten.cat: _cat,
    aten.stack: _stack,
    aten.masked_fill: _masked_fill,
    aten.cumsum: _along,
    aten.mv: _mv,
    aten.embedding: _embedding,
}
