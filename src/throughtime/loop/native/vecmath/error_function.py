"""x -> erf(x), from two polynomials of which each lane takes one."""

from throughtime.loop.native.vecmath.coefficients import (
    ERF_NEAR_ZERO_F32,
    ERF_NEAR_ZERO_F64,
    ERFC_EXPONENT_F32,
    ERFC_EXPONENT_F64,
)
from throughtime.loop.native.vecmath.exponential import expm1_near_zero, reduce_exponent
from throughtime.loop.native.vecmath.lanes import FLOAT32, FLOAT64, Lanes, copysign, fma, where

__all__ = ["erf"]

SPLIT = 0.875
# From here on erf is 1 however it is rounded.
HIGHEST = {FLOAT32: 4.0, FLOAT64: 6.0}
NEAR_ZERO = {FLOAT32: ERF_NEAR_ZERO_F32, FLOAT64: ERF_NEAR_ZERO_F64}
EXPONENT = {FLOAT32: ERFC_EXPONENT_F32, FLOAT64: ERFC_EXPONENT_F64}


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
