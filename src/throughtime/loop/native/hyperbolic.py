"""Hyperbolic functions and their inverses, of the functions of `vecmath`: within 16 units in the last place."""

from llvmlite import ir

from throughtime.loop.native import vecmath
from throughtime.loop.native.ir import Emitter, Value

__all__ = ["acosh", "asinh", "atanh", "cosh", "sinh"]

FAR = 1e9
"""From here on x + sqrt(x^2 + 1), and x + sqrt(x^2 - 1), are 2 x."""
LOG_OF_TWO = 0.69314718055994530942


def _full(like: Value, number: float) -> ir.Constant:
    return ir.Constant(like.type, [number] * like.type.count)


def _function(e: Emitter, name: str, x: Value) -> Value:
    return vecmath.emit(name, e.b, x)


def _with_sign_of(e: Emitter, x: Value, magnitude: Value) -> Value:
    """x itself at 0, which has a sign too."""
    zero = _full(x, 0.0)
    signed = e.b.select(e.b.fcmp_ordered("<", x, zero), e.b.fneg(magnitude), magnitude)
    return e.b.select(e.b.fcmp_ordered("==", x, zero), x, signed)


def _half_exponentials(e: Emitter, a: Value) -> tuple[Value, Value]:
    """exp(a) / 2 and exp(-a) / 2, the first as a product: it overflows no sooner than it must."""
    half = _full(a, 0.5)
    root = _function(e, "exp", e.b.fmul(a, half))
    return e.b.fmul(e.b.fmul(half, root), root), e.b.fdiv(e.b.fdiv(half, root), root)


def cosh(e: Emitter, x: Value) -> Value:
    return e.b.fadd(*_half_exponentials(e, _function(e, "abs", x)))


def sinh(e: Emitter, x: Value) -> Value:
    a, one = _function(e, "abs", x), _full(x, 1.0)
    grown = _function(e, "expm1", a)
    near = e.b.fmul(_full(x, 0.5), e.b.fadd(grown, e.b.fdiv(grown, e.b.fadd(grown, one))))
    far = e.b.fsub(*_half_exponentials(e, a))
    return _with_sign_of(e, x, e.b.select(e.b.fcmp_ordered("<", a, one), near, far))


def asinh(e: Emitter, x: Value) -> Value:
    """log1p(a + a^2 / (1 + sqrt(a^2 + 1))), a = |x|"""
    a, one = _function(e, "abs", x), _full(x, 1.0)
    square = e.b.fmul(a, a)
    root = _function(e, "sqrt", e.b.fadd(square, one))
    near = _function(e, "log1p", e.b.fadd(a, e.b.fdiv(square, e.b.fadd(one, root))))
    return _with_sign_of(e, x, _unless_far(e, a, near))


def acosh(e: Emitter, x: Value) -> Value:
    """log1p(t + sqrt(t) sqrt(t + 2)), t = x - 1"""
    t = e.b.fsub(x, _full(x, 1.0))
    roots = [_function(e, "sqrt", t), _function(e, "sqrt", e.b.fadd(t, _full(x, 2.0)))]
    return _unless_far(e, x, _function(e, "log1p", e.b.fadd(t, e.b.fmul(*roots))))


def atanh(e: Emitter, x: Value) -> Value:
    """log1p(2 a / (1 - a)) / 2, a = |x|"""
    a = _function(e, "abs", x)
    ratio = e.b.fdiv(e.b.fadd(a, a), e.b.fsub(_full(x, 1.0), a))
    return _with_sign_of(e, x, e.b.fmul(_function(e, "log1p", ratio), _full(x, 0.5)))


def _unless_far(e: Emitter, a: Value, near: Value) -> Value:
    far = e.b.fadd(_function(e, "log", a), _full(a, LOG_OF_TWO))
    return e.b.select(e.b.fcmp_ordered(">", a, _full(a, FAR)), far, near)
