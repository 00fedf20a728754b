"""Arithmetic, comparisons, functions of one number, choices, conversions."""

from functools import reduce
from typing import Any

import torch

from throughtime.capture.rules.table import RULES, rule
from throughtime.capture.tape import Call
from throughtime.capture.values import Value, Values

__all__ = ["truth"]

_ONE = """
    neg tanh sigmoid relu exp expm1 exp2 log log1p log2 log10 sqrt rsqrt reciprocal erf erfc erfinv sin cos tan asin
    acos atan sinh cosh asinh acosh atanh abs sign sgn floor ceil trunc isnan isinf lgamma digamma
"""
_TWO = "maximum minimum atan2 fmod remainder hypot copysign nextafter fmax fmin"
_COMPARE = "eq ne lt le gt ge"
_LOGICAL = "logical_and logical_or logical_xor"
_BITWISE = {"bitwise_and": "logical_and", "bitwise_or": "logical_or", "bitwise_xor": "logical_xor"}


def _unary(op: str) -> Any:
    def apply(v: Values, call: Call, x: Value) -> Value:
        whole = op in ("floor", "ceil", "trunc") and not x.dtype.is_floating_point
        if whole or (op in ("isnan", "isinf") and not x.dtype.is_floating_point):
            return x if whole else v.full(x.sizes, False, torch.bool)
        within = x.dtype if op in ("isnan", "isinf") else call.result.dtype
        return v.pointwise("sign" if op == "sgn" else op, x, dtype=call.result.dtype, within=within)

    return apply


def _binary(op: str) -> Any:
    def apply(v: Values, call: Call, a: Any, b: Any) -> Value:
        return v.pointwise(op, a, b, dtype=call.result.dtype)

    return apply


def _comparison(op: str) -> Any:
    def apply(v: Values, call: Call, a: Any, b: Any) -> Value:
        return v.pointwise(op, a, b, dtype=torch.bool, within=_common_dtype(call.args))

    return apply


def _logical(op: str) -> Any:
    def apply(v: Values, call: Call, a: Any, b: Any) -> Value:
        return v.pointwise(op, *(truth(v, x) for x in (a, b)), dtype=torch.bool)

    return apply


def _bitwise(op: str, on_truth: str) -> Any:
    def apply(v: Values, call: Call, a: Any, b: Any) -> Value:
        is_truth = call.result.dtype == torch.bool
        return v.pointwise(on_truth if is_truth else op, a, b, dtype=call.result.dtype)

    return apply


def _fill_table() -> None:
    for op in _ONE.split():
        RULES[op] = _unary(op)
    for op in _TWO.split():
        RULES[op] = _binary(op)
    for op in _COMPARE.split():
        RULES[op] = _comparison(op)
    for op in _LOGICAL.split():
        RULES[op] = _logical(op)
    for op, on_truth in _BITWISE.items():
        RULES[op] = _bitwise(op, on_truth)


_fill_table()


def truth(v: Values, x: Any) -> Any:
    if not isinstance(x, Value) or x.dtype == torch.bool:
        return x
    return v.pointwise("ne", x, 0, dtype=torch.bool, within=x.dtype)


def _common_dtype(args: Any) -> torch.dtype:
    """The dtype in which a comparison is made."""
    dtypes = [a.dtype for a in args if isinstance(a, torch.Tensor)]
    if all(d == dtypes[0] for d in dtypes) and dtypes[0].is_floating_point:
        return dtypes[0]
    return reduce(torch.promote_types, dtypes) if len(dtypes) == len(args) else torch.result_type(args[0], args[1])


@rule("logical_not")
def _logical_not(v: Values, call: Call, x: Value) -> Value:
    return v.pointwise("logical_not", truth(v, x), dtype=torch.bool)


@rule("bitwise_not")
def _bitwise_not(v: Values, call: Call, x: Value) -> Value:
    return v.pointwise("logical_not" if x.dtype == torch.bool else "bitwise_not", x, dtype=x.dtype)


@rule("isposinf", "isneginf")
def _is_infinite(v: Values, call: Call, x: Value) -> Value:
    infinity = float("inf") if call.name == "isposinf" else -float("inf")
    within = x.dtype if x.dtype.is_floating_point else torch.float32
    return v.pointwise("eq", x, infinity, dtype=torch.bool, within=within)


@rule("round")
def _round(v: Values, call: Call, x: Value, decimals: int = 0) -> Value:
    """In units of 10 ** -decimals, computed as PyTorch does."""
    if not x.dtype.is_floating_point:
        return x
    enter, leave = ("mul", "div") if decimals > 0 else ("div", "mul")
    units = x if decimals == 0 else v.pointwise(enter, x, 10.0 ** abs(decimals), dtype=x.dtype)
    whole = v.pointwise("round", units, dtype=x.dtype)
    return whole if decimals == 0 else v.pointwise(leave, whole, 10.0 ** abs(decimals), dtype=x.dtype)


@rule("square")
def _square(v: Values, call: Call, x: Value) -> Value:
    return v.pointwise("mul", x, x, dtype=call.result.dtype)


@rule("add", "_foreach_add")
def _add(v: Values, call: Call, a: Any, b: Any, alpha: Any = 1) -> Value:
    return _add_scaled(v, call, "add", a, b, alpha)


@rule("sub")
def _sub(v: Values, call: Call, a: Any, b: Any, alpha: Any = 1) -> Value:
    return _add_scaled(v, call, "sub", a, b, alpha)


@rule("rsub")
def _rsub(v: Values, call: Call, a: Any, b: Any, alpha: Any = 1) -> Value:
    return _add_scaled(v, call, "sub", b, _scaled(v, call, a, alpha), 1)


def _add_scaled(v: Values, call: Call, op: str, a: Any, b: Any, alpha: Any) -> Value:
    dtype = call.result.dtype
    if dtype == torch.bool:
        return v.pointwise("logical_or", a, b, dtype=dtype)
    return v.pointwise(op, a, _scaled(v, call, b, alpha), dtype=dtype)


def _scaled(v: Values, call: Call, x: Any, alpha: Any) -> Any:
    if alpha == 1:
        return x
    return v.pointwise("mul", x, alpha, dtype=call.result.dtype) if isinstance(x, Value) else v.plain(x) * alpha


@rule("mul")
def _mul(v: Values, call: Call, a: Any, b: Any) -> Value:
    dtype = call.result.dtype
    return v.pointwise("logical_and" if dtype == torch.bool else "mul", a, b, dtype=dtype)


@rule("div")
def _div(v: Values, call: Call, a: Any, b: Any, rounding_mode: str | None = None) -> Value:
    dtype = call.result.dtype
    if rounding_mode is None or dtype.is_floating_point:
        quotient = v.pointwise("div", a, b, dtype=dtype)
        return v.pointwise(rounding_mode, quotient, dtype=dtype) if rounding_mode else quotient
    return v.pointwise({"floor": "floor_divide", "trunc": "trunc_divide"}[rounding_mode], a, b, dtype=dtype)


@rule("pow")
def _pow(v: Values, call: Call, a: Any, b: Any) -> Value:
    if v.number(b) == 0 and isinstance(a, Value):
        return v.full(a.sizes, 1, call.result.dtype)
    return v.pointwise("pow", a, b, dtype=call.result.dtype)


@rule("where")
def _where(v: Values, call: Call, condition: Value, a: Any, b: Any) -> Value:
    return v.pointwise("where", truth(v, condition), a, b, dtype=call.result.dtype)


@rule("masked_fill")
def _masked_fill(v: Values, call: Call, x: Value, mask: Value, value: Any) -> Value:
    return v.pointwise("where", truth(v, mask), value, x, dtype=call.result.dtype)


@rule("clamp")
def _clamp(v: Values, call: Call, x: Value, min: Any = None, max: Any = None) -> Value:
    dtype = call.result.dtype
    x = x if min is None else v.pointwise("maximum", x, min, dtype=dtype)
    return x if max is None else v.pointwise("minimum", x, max, dtype=dtype)


@rule("clamp_min")
def _clamp_min(v: Values, call: Call, x: Value, min: Any) -> Value:
    return _clamp(v, call, x, min)


@rule("clamp_max")
def _clamp_max(v: Values, call: Call, x: Value, max: Any) -> Value:
    return _clamp(v, call, x, None, max)


@rule("_to_copy", "to", "prims::convert_element_type")
def _to_copy(v: Values, call: Call, x: Value, *_: Any, **__: Any) -> Value:
    return v.cast(x, call.result.dtype)


@rule("detach", "alias", "clone", "contiguous", "lift", "positive", "_lazy_clone", "prims::copy_strided")
def _same(v: Values, call: Call, x: Value, *_: Any, **__: Any) -> Value:
    return x


@rule("copy")
def _copy(v: Values, call: Call, old: Value, new: Value, non_blocking: bool = False) -> Value:
    return v.expand(v.cast(new, old.dtype), old.sizes)
