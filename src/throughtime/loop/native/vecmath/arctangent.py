"""y, x -> atan2(y, x); x -> atan(x).

The smaller of |y| and |x| over the larger lies in [0, 1], where one polynomial is enough; the rest is which eighth of
the circle the point is in. Floats go through doubles.
"""

from throughtime.loop.native.vecmath.coefficients import ARCTANGENT_F32_IN_F64, ARCTANGENT_F64
from throughtime.loop.native.vecmath.lanes import FLOAT32, FLOAT64, Lanes, copysign, fma, where

__all__ = ["atan", "atan2"]

PI, PI_LOW = 3.141592653589793, 1.2246467991473532e-16


def atan(x: Lanes) -> Lanes:
    return atan2(x, x.splat(1.0))


def atan2(y: Lanes, x: Lanes) -> Lanes:
    """The angle of the point (x, y), in [-pi, pi]; C's, with its infinities and signed zeros."""
    if x.format is FLOAT32:
        return _angle(y.to(FLOAT64), x.to(FLOAT64), ARCTANGENT_F32_IN_F64).to(FLOAT32)
    return _angle(y, x, ARCTANGENT_F64)


def _angle(y: Lanes, x: Lanes, polynomial: tuple[float, ...]) -> Lanes:
    """0, pi/2 or pi, and the angle to that axis."""
    a, b = y.abs(), x.abs()
    steep, behind = a > b, x.as_bits() < 0
    ratio = _ratio(where(steep, b, a), where(steep, a, b))
    square = ratio * ratio
    small = fma(ratio * square, square.polynomial(polynomial), ratio)
    turned = where(steep ^ behind, -small, small)
    high = where(steep, x.splat(PI / 2), where(behind, x.splat(PI), 0.0))
    low = where(steep, x.splat(PI_LOW / 2), where(behind, x.splat(PI_LOW), 0.0))
    return copysign(high + (turned + low), y)


def _ratio(smaller: Lanes, larger: Lanes) -> Lanes:
    """1 where both are infinite, 0 where both are 0."""
    equal = where(larger.equals(0.0), larger.splat(0.0), 1.0)
    return where(smaller.equals(larger), equal, smaller / larger)
