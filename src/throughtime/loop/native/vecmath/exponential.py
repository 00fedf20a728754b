"""x -> exp(x), expm1(x), sigmoid(x), tanh(x).

All four split x = n*log(2) + r, |r| <= log(2)/2, take q = expm1(r) from a polynomial and build 2**n in the
exponent bits. Adding 1.5 * 2**fraction_bits rounds to an integer and leaves it in the low bits of the sum, so that
one shift makes 2**n: no conversion, no table, and no instruction beyond AVX2 or NEON.
"""

from dataclasses import dataclass

from throughtime.loop.native.vecmath.coefficients import (
    EXPONENTIAL_F32,
    EXPONENTIAL_F64,
    TANH_NEAR_ZERO_F32,
    TANH_NEAR_ZERO_F64,
)
from throughtime.loop.native.vecmath.lanes import FLOAT32, FLOAT64, Lanes, copysign, fma, where

__all__ = [
    "LN2_HI",
    "LN2_LO",
    "Reduced",
    "exp",
    "exp_of_sum",
    "expm1",
    "expm1_near_zero",
    "reduce_exponent",
    "sigmoid",
    "tanh",
]

LOG2_E = 1.4426950408889634
LN2_HI = {FLOAT32: 0.693147182464599609375, FLOAT64: 0.6931471805599453}
LN2_LO = {FLOAT32: -1.90465429995776e-09, FLOAT64: 2.3190468138462996e-17}
POLYNOMIAL = {FLOAT32: EXPONENTIAL_F32, FLOAT64: EXPONENTIAL_F64}

# Beyond these exp is 0 or infinity however it is rounded.
LOWEST = {FLOAT32: -104.0, FLOAT64: -746.0}
HIGHEST = {FLOAT32: 89.0, FLOAT64: 710.0}
# From here on expm1 is -1 however it is rounded; sigmoid, and tanh of half of it, are 1.
EXPM1_IS_MINUS_1 = {FLOAT32: -20.0, FLOAT64: -40.0}
IS_ONE = {FLOAT32: 20.0, FLOAT64: 40.0}
TANH_SPLIT = 0.55
NEAR_ZERO = {FLOAT32: TANH_NEAR_ZERO_F32, FLOAT64: TANH_NEAR_ZERO_F64}


@dataclass(frozen=True)
class Reduced:
    """x = n*log(2) + r, with n + `offset` in the low bits of `integer`."""

    r: Lanes
    integer: Lanes

    def scale(self) -> Lanes:
        """2**(n + offset - bias)."""
        return (self.integer << self.integer.format.fraction_bits).as_float()

    def scales(self) -> tuple[Lanes, Lanes]:
        """Two factors of 2**(n + offset - 2*bias), either far from overflow and underflow."""
        half = self.integer.shifted_down(1)
        fraction_bits = self.integer.format.fraction_bits
        return (half << fraction_bits).as_float(), ((self.integer - half) << fraction_bits).as_float()


def reduce_exponent(x: Lanes, offset: int) -> Reduced:
    """Split off n; x must be so bounded that n + offset is positive and less than 4 * bias."""
    number = x.format
    rounder = 1.5 * 2**number.fraction_bits + offset
    rounded = fma(x, LOG2_E, rounder)
    n = rounded - rounder
    r = fma(n, -LN2_LO[number], fma(n, -LN2_HI[number], x))
    return Reduced(r, rounded.as_bits())


def expm1_near_zero(r: Lanes, polynomial: tuple[float, ...] = ()) -> Lanes:
    """expm1(r) for |r| <= log(2)/2, as exactly as the format needs or as `polynomial` is."""
    return fma(r * r, r.polynomial(polynomial or POLYNOMIAL[r.format]), r)


def exp(x: Lanes) -> Lanes:
    """Correct into the denormal numbers: 2**n is applied as two factors, so that the last product rounds once."""
    return exp_of_sum(x, None)


def exp_of_sum(x: Lanes, rest: Lanes | None, polynomial: tuple[float, ...] = ()) -> Lanes:
    """exp(x + rest), where rest is tiny beside x."""
    number = x.format
    bounded = x.at_least(LOWEST[number]).at_most(HIGHEST[number])
    reduced = reduce_exponent(bounded, offset=2 * number.bias)
    r = reduced.r if rest is None else reduced.r + rest
    first, second = reduced.scales()
    return (expm1_near_zero(r, polynomial) + 1.0) * first * second


def expm1(x: Lanes) -> Lanes:
    """2 * (2**(n-1) * q + (2**(n-1) - 1/2)): the half keeps 2**n from overflowing before the result does."""
    number = x.format
    bounded = x.at_least(EXPM1_IS_MINUS_1[number]).at_most(HIGHEST[number])
    reduced = reduce_exponent(bounded, offset=number.bias - 1)
    half_scale = reduced.scale()
    half = fma(half_scale, expm1_near_zero(reduced.r), half_scale - 0.5)
    # So small that expm1(x) == x; also keeps the sign of zero and the last bit of denormal numbers.
    return where(x.abs() < number.epsilon / 4, x, half + half)


def sigmoid(x: Lanes) -> Lanes:
    """c/(c + c*e) with e = exp(-x) and c = 1.5 * 2**-k.

    The 2**-k keeps e from overflowing while the result is a denormal number. The 1.5 moves the binade of the divisor,
    so that its rounding error is 3/4 of an ulp of the result at most, where it would be a whole one.
    """
    number = x.format
    k = {FLOAT32: 32, FLOAT64: 64}[number]
    bounded = x.at_least(LOWEST[number]).at_most(IS_ONE[number])
    reduced = reduce_exponent(-bounded, offset=number.bias - k)
    c = 1.5 * 2.0**-k
    scale = reduced.scale() * 1.5
    return c / (fma(expm1_near_zero(reduced.r), scale, c) + scale)


def tanh(x: Lanes) -> Lanes:
    """A polynomial while |tanh| < 1/2, then 1 - 2/(1 + exp(2*|x|)), which loses nothing to cancellation."""
    number = x.format
    magnitude = x.abs()
    square = x * x
    near = fma(x * square, square.polynomial(NEAR_ZERO[number]), x)
    reduced = reduce_exponent((magnitude + magnitude).at_most(IS_ONE[number]), offset=number.bias)
    scale = reduced.scale()
    e_plus_1 = fma(expm1_near_zero(reduced.r), scale, scale + 1.0)
    far = 1.0 - 2.0 / e_plus_1
    return copysign(where(magnitude < TANH_SPLIT, near, far), x)
