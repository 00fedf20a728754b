"""The operator table: what a pass may hold, and the instructions of each. Vectors in, a vector out.

Numbers are float32 or float64; truth values are vectors of one bit. A bfloat16 value is kept in float32: only the
explicit rounding (`to_dtype`), which stands before a product's operand, rounds.
"""

from collections.abc import Callable
from typing import Any

import torch
from llvmlite import ir

from throughtime.capture.graph import Node
from throughtime.loop.native import vecmath
from throughtime.loop.native.ir import I32, Emitter, Value

__all__ = ["ELEMENTWISE", "REDUCTIONS", "apply", "combine", "identity", "is_boolean"]

Instruction = Callable[[Emitter, list[Value], Node], Value]

REDUCTIONS = frozenset({"sum", "amax", "amin"})


def apply(e: Emitter, node: Node, operands: list[Value]) -> Value:
    """The node's value, lane by lane."""
    return ELEMENTWISE[node.op](e, operands, node)


def is_boolean(value: Value) -> bool:
    return value.type.element == ir.IntType(1)


def combine(e: Emitter, op: str, a: Value, b: Value) -> Value:
    """One step of a reduction."""
    if op == "sum":
        return e.b.fadd(a, b)
    return _extremum("maximum" if op == "amax" else "minimum")(e, [a, b], None)


def identity(op: str) -> float:
    return {"sum": 0.0, "amax": float("-inf"), "amin": float("inf")}[op]


def _arithmetic(instruction: str) -> Instruction:
    return lambda e, args, node: getattr(e.b, instruction)(*args)


def _function(name: str) -> Instruction:
    def write(e: Emitter, args: list[Value], node: Node) -> Value:
        vector = args[0].type
        return e.call(vecmath.declare_in(e.module, name, vector.element, vector.count), args)

    return write


def _inline(name: str) -> Instruction:
    return lambda e, args, node: vecmath.emit_inline(name, e.b, *args)


def _extremum(name: str) -> Callable[..., Value]:
    """NaN wins, as in PyTorch."""

    def write(e: Emitter, args: list[Value], node: Node | None) -> Value:
        a, b = args
        chosen = e.b.select(e.b.fcmp_ordered(">" if name == "maximum" else "<", a, b), a, b)
        return e.b.select(e.b.fcmp_unordered("!=", a, a), a, chosen)

    return write


def _comparison(operator: str) -> Instruction:
    def write(e: Emitter, args: list[Value], node: Node) -> Value:
        a, b = (_number(e, value, like) for value, like in zip(args, reversed(args)))
        return e.b.fcmp_unordered("!=", a, b) if operator == "!=" else e.b.fcmp_ordered(operator, a, b)

    return write


def _logical(instruction: str) -> Instruction:
    return lambda e, args, node: getattr(e.b, instruction)(*(_truth(e, a) for a in args))


def _not(e: Emitter, args: list[Value], node: Node) -> Value:
    value = _truth(e, args[0])
    return e.b.xor(value, ir.Constant(value.type, [1] * value.type.count))


def _where(e: Emitter, args: list[Value], node: Node) -> Value:
    condition, a, b = args
    return e.b.select(_truth(e, condition), a, b)


def _negate(e: Emitter, args: list[Value], node: Node) -> Value:
    return e.b.fneg(args[0])


def _relu(e: Emitter, args: list[Value], node: Node) -> Value:
    return _extremum("maximum")(e, [args[0], ir.Constant(args[0].type, [0.0] * args[0].type.count)], node)


def _reciprocal(e: Emitter, args: list[Value], node: Node) -> Value:
    return e.b.fdiv(_full(args[0], 1.0), args[0])


def _sign(e: Emitter, args: list[Value], node: Node) -> Value:
    x = args[0]
    zero = _full(x, 0.0)
    negative = e.b.select(e.b.fcmp_ordered("<", x, zero), _full(x, -1.0), zero)
    return e.b.select(e.b.fcmp_ordered(">", x, zero), _full(x, 1.0), negative)


def _power(e: Emitter, args: list[Value], node: Node) -> Value:
    base, exponent = args
    number = node.args[1]
    if number == 2:
        return e.b.fmul(base, base)
    if number == 3:
        return e.b.fmul(e.b.fmul(base, base), base)
    if number == 1:
        return base
    if number == -1:
        return _reciprocal(e, [base], node)
    if number == 0.5:
        return vecmath.emit_inline("sqrt", e.b, base)
    return _function("pow")(e, [base, exponent], node)


def _to_dtype(e: Emitter, args: list[Value], node: Node) -> Value:
    value, dtype = args[0], node.attributes["dtype"]
    if dtype == torch.bool:
        return _truth(e, value)
    if dtype == torch.bfloat16:
        return _round_to_bfloat16(e, value)
    if not dtype.is_floating_point:
        return vecmath.emit_inline("trunc", e.b, value)
    return value


def _round_to_bfloat16(e: Emitter, value: Value) -> Value:
    """To the nearest, halves to even; NaN stays NaN."""
    count = value.type.count
    integers = ir.VectorType(I32, count)

    def of(number: int) -> ir.Constant:
        return ir.Constant(integers, [number] * count)

    bits = e.b.bitcast(value, integers)
    odd = e.b.and_(e.b.lshr(bits, of(16)), of(1))
    rounded = e.b.and_(e.b.add(bits, e.b.add(odd, of(0x7FFF))), of(0xFFFF0000))
    result = e.b.bitcast(rounded, value.type)
    return e.b.select(e.b.fcmp_unordered("!=", value, value), value, result)


def _full(like: Value, number: float) -> ir.Constant:
    return ir.Constant(like.type, [number] * like.type.count)


def _truth(e: Emitter, value: Value) -> Value:
    return value if is_boolean(value) else e.b.fcmp_unordered("!=", value, _full(value, 0.0))


def _number(e: Emitter, value: Value, like: Value) -> Value:
    """A truth value beside a number is 0 or 1."""
    if not is_boolean(value):
        return value
    vector: Any = e.vector(ir.FloatType(), value.type.count) if is_boolean(like) else like.type
    return e.b.select(value, ir.Constant(vector, [1.0] * vector.count), ir.Constant(vector, [0.0] * vector.count))


def _mixed(instruction: str) -> Instruction:
    """Arithmetic in which a truth value may stand for 0 or 1 (a mask that multiplies)."""

    def write(e: Emitter, args: list[Value], node: Node) -> Value:
        a, b = (_number(e, value, like) for value, like in zip(args, reversed(args)))
        return getattr(e.b, instruction)(a, b)

    return write


def _copy(e: Emitter, args: list[Value], node: Node) -> Value:
    return args[0]


ELEMENTWISE: dict[str, Instruction] = {
    "abs": _inline("abs"),
    "add": _mixed("fadd"),
    "ceil": _inline("ceil"),
    "copy": _copy,
    "cos": _function("cos"),
    "div": _arithmetic("fdiv"),
    "eq": _comparison("=="),
    "erf": _function("erf"),
    "exp": _function("exp"),
    "expm1": _function("expm1"),
    "floor": _inline("floor"),
    "ge": _comparison(">="),
    "gt": _comparison(">"),
    "le": _comparison("<="),
    "log": _function("log"),
    "log1p": _function("log1p"),
    "logical_and": _logical("and_"),
    "logical_not": _not,
    "logical_or": _logical("or_"),
    "logical_xor": _logical("xor"),
    "lt": _comparison("<"),
    "maximum": _extremum("maximum"),
    "minimum": _extremum("minimum"),
    "mul": _mixed("fmul"),
    "ne": _comparison("!="),
    "neg": _negate,
    "pow": _power,
    "reciprocal": _reciprocal,
    "relu": _relu,
    "round": _inline("round"),
    "rsqrt": _inline("rsqrt"),
    "sigmoid": _function("sigmoid"),
    "sign": _sign,
    "sin": _function("sin"),
    "sqrt": _inline("sqrt"),
    "sub": _mixed("fsub"),
    "tanh": _function("tanh"),
    "to_dtype": _to_dtype,
    "trunc": _inline("trunc"),
    "where": _where,
    # A reduction over axes of size 1.
    **dict.fromkeys(REDUCTIONS, _copy),
}
