"""x -> sin(x), cos(x), for every finite x however large.

With y = |x| * 2/pi the quadrant is y rounded, and the rest times pi/2 goes into a polynomial. The bits of 2/pi that
make multiples of 4 out of |x| do not matter and those far behind do not either (Payne and Hanek, 1983): a row of
pieces of 2/pi is chosen by the exponent of x, so that the products with |x| are exact and nothing is lost when they
cancel.
"""

import math
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from throughtime.loop.native.vecmath.coefficients import (
    COSINE_F32_IN_F64,
    COSINE_F64,
    SINE_F32_IN_F64,
    SINE_F64,
)
from throughtime.loop.native.vecmath.lanes import FLOAT32, FLOAT64, Lanes, fma, intrinsic, where
from throughtime.loop.native.vecmath.power import two_product, two_sum

__all__ = ["cos", "sin"]

TWO_OVER_PI_BITS = 1280
TWO_OVER_PI = int(
    "a2f9836e4e441529fc2757d1f534ddc0db6295993c439041fe5163abdebbc561b7246e3a424dd2e0"
    "06492eea09d1921cfe1deb1cb129a73ee88235f52ebb4484e99c7026b45f7e413991d639835339f4"
    "9c845f8bbdf9283b1ff897ffde05980fef2f118b5a0a6d1f6d367ecf27cb09b74f463f669e5fea2d"
    "7527bac7ebe5f17b3d0739f78a5292ea6bfb5fb11f8d5d0856033046fc7b6babf0cfbc209af4361d",
    16,
)
PI_HALF, PI_HALF_LOW = 1.5707963267948966, 6.123233995736766e-17

PIECES = 4
# Floats: pieces of 28 bits, of which |x| >= 2**53, 2**81 and 2**109 skip the first one, two and three.
FLOAT32_WIDTH = 28
FLOAT32_STARTS = (53, 81, 109)
# Doubles: a row of pieces of 53 bits for |x| < 2**64, then one for each 2**32 further. The pieces are held times
# 2**200, and x times 2**-200, as the last pieces would be denormal.
FLOAT64_WIDTH = 53
FLOAT64_STARTS = range(64, 1024 + 32, 32)
FLOAT64_SCALE = 200
# Adding this rounds a double to an integer and leaves it in the low bits.
ROUNDER = 1.5 * 2.0**52
# Below this sin(x) is x, and the exact products of the reduction would underflow.
TINY = 2.0**-27


@dataclass(frozen=True)
class Angle:
    """|x| = quadrant * pi/2 + r + r_low; the quadrant modulo 4 is in the low bits, |r| <= pi/4."""

    quadrant: Lanes
    r: Lanes
    r_low: Lanes | None = None


def sin(x: Lanes) -> Lanes:
    if x.format is FLOAT32:
        wide = x.to(FLOAT64)
        return _signed_as(_sine_of_floats(_reduce_float(wide.abs())), wide).to(FLOAT32)
    return where(x.abs() < TINY, x, _signed_as(_sine_of_doubles(_reduce_double(x.abs())), x))


def cos(x: Lanes) -> Lanes:
    """The sine, one quadrant on."""
    if x.format is FLOAT32:
        return _sine_of_floats(_next_quadrant(_reduce_float(x.to(FLOAT64).abs()))).to(FLOAT32)
    return _sine_of_doubles(_next_quadrant(_reduce_double(x.abs())))


def _next_quadrant(angle: Angle) -> Angle:
    return Angle(angle.quadrant + 1, angle.r, angle.r_low)


def _signed_as(value: Lanes, x: Lanes) -> Lanes:
    return (value.as_bits() ^ (x.as_bits() & -FLOAT64.sign_bit)).as_float()


def _sine_of_floats(angle: Angle) -> Lanes:
    r = angle.r
    z = r * r
    sine = fma(r * z, z.polynomial(SINE_F32_IN_F64), r)
    cosine = fma(z, fma(z, z.polynomial(COSINE_F32_IN_F64), -0.5), 1.0)
    return _choose(angle.quadrant, sine, cosine)


def _sine_of_doubles(angle: Angle) -> Lanes:
    """The low part enters to first order: r_low * cos(r) and -r_low * sin(r)."""
    r, r_low = angle.r, angle.r_low
    assert r_low is not None, "doubles are reduced to two parts"
    z = r * r
    half = z * 0.5
    sine = r + fma(r * z, z.polynomial(SINE_F64), fma(-half, r_low, r_low))
    first = 1.0 - half
    lost = (1.0 - first) - half
    cosine = first + fma(z * z, z.polynomial(COSINE_F64), fma(-r, r_low, lost))
    return _choose(angle.quadrant, sine, cosine)


def _choose(quadrant: Lanes, sine: Lanes, cosine: Lanes) -> Lanes:
    """sin, cos, -sin, -cos in the quadrants 0, 1, 2, 3."""
    value = where((quadrant & 1).equals(0), sine, cosine)
    return (value.as_bits() ^ ((quadrant & 2) << 62)).as_float()


def _reduce_float(x: Lanes) -> Angle:
    """A float in a double times 28 bits is exact. What two pieces leave is exact as well, once the quadrant is off."""
    first, second, third, fourth = (x * piece for piece in _pieces_by_choice(x))
    first, second = _modulo_4(first), _modulo_4(second)
    rounded = (first + second + third) + ROUNDER
    rest = ((first - (rounded - ROUNDER)) + second) + third + fourth
    return Angle(rounded.as_bits(), rest * PI_HALF)


def _reduce_double(x: Lanes) -> Angle:
    """Seven products summed as if in triple precision: doubles come as near as 2**-62 to a multiple of pi/2."""
    scaled, pieces = x * 2.0**-FLOAT64_SCALE, _pieces_by_load(x)
    first, first_low = two_product(scaled, pieces[0])
    second, second_low = two_product(scaled, pieces[1])
    third, third_low = two_product(scaled, pieces[2])
    large = [_modulo_4(second), _modulo_4(first_low), _modulo_4(first)]
    small = [scaled * pieces[3], third_low, third, second_low]
    rounded = (large[2] + large[1] + large[0] + (second_low + third)) + ROUNDER
    terms = _distil(_distil([*small, *large, ROUNDER - rounded]))
    low = terms[0]
    for term in terms[1:-1]:
        low = low + term
    high = terms[-1]
    r, r_low = two_product(high, x.splat(PI_HALF))
    r_low = fma(low, PI_HALF, fma(high, PI_HALF_LOW, r_low))
    return Angle(rounded.as_bits(), r, r_low)


def _modulo_4(x: Lanes) -> Lanes:
    return fma(intrinsic("nearbyint", x * 0.25), -4.0, x)


def _distil(terms: list[Lanes]) -> list[Lanes]:
    """The same sum, its rounded value last and the rounding errors before it (Ogita, Rump and Oishi's VecSum)."""
    total, *rest = terms
    errors = []
    for term in rest:
        total, error = two_sum(term, total)
        errors.append(error)
    return [*errors, total]


def _pieces_by_choice(x: Lanes) -> list[Lanes]:
    pieces = [x.splat(piece) for piece in _row(0, FLOAT32_WIDTH)]
    for skipped, start in enumerate(FLOAT32_STARTS, 1):
        large = x >= 2.0**start
        row = _row(-FLOAT32_WIDTH * skipped, FLOAT32_WIDTH)
        pieces = [where(large, x.splat(new), old) for new, old in zip(row, pieces)]
    return pieces


def _pieces_by_load(x: Lanes) -> list[Lanes]:
    """Lane by lane: AVX2's gather of doubles is no faster than loads, and NEON has none."""
    builder, table, index_type = x.builder, _table(x.builder.module), ir.IntType(64)
    # The biased exponent plus one, over 32, is 34 for |x| in [2**64, 2**96).
    block = (x.as_bits().shifted_down(FLOAT64.fraction_bits) + 1).shifted_down(5) - 33
    row = where(block < 0, 0, block)
    pieces: list[Any] = [ir.Constant(x.type, ir.Undefined)] * PIECES
    for lane in range(x.lanes):
        start = builder.mul(builder.extract_element(row.value, index_type(lane)), index_type(PIECES))
        for i in range(PIECES):
            place = builder.gep(table, [builder.add(start, index_type(i))], source_etype=FLOAT64.element)
            piece = builder.load(place, typ=FLOAT64.element)
            pieces[i] = builder.insert_element(pieces[i], piece, index_type(lane))
    return [Lanes(builder, piece) for piece in pieces]


def _table(module: ir.Module) -> ir.GlobalVariable:
    """The pieces of 2/pi for doubles, once in a module."""
    name = "vecmath.two_over_pi"
    if name in module.globals:
        return module.globals[name]
    below = [0] + [54 - start for start in FLOAT64_STARTS]
    flat = [piece for bit in below for piece in _row(bit, FLOAT64_WIDTH, FLOAT64_SCALE)]
    table: Any = ir.GlobalVariable(module, ir.ArrayType(FLOAT64.element, len(flat)), name)
    table.initializer = ir.Constant(table.value_type, flat)
    table.linkage, table.global_constant = "internal", True
    return table


def _row(below: int, width: int, scale: int = 0) -> list[float]:
    """PIECES pieces of 2/pi of `width` bits each, from the bit worth 2**(below - 1) down, times 2**scale."""
    mask = (1 << width) - 1
    lowest = [below - width * (i + 1) for i in range(PIECES)]
    return [math.ldexp((TWO_OVER_PI >> (TWO_OVER_PI_BITS + low)) & mask, low + scale) for low in lowest]
