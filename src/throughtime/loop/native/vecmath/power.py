"""x, y -> x**y; x -> sqrt(x), 1/sqrt(x).

|x|**y = exp(y * log|x|), where an error of y*log|x| is a relative error of the result: floats go through doubles,
and doubles through a sum of two doubles.
"""

import math

from throughtime.loop.native.vecmath.coefficients import (
    EXPONENTIAL_F32_IN_F64,
    LOGARITHM_F32_IN_F64,
    LOGARITHM_F64,
)
from throughtime.loop.native.vecmath.exponential import LN2_HI, exp_of_sum
from throughtime.loop.native.vecmath.lanes import FLOAT32, FLOAT64, Lanes, fma, intrinsic, where
from throughtime.loop.native.vecmath.logarithm import split_mantissa

__all__ = ["power", "rsqrt", "sqrt", "two_product", "two_sum"]

# log(2) in two parts, the first so short that its product with an exponent is exact.
LN2_SHORT, LN2_REST = 0.6931471803691238, 1.9082149292705877e-10


def sqrt(x: Lanes) -> Lanes:
    """Correctly rounded by the hardware."""
    return intrinsic("sqrt", x)


def rsqrt(x: Lanes) -> Lanes:
    """Two roundings; the hardware's own approximation differs between makers."""
    return 1.0 / intrinsic("sqrt", x)


def power(x: Lanes, y: Lanes) -> Lanes:
    """C's pow, with all its special cases."""
    magnitude = _power_of_floats if x.format is FLOAT32 else _power_of_doubles
    return _with_sign_and_edges(magnitude(x.abs(), y), x, y)


def _power_of_floats(x: Lanes, y: Lanes) -> Lanes:
    wide = x.to(FLOAT64)
    mantissa = split_mantissa(wide)
    f = mantissa.m - 1.0
    s = f / (f + 2.0)
    z = s * s
    inside = fma(s * z, z.polynomial(LOGARITHM_F32_IN_F64), s + s)
    logarithm = fma(mantissa.exponent(float(FLOAT64.bias)), LN2_HI[FLOAT64], inside)
    exponent = _edges_of_log(logarithm, wide) * y.to(FLOAT64)
    return exp_of_sum(exponent, None, EXPONENTIAL_F32_IN_F64).to(FLOAT32)


def _power_of_doubles(x: Lanes, y: Lanes) -> Lanes:
    denormal = x < FLOAT64.smallest_normal
    mantissa = split_mantissa(where(denormal, x * 2.0**53, x))
    e = mantissa.exponent(where(denormal, x.splat(FLOAT64.bias + 53.0), float(FLOAT64.bias)))
    high, low = _log_in_two_parts(mantissa.m, e)
    high = _edges_of_log(high, x)
    product, rest = two_product(y, high)
    rest = fma(y, low, rest)
    # Where the product overflows, or y is infinite, the rest is not a number and does not matter.
    rest = where(product.abs() < 1000.0, rest, 0.0)
    return exp_of_sum(product, rest)


def _log_in_two_parts(m: Lanes, e: Lanes) -> tuple[Lanes, Lanes]:
    """log(m) + e*log(2) as a sum of two doubles, to about 2**-65."""
    f = m - 1.0
    s, s_low = _quotient(f)
    z = s * s
    z_low = fma(s, s, -z) + 2.0 * s * s_low
    cube, cube_low = two_product(z, s)
    cube_low = fma(z, s_low, fma(z_low, s, cube_low))
    third, third_low = two_product(cube, s.splat(LOGARITHM_F64[0]))
    tail = cube * z * z.polynomial(LOGARITHM_F64[1:])
    high, low_1 = two_sum(e * LN2_SHORT, s + s)
    high, low_2 = two_sum(high, third)
    small = fma(cube_low, LOGARITHM_F64[0], third_low) + tail
    low = fma(e, LN2_REST, low_1) + (low_2 + (s_low + s_low + small))
    return two_sum(high, low)


def _quotient(f: Lanes) -> tuple[Lanes, Lanes]:
    """f / (2 + f) as a sum of two doubles."""
    divisor = f + 2.0
    divisor_low = f - (divisor - 2.0)
    inverse = 1.0 / divisor
    s = f * inverse
    remainder = fma(-s, divisor_low, fma(-s, divisor, f))
    return s, remainder * inverse


def two_sum(a: Lanes, b: Lanes) -> tuple[Lanes, Lanes]:
    """a + b and its rounding error (Knuth)."""
    total = a + b
    b_seen = total - a
    return total, (a - (total - b_seen)) + (b - b_seen)


def two_product(a: Lanes, b: Lanes) -> tuple[Lanes, Lanes]:
    """a * b and its rounding error."""
    product = a * b
    return product, fma(a, b, -product)


def _edges_of_log(logarithm: Lanes, x: Lanes) -> Lanes:
    """log(0) = -infinity; infinity and NaN stay. x is not negative."""
    finite = where(x < math.inf, logarithm, x)
    return where(x.equals(0.0), x.splat(-math.inf), finite)


def _with_sign_and_edges(magnitude: Lanes, x: Lanes, y: Lanes) -> Lanes:
    half = y * 0.5
    integer = intrinsic("trunc", y).equals(y)
    half_integer = intrinsic("trunc", half).equals(half)
    # (-1)**(±infinity) is 1, as infinity counts as even.
    unit = where(x.abs().equals(1.0), x.splat(1.0), magnitude)
    odd = integer.and_not(half_integer)
    signed = where((x.as_bits() < 0) & odd, -unit, unit)
    undefined = ((x < 0.0) & (x > -math.inf)).and_not(integer)
    real = where(undefined, x.splat(math.nan), signed)
    return where(y.equals(0.0) | x.equals(1.0), x.splat(1.0), real)
