"""The operator table: what a pass may hold, and the instructions of each. Vectors in, a vector out.

| values | lanes |
|---|---|
| real | float32 or float64, one of them in the whole program |
| whole | int64, for int32 too |
| truth | one bit |

A bfloat16 value is kept in float32: only the explicit rounding (`to_dtype`), which stands before a product's operand,
rounds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from llvmlite import ir

from throughtime.capture.graph import Node
from throughtime.loop.native import hyperbolic, vecmath
from throughtime.loop.native.ir import I32, I64, Emitter, Value

__all__ = ["ELEMENTWISE", "REDUCTIONS", "TRUTH", "apply", "combine", "convert", "identity", "scalar_type", "unfit"]

TRUTH = ir.IntType(1)
Instruction = Callable[[Emitter, list[Value], Node], Value]


@dataclass(frozen=True)
class Operator:
    """real, whole: the instructions by the sort of the operands; None where there are none.

    brings: what operands are converted to: the result's sort, their common one, truth, what they are; `where` chooses
        by truth between values of the result's sort.
    """

    real: Instruction | None
    whole: Instruction | None = None
    brings: Literal["result", "common", "truth", "itself", "choice"] = "result"


def apply(e: Emitter, element: ir.Type, node: Node, operands: Sequence[Value | float], lanes: int) -> Value:
    """The node's value, lane by lane. Operands that are numbers stand for vectors."""
    operator = ELEMENTWISE[node.op]
    types = _operand_types(operator, element, node, operands)
    values = [convert(e, value, type_, lanes) for value, type_ in zip(operands, types)]
    is_whole = operator.whole is not None and any(_element_of(v) == I64 for v in values)
    write = operator.whole if is_whole else operator.real
    assert write is not None, f"'{node.op}' was taken into a pass without instructions for it"
    return write(e, values, node)


def unfit(node: Node, dtypes: Sequence[torch.dtype]) -> str | None:
    """What a pass cannot compute an elementwise node on, if anything. dtypes: of the operands that are values."""
    operator = ELEMENTWISE[node.op]
    sorts = {_sort(node.dtype)} if operator.brings == "result" else {_sort(dtype) for dtype in dtypes}
    if "real" in sorts and operator.real is None:
        return "fractions"
    if sorts == {"whole"} and operator.whole is None:
        return "whole numbers"
    return "truth values" if sorts == {"truth"} and operator.brings == "result" and node.op != "to_dtype" else None


def scalar_type(dtype: torch.dtype, element: ir.Type) -> ir.Type:
    return {"truth": TRUTH, "whole": I64, "real": element}[_sort(dtype)]


def _sort(dtype: torch.dtype) -> str:
    if dtype == torch.bool:
        return "truth"
    return "real" if dtype.is_floating_point else "whole"


def _operand_types(
    operator: Operator, element: ir.Type, node: Node, operands: Sequence[Value | float]
) -> list[ir.Type]:
    own = scalar_type(node.dtype, element)
    if operator.brings == "choice":
        return [TRUTH, own, own]
    if operator.brings == "truth":
        return [TRUTH] * len(operands)
    if operator.brings == "itself":
        return [own if isinstance(operands[0], (int, float)) else _element_of(operands[0])]
    if operator.brings == "common":
        own = _common(element, operands)
    return [own] * len(operands)


def _common(element: ir.Type, operands: Sequence[Value | float]) -> ir.Type:
    """A whole number stands for a real one beside real ones; a fraction makes all real."""
    values = [o for o in operands if not isinstance(o, (int, float))]
    fractions = [o for o in operands if isinstance(o, float) and not o.is_integer()]
    return element if fractions or any(_element_of(v) == element for v in values) else I64


def _element_of(value: Value) -> ir.Type:
    return value.type.element


def convert(e: Emitter, value: Value | float, to: ir.Type, lanes: int) -> Value:
    """A vector of another sort: truth is 1 or 0, what is not 0 is true, fractions are cut off."""
    vector = ir.VectorType(to, lanes)
    if isinstance(value, (int, float)):
        number = float(value) if to not in (TRUTH, I64) else int(value)
        return ir.Constant(vector, [number] * lanes)
    source = _element_of(value)
    if source == to:
        return value
    if to == TRUTH:
        zero = ir.Constant(value.type, None)
        return e.b.icmp_signed("!=", value, zero) if source == I64 else e.b.fcmp_unordered("!=", value, zero)
    if source == TRUTH:
        return e.b.zext(value, vector) if to == I64 else e.b.uitofp(value, vector)
    return e.b.fptosi(value, vector) if to == I64 else e.b.sitofp(value, vector)


# --- reductions

REDUCTIONS: dict[str, float] = {"sum": 0.0, "amax": float("-inf"), "amin": float("inf"), "prod": 1.0}
"""What each begins with."""
_STEPS = {"sum": "add", "prod": "mul", "amax": "maximum", "amin": "minimum"}
_LEAST, _MOST = -(2**63), 2**63 - 1


def identity(op: str, type_: ir.Type) -> float:
    if type_ == I64 and op in ("amax", "amin"):
        return _LEAST if op == "amax" else _MOST
    return REDUCTIONS[op]


def combine(e: Emitter, node: Node, a: Value, b: Value) -> Value:
    """One step of a reduction."""
    operator = ELEMENTWISE[_STEPS[node.op]]
    write = operator.whole if _element_of(a) == I64 else operator.real
    assert write is not None
    return write(e, [a, b], node)


# --- instructions


def _builder(instruction: str) -> Instruction:
    return lambda e, args, node: getattr(e.b, instruction)(*args)


def _function(name: str) -> Instruction:
    return lambda e, args, node: vecmath.emit(name, e.b, *args)


def _one(write: Callable[[Emitter, Value], Value]) -> Instruction:
    return lambda e, args, node: write(e, args[0])


def _full(like: Value, number: float) -> ir.Constant:
    return ir.Constant(like.type, [number] * like.type.count)


def _extremum(sign: str) -> Instruction:
    """NaN wins, as in PyTorch."""

    def write(e: Emitter, args: list[Value], node: Node) -> Value:
        a, b = args
        chosen = e.b.select(e.b.fcmp_ordered(sign, a, b), a, b)
        return e.b.select(e.b.fcmp_unordered("!=", a, a), a, chosen)

    return write


def _whole_extremum(sign: str) -> Instruction:
    return lambda e, args, node: e.b.select(e.b.icmp_signed(sign, *args), *args)


def _comparison(sign: str) -> Operator:
    def of_reals(e: Emitter, args: list[Value], node: Node) -> Value:
        return e.b.fcmp_unordered(sign, *args) if sign == "!=" else e.b.fcmp_ordered(sign, *args)

    return Operator(of_reals, lambda e, args, node: e.b.icmp_signed(sign, *args), "common")


def _logical(instruction: str) -> Operator:
    return Operator(_builder(instruction), None, "truth")


def _not(e: Emitter, args: list[Value], node: Node) -> Value:
    return e.b.xor(args[0], _full(args[0], 1))


def _whole_not(e: Emitter, args: list[Value], node: Node) -> Value:
    return e.b.xor(args[0], _full(args[0], -1))


def _where(e: Emitter, args: list[Value], node: Node) -> Value:
    return e.b.select(*args)


def _negate(e: Emitter, args: list[Value], node: Node) -> Value:
    return e.b.fneg(args[0])


def _whole_negate(e: Emitter, args: list[Value], node: Node) -> Value:
    return e.b.sub(_full(args[0], 0), args[0])


def _whole_abs(e: Emitter, args: list[Value], node: Node) -> Value:
    return _whole_extremum(">")(e, [args[0], _whole_negate(e, args, node)], node)


def _relu(e: Emitter, args: list[Value], node: Node) -> Value:
    return _extremum(">")(e, [args[0], _full(args[0], 0.0)], node)


def _whole_relu(e: Emitter, args: list[Value], node: Node) -> Value:
    return _whole_extremum(">")(e, [args[0], _full(args[0], 0)], node)


def _reciprocal(e: Emitter, args: list[Value], node: Node) -> Value:
    return e.b.fdiv(_full(args[0], 1.0), args[0])


def _sign(e: Emitter, args: list[Value], node: Node) -> Value:
    """0 for NaN, as in PyTorch."""
    x, zero = args[0], _full(args[0], 0.0)
    negative = e.b.select(e.b.fcmp_ordered("<", x, zero), _full(x, -1.0), zero)
    return e.b.select(e.b.fcmp_ordered(">", x, zero), _full(x, 1.0), negative)


def _whole_sign(e: Emitter, args: list[Value], node: Node) -> Value:
    least = _whole_extremum("<")(e, [args[0], _full(args[0], 1)], node)
    return _whole_extremum(">")(e, [least, _full(args[0], -1)], node)


def _is_nan(e: Emitter, args: list[Value], node: Node) -> Value:
    return e.b.fcmp_unordered("uno", args[0], args[0])


def _is_infinite(e: Emitter, args: list[Value], node: Node) -> Value:
    return e.b.fcmp_ordered("==", vecmath.emit("abs", e.b, args[0]), _full(args[0], float("inf")))


def _divisor(e: Emitter, b: Value) -> Value:
    """A division of whole numbers by 0 would stop the process: it is one by 1."""
    return e.b.select(e.b.icmp_signed("==", b, _full(b, 0)), _full(b, 1), b)


def _trunc_divide(e: Emitter, args: list[Value], node: Node) -> Value:
    return e.b.sdiv(args[0], _divisor(e, args[1]))


def _whole_fmod(e: Emitter, args: list[Value], node: Node) -> Value:
    return e.b.srem(args[0], _divisor(e, args[1]))


def _whole_remainder(e: Emitter, args: list[Value], node: Node) -> Value:
    """With the divisor's sign."""
    b, rest = _divisor(e, args[1]), _whole_fmod(e, args, node)
    zero = _full(b, 0)
    off = e.b.and_(e.b.icmp_signed("<", e.b.xor(rest, b), zero), e.b.icmp_signed("!=", rest, zero))
    return e.b.select(off, e.b.add(rest, b), rest)


def _remainder(e: Emitter, args: list[Value], node: Node) -> Value:
    """With the divisor's sign; exact, as fmod is."""
    b, rest = args[1], e.b.frem(*args)
    zero = _full(b, 0.0)
    wrong = e.b.xor(e.b.fcmp_ordered("<", rest, zero), e.b.fcmp_ordered("<", b, zero))
    off = e.b.and_(wrong, e.b.fcmp_unordered("!=", rest, zero))
    return e.b.select(off, e.b.fadd(rest, b), rest)


def _floor_divide(e: Emitter, args: list[Value], node: Node) -> Value:
    return e.b.sdiv(e.b.sub(args[0], _whole_remainder(e, args, node)), _divisor(e, args[1]))


def _power(e: Emitter, args: list[Value], node: Node) -> Value:
    """Small exponents as PyTorch has them, by multiplication."""
    base, exponent = args[0], node.args[1]
    if exponent in (2, -2):
        square = e.b.fmul(base, base)
        return square if exponent == 2 else _reciprocal(e, [square], node)
    if exponent == 3:
        return e.b.fmul(e.b.fmul(base, base), base)
    if exponent == -1:
        return _reciprocal(e, [base], node)
    if exponent in (0.5, -0.5):
        return vecmath.emit("sqrt" if exponent == 0.5 else "rsqrt", e.b, base)
    return base if exponent == 1 else vecmath.emit("pow", e.b, *args)


def _scaled(name: str, factor: float) -> Instruction:
    return lambda e, args, node: e.b.fmul(vecmath.emit(name, e.b, args[0]), _full(args[0], factor))


def _fextremum(sign: str) -> Instruction:
    """A number wins over NaN."""

    def write(e: Emitter, args: list[Value], node: Node) -> Value:
        a, b = args
        chosen = e.b.select(e.b.fcmp_ordered(sign, a, b), a, b)
        chosen = e.b.select(e.b.fcmp_unordered("uno", a, a), b, chosen)
        return e.b.select(e.b.fcmp_unordered("uno", b, b), a, chosen)

    return write


def _hypot(e: Emitter, args: list[Value], node: Node) -> Value:
    """larger * sqrt(1 + (smaller / larger)^2), so that no square overflows."""
    a, b = (vecmath.emit("abs", e.b, x) for x in args)
    larger, smaller = _extremum(">")(e, [a, b], node), _extremum("<")(e, [a, b], node)
    one, zero, infinity = (_full(a, x) for x in (1.0, 0.0, float("inf")))
    ratio = e.b.select(e.b.fcmp_ordered("==", larger, zero), zero, e.b.fdiv(smaller, larger))
    found = e.b.fmul(larger, vecmath.emit("sqrt", e.b, e.b.fadd(one, e.b.fmul(ratio, ratio))))
    return e.b.select(e.b.fcmp_ordered("==", larger, infinity), infinity, found)


def _exp2(e: Emitter, args: list[Value], node: Node) -> Value:
    return vecmath.emit("pow", e.b, _full(args[0], 2.0), args[0])


def _tan(e: Emitter, args: list[Value], node: Node) -> Value:
    return e.b.fdiv(vecmath.emit("sin", e.b, args[0]), vecmath.emit("cos", e.b, args[0]))


def _across(e: Emitter, x: Value) -> Value:
    """sqrt(1 - x^2), exact near 1 and -1."""
    one = _full(x, 1.0)
    return vecmath.emit("sqrt", e.b, e.b.fmul(e.b.fsub(one, x), e.b.fadd(one, x)))


def _asin(e: Emitter, args: list[Value], node: Node) -> Value:
    return vecmath.emit("atan2", e.b, args[0], _across(e, args[0]))


def _acos(e: Emitter, args: list[Value], node: Node) -> Value:
    return vecmath.emit("atan2", e.b, _across(e, args[0]), args[0])


def _to_dtype(e: Emitter, args: list[Value], node: Node) -> Value:
    return _round_to_bfloat16(e, args[0]) if node.dtype == torch.bfloat16 else args[0]


def _round_to_bfloat16(e: Emitter, value: Value) -> Value:
    """To the nearest, halves to even; NaN stays NaN, with a low half of zeros too."""
    integers = ir.VectorType(I32, value.type.count)

    def of(number: int) -> ir.Constant:
        return ir.Constant(integers, [number] * value.type.count)

    bits = e.b.bitcast(value, integers)
    odd = e.b.and_(e.b.lshr(bits, of(16)), of(1))
    rounded = e.b.and_(e.b.add(bits, e.b.add(odd, of(0x7FFF))), of(0xFFFF0000))
    return e.b.bitcast(e.b.select(e.b.fcmp_unordered("uno", value, value), of(0x7FC00000), rounded), value.type)


def _copy(e: Emitter, args: list[Value], node: Node) -> Value:
    return args[0]


ELEMENTWISE: dict[str, Operator] = {
    "abs": Operator(_function("abs"), _whole_abs),
    "acos": Operator(_acos),
    "acosh": Operator(_one(hyperbolic.acosh)),
    "add": Operator(_builder("fadd"), _builder("add")),
    "asin": Operator(_asin),
    "asinh": Operator(_one(hyperbolic.asinh)),
    "atan": Operator(_function("atan")),
    "atan2": Operator(_function("atan2")),
    "atanh": Operator(_one(hyperbolic.atanh)),
    "bitwise_and": Operator(None, _builder("and_")),
    "bitwise_not": Operator(None, _whole_not),
    "bitwise_or": Operator(None, _builder("or_")),
    "bitwise_xor": Operator(None, _builder("xor")),
    "ceil": Operator(_function("ceil")),
    "copy": Operator(_copy, _copy, "itself"),
    "cos": Operator(_function("cos")),
    "cosh": Operator(_one(hyperbolic.cosh)),
    "div": Operator(_builder("fdiv")),
    "eq": _comparison("=="),
    "erf": Operator(_function("erf")),
    "erfc": Operator(_function("erfc")),
    "exp": Operator(_function("exp")),
    "exp2": Operator(_exp2),
    "expm1": Operator(_function("expm1")),
    "floor": Operator(_function("floor")),
    "floor_divide": Operator(None, _floor_divide),
    "fmax": Operator(_fextremum(">"), _whole_extremum(">")),
    "fmin": Operator(_fextremum("<"), _whole_extremum("<")),
    "fmod": Operator(_builder("frem"), _whole_fmod),
    "ge": _comparison(">="),
    "gt": _comparison(">"),
    "hypot": Operator(_hypot),
    "isinf": Operator(_is_infinite, None, "itself"),
    "isnan": Operator(_is_nan, None, "itself"),
    "le": _comparison("<="),
    "log": Operator(_function("log")),
    "log10": Operator(_scaled("log", 0.43429448190325182765)),
    "log1p": Operator(_function("log1p")),
    "log2": Operator(_scaled("log", 1.44269504088896340736)),
    "logical_and": _logical("and_"),
    "logical_not": Operator(_not, None, "truth"),
    "logical_or": _logical("or_"),
    "logical_xor": _logical("xor"),
    "lt": _comparison("<"),
    "maximum": Operator(_extremum(">"), _whole_extremum(">")),
    "minimum": Operator(_extremum("<"), _whole_extremum("<")),
    "mul": Operator(_builder("fmul"), _builder("mul")),
    "ne": _comparison("!="),
    "neg": Operator(_negate, _whole_negate),
    "pow": Operator(_power),
    "reciprocal": Operator(_reciprocal),
    "relu": Operator(_relu, _whole_relu),
    "remainder": Operator(_remainder, _whole_remainder),
    "round": Operator(_function("round")),
    "rsqrt": Operator(_function("rsqrt")),
    "sigmoid": Operator(_function("sigmoid")),
    "sign": Operator(_sign, _whole_sign),
    "sin": Operator(_function("sin")),
    "sinh": Operator(_one(hyperbolic.sinh)),
    "sqrt": Operator(_function("sqrt")),
    "sub": Operator(_builder("fsub"), _builder("sub")),
    "tan": Operator(_tan),
    "tanh": Operator(_function("tanh")),
    "to_dtype": Operator(_to_dtype, _copy),
    "trunc": Operator(_function("trunc")),
    "trunc_divide": Operator(None, _trunc_divide),
    "where": Operator(_where, _where, "choice"),
}
