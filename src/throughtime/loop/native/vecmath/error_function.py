"""x -> erf(x), from two polynomials of which each lane takes one; erfc(x), from one over the whole half-line."""

from throughtime.loop.native.vecmath.coefficients import (
    ERF_NEAR_ZERO_F32,
    ERF_NEAR_ZERO_F64,
    ERFC_EXPONENT_F32,
    ERFC_EXPONENT_F64,
    ERFC_SCALED_F32_IN_F64,
    ERFC_SCALED_F64,
    EXPONENTIAL_F32_IN_F64,
    EXPONENTIAL_F64,
)
from throughtime.loop.native.vecmath.exponential import expm1_near_zero, reduce_exponent
from throughtime.loop.native.vecmath.lanes import FLOAT32, FLOAT64, Lanes, copysign, fma, where
from throughtime.loop.native.vecmath.power import two_product, two_sum

__all__ = ["erf", "erfc"]

SPLIT = 0.875
# From here on erf is 1 however it is rounded.
HIGHEST = {FLOAT32: 4.0, FLOAT64: 6.0}
NEAR_ZERO = {FLOAT32: ERF_NEAR_ZERO_F32, FLOAT64: ERF_NEAR_ZERO_F64}
EXPONENT = {FLOAT32: ERFC_EXPONENT_F32, FLOAT64: ERFC_EXPONENT_F64}
# From here on erfc is 0 however it is rounded.
ERFC_IS_ZERO = {FLOAT32: 10.5, FLOAT64: 28.0}
ERFC_SPLIT, ERFC_MIDDLE = 0.375, 4.0


def erf(x: Lanes) -> Lanes:
    """x + x*P(x*x) near zero, 1 - exp(-|x| - |x|*Q(|x|)) with the sign of x further out."""
    number = x.format
    magnitude = x.abs()
    near = fma(x, (x * x).polynomial(NEAR_ZERO[number]), x)
    bounded = magnitude.at_most(HIGHEST[number])
    exponent = fma(bounded, bounded.polynomial(EXPONENT[number]), bounded)
    reduced = reduce_exponent(-exponent, offset=number.bias)
    scale = reduced.scale()
    far = fma(-expm1_near_zero(reduced.r), scale, 1.0 - scale)
    return where(magnitude < SPLIT, near, copysign(far, x))


def erfc(x: Lanes) -> Lanes:
    """Floats go through doubles; doubles near zero are 1 - erf(x), which rounds less often."""
    if x.format is FLOAT32:
        wide = x.to(FLOAT64)
        return _erfc(wide, ERFC_IS_ZERO[FLOAT32], ERFC_SCALED_F32_IN_F64, EXPONENTIAL_F32_IN_F64).to(FLOAT32)
    near = 1.0 - fma(x, (x * x).polynomial(ERF_NEAR_ZERO_F64), x)
    return where(x.abs() < ERFC_SPLIT, near, _erfc(x, ERFC_IS_ZERO[FLOAT64], ERFC_SCALED_F64, EXPONENTIAL_F64))


def _erfc(x: Lanes, highest: float, scaled: tuple[float, ...], exponential: tuple[float, ...]) -> Lanes:
    """exp(-a*a) * (1 + (1+t)*P(t)) / (1 + 2*a), a = |x|, t = (a-4)/(a+4); 2 less that where x is negative.

    The factor of the exponential is a sum of two numbers, so that only its product is rounded.
    Source: Shepherd and Laframboise 1981, "Chebyshev approximation of (1 + 2x) exp(x^2) erfc x in 0 <= x < infinity".
    """
    a = x.abs().at_most(highest)
    double = a + a
    above = double / (a + ERFC_MIDDLE)
    factor, lost = _quotient(above * (above - 1.0).polynomial(scaled), double)
    square, rest = two_product(a, a)
    reduced = reduce_exponent(-square, offset=2 * FLOAT64.bias)
    first, second = reduced.scales()
    grown = expm1_near_zero(reduced.r - rest, exponential)
    right = (factor + fma(factor, grown, fma(lost, grown, lost))) * first * second
    return where(x < 0.0, 2.0 - right, right)


def _quotient(x: Lanes, y: Lanes) -> tuple[Lanes, Lanes]:
    """(1 + x) / (1 + y), y not negative, and its rounding error."""
    divisor, error = two_sum(y, y.splat(1.0))
    inverse = 1.0 / divisor
    quotient = fma(inverse, x, inverse)
    return quotient, (fma(-quotient, divisor, 1.0) + x - quotient * error) * inverse
