"""x -> log(x), log1p(x), softplus(x).

x = 2**e * (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)], and with s = f/(2+f)

    log(1 + f) = 2*s + s**3 * P(s*s) = f - (f*f/2 - s*(f*f/2 + s*s*P(s*s)))

where the right side, from FreeBSD's e_log.c, loses no bits as f goes to 0.
"""

import math
from dataclasses import dataclass

from throughtime.loop.native.vecmath.coefficients import LOGARITHM_F32, LOGARITHM_F64
from throughtime.loop.native.vecmath.exponential import LN2_HI, LN2_LO, exp
from throughtime.loop.native.vecmath.lanes import FLOAT32, FLOAT64, Lanes, fma, where

__all__ = ["Mantissa", "log", "log1p", "softplus", "split_mantissa"]

POLYNOMIAL = {FLOAT32: LOGARITHM_F32, FLOAT64: LOGARITHM_F64}
SQRT_HALF = math.sqrt(0.5)


@dataclass(frozen=True)
class Mantissa:
    """x = 2**e * m with m in [sqrt(1/2), sqrt(2)]."""

    biased: Lanes
    m: Lanes

    def exponent(self, bias: Lanes | float) -> Lanes:
        """e as a float. Put under the exponent bits of 2**fraction_bits, as AVX2 cannot convert 64-bit integers."""
        number = self.biased.format
        anchor = 2.0**number.fraction_bits
        anchored = (self.biased | number.bits(anchor)).as_float()
        return (anchored - anchor) - bias


def split_mantissa(x: Lanes) -> Mantissa:
    """Take a positive normal number apart."""
    number = x.format
    lowest = number.bits(SQRT_HALF)
    shifted = x.as_bits() + (number.bits(1.0) - lowest)
    fraction = shifted & ((1 << number.fraction_bits) - 1)
    return Mantissa(shifted.shifted_down(number.fraction_bits), (fraction + lowest).as_float())


def log(x: Lanes) -> Lanes:
    number = x.format
    denormal = x < number.smallest_normal
    lift = number.fraction_bits + 1
    mantissa = split_mantissa(where(denormal, x * 2.0**lift, x))
    e = mantissa.exponent(where(denormal, x.splat(float(number.bias + lift)), float(number.bias)))
    return _at_the_edges(_log_sum(mantissa.m - 1.0, e), x, zero=x)


def log1p(x: Lanes) -> Lanes:
    # So small that log1p(x) == x; also keeps the sign of zero and the last bit of denormal numbers.
    near_zero = where(x.abs() < x.format.epsilon / 4, x, _log1p_inside(x))
    return _at_the_edges(near_zero, x, zero=x + 1.0)


def softplus(x: Lanes) -> Lanes:
    """log(1 + exp(x)) = max(x, 0) + log1p(exp(-|x|)), which neither overflows nor cancels."""
    e = exp(-x.abs())
    return x.at_least(0.0) + where(e < x.format.epsilon / 4, e, _log1p_inside(e))


def _log1p_inside(x: Lanes) -> Lanes:
    """log1p for -1 < x < infinity. 1 + x only chooses e: f = x * 2**-e + (2**-e - 1) is rounded once.

    2**-e is denormal for the largest x, hence the factors of 4.
    """
    number = x.format
    mantissa = split_mantissa(x + 1.0)
    four_over_power = ((2 * number.bias + 2 - mantissa.biased) << number.fraction_bits).as_float()
    f = fma(x * 0.25, four_over_power, fma(four_over_power, 0.25, -1.0))
    return _log_sum(f, mantissa.exponent(float(number.bias)))


def _log_sum(f: Lanes, e: Lanes) -> Lanes:
    """log(1 + f) + e*log(2), the small terms first."""
    number = f.format
    s = f / (f + 2.0)
    z = s * s
    half_square = f * f * 0.5
    correction = s * fma(z, z.polynomial(POLYNOMIAL[number]), half_square)
    small = half_square - fma(e, LN2_LO[number], correction)
    return fma(e, LN2_HI[number], f - small)


def _at_the_edges(inside: Lanes, x: Lanes, zero: Lanes) -> Lanes:
    """Infinity and NaN stay; -infinity where `zero` is 0; NaN where it is negative."""
    finite = where(x < math.inf, inside, x)
    return where(zero > 0.0, finite, where(zero.equals(0.0), zero.splat(-math.inf), math.nan))
