"""Functions on short intervals -> the minimax polynomials in `loop/native/vecmath/coefficients.py`.

Remez' exchange in 60 digits; then each coefficient in turn, the most important first, is rounded to the format in which
it is used and the others are fitted again. Prints the module; run it only to change an interval or a degree:

    python benchmarks/vector_math_coefficients.py > src/throughtime/loop/native/vecmath/coefficients.py
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass

from mpmath import atan, cos, erf, erfc, exp, expm1, log, lu_solve, matrix, mp, mpf, pi, sin, sqrt, tanh

mp.dps = 60
GRID = 600
ERF_SPLIT = "0.875"
ERFC_MIDDLE = 4
TANH_SPLIT = "0.55"

Real = Callable[[mpf], mpf]


@dataclass(frozen=True)
class Fit:
    """Approximate `target` on [low, high] by degree+1 coefficients so that max |weight * error| is least."""

    name: str
    formula: str
    target: Real
    weight: Real
    low: mpf
    high: mpf
    coefficients: int
    single: bool = False


def solve_fit(fit: Fit) -> tuple[list[float], mpf]:
    """The rounded coefficients and the largest weighted error that they leave."""
    points = chebyshev_points(fit.low, fit.high, GRID)
    target = [fit.target(x) for x in points]
    weight = [fit.weight(x) for x in points]
    best = remez(points, target, weight, range(fit.coefficients))
    rounded = [round_to(c, fit.single) for c in best]
    # Around 0 the higher powers alone vanish inside the interval, and the exchange does not apply.
    for first in range(1, fit.coefficients if fit.low > 0 else 1):
        fixed = rounded[:first]
        rest = [t - horner(fixed, x) for t, x in zip(target, points)]
        best = remez(points, rest, weight, range(first, fit.coefficients))
        rounded[first:] = [round_to(c, fit.single) for c in best]
    errors = (abs(w * (t - horner(rounded, x))) for t, w, x in zip(target, weight, points))
    return rounded, max(errors)


def remez(points: list[mpf], target: list[mpf], weight: list[mpf], powers: range) -> list[mpf]:
    """Coefficients of x**powers; at most 30 exchanges, though 5 usually do."""
    count = len(powers) + 1
    chosen = [round(i * (len(points) - 1) / (count - 1)) for i in range(count)]
    for _ in range(30):
        solution = level_errors([(points[i], target[i], weight[i]) for i in chosen], powers)
        errors = [w * (sum(c * x**p for c, p in zip(solution, powers)) - t) for x, t, w in zip(points, target, weight)]
        peaks = alternating_peaks(errors, count)
        if peaks == chosen:
            break
        chosen = peaks
    return solution


def level_errors(samples: list[tuple[mpf, mpf, mpf]], powers: range) -> list[mpf]:
    """The polynomial whose weighted errors at the samples are equal and alternate in sign."""
    count = len(samples)
    system, right = matrix(count, count), matrix(count, 1)
    for i, (x, t, w) in enumerate(samples):
        for j, power in enumerate(powers):
            system[i, j] = w * x**power
        system[i, count - 1] = (-1) ** i
        right[i] = w * t
    return list(lu_solve(system, right))[:-1]


def alternating_peaks(errors: list[mpf], count: int) -> list[int]:
    """Where the error is largest between its changes of sign, cut to `count` by dropping the smaller end."""
    peaks: list[int] = []
    for i, error in enumerate(errors):
        if peaks and (errors[peaks[-1]] > 0) == (error > 0):
            if abs(error) > abs(errors[peaks[-1]]):
                peaks[-1] = i
        else:
            peaks.append(i)
    while len(peaks) > count:
        peaks.pop(0 if abs(errors[peaks[0]]) < abs(errors[peaks[-1]]) else -1)
    assert len(peaks) == count, "the error must change its sign between all the points of the exchange"
    return peaks


def chebyshev_points(low: mpf, high: mpf, count: int) -> list[mpf]:
    middle, half = (low + high) / 2, (high - low) / 2
    return [middle - half * cos(pi * (2 * i + 1) / (2 * count)) for i in range(count)]


def horner(coefficients: list[float], x: mpf) -> mpf:
    total = mpf(0)
    for coefficient in reversed(coefficients):
        total = total * x + mpf(coefficient)
    return total


def round_to(number: mpf, single: bool) -> float:
    return struct.unpack("f", struct.pack("f", float(number)))[0] if single else float(number)


def exponential(name: str, coefficients: int, single: bool = False) -> Fit:
    half = log(2) / 2 * mpf("1.0001")
    return Fit(
        name,
        "expm1(r) = r + r*r*P(r), |r| <= log(2)/2",
        lambda r: (expm1(r) - r) / r**2,
        lambda r: abs(r**2 / expm1(r)),
        -half,
        half,
        coefficients,
        single,
    )


def logarithm(name: str, coefficients: int, single: bool = False) -> Fit:
    high = (3 - 2 * sqrt(mpf(2))) ** 2 * mpf("1.0001")

    def target(z: mpf) -> mpf:
        s = sqrt(z)
        return (log((1 + s) / (1 - s)) - 2 * s) / s**3

    formula = "log(1+f) = 2*s + s*s*s*P(s*s), s = f/(2+f), 1+f in [sqrt(1/2), sqrt(2)]"
    return Fit(name, formula, target, lambda z: z / 2, mpf("1e-9"), high, coefficients, single)


def sine(name: str, coefficients: int) -> Fit:
    formula = "sin(r) = r + r*r*r*P(r*r), |r| <= pi/4"

    def target(z: mpf) -> mpf:
        r = sqrt(z)
        return (sin(r) - r) / r**3

    weight: Real = lambda z: z * sqrt(z) / sin(sqrt(z))  # noqa: E731
    return Fit(name, formula, target, weight, mpf("1e-9"), (pi / 4) ** 2 * mpf("1.0001"), coefficients)


def cosine(name: str, coefficients: int) -> Fit:
    formula = "cos(r) = 1 - r*r/2 + r**4 * P(r*r), |r| <= pi/4"
    target: Real = lambda z: (cos(sqrt(z)) - 1 + z / 2) / z**2  # noqa: E731
    return Fit(name, formula, target, lambda z: z**2, mpf("1e-9"), (pi / 4) ** 2 * mpf("1.0001"), coefficients)


def tanh_near_zero(name: str, coefficients: int, single: bool = False) -> Fit:
    formula = f"tanh(x) = x + x*x*x*P(x*x), |x| <= {TANH_SPLIT}"
    target: Real = lambda z: (tanh(sqrt(z)) / sqrt(z) - 1) / z  # noqa: E731
    weight: Real = lambda z: z * sqrt(z) / tanh(sqrt(z))  # noqa: E731
    return Fit(name, formula, target, weight, mpf("1e-9"), mpf(TANH_SPLIT) ** 2, coefficients, single)


def erf_near_zero(name: str, coefficients: int, single: bool = False) -> Fit:
    formula = f"erf(x) = x + x*P(x*x), |x| <= {ERF_SPLIT}"
    target: Real = lambda z: erf(sqrt(z)) / sqrt(z) - 1  # noqa: E731
    weight: Real = lambda z: sqrt(z) / erf(sqrt(z))  # noqa: E731
    return Fit(name, formula, target, weight, mpf("1e-9"), mpf(ERF_SPLIT) ** 2, coefficients, single)


def erfc_exponent(name: str, coefficients: int, high: str, single: bool = False) -> Fit:
    formula = f"erfc(x) = exp(-x*(1 + P(x))), {ERF_SPLIT} <= x <= {high}"
    target: Real = lambda x: -log(erfc(x)) / x - 1  # noqa: E731
    # An error d of the exponent changes erf by erfc * d.
    weight: Real = lambda x: x * erfc(x) / erf(x)  # noqa: E731
    return Fit(name, formula, target, weight, mpf(ERF_SPLIT), mpf(high), coefficients, single)


def erfc_scaled(name: str, coefficients: int, high: str) -> Fit:
    formula = f"(1 + 2*x)*exp(x*x)*erfc(x) = 1 + (1+t)*P(t), t = (x-{ERFC_MIDDLE})/(x+{ERFC_MIDDLE}), 0 <= x <= {high}"

    def scaled(t: mpf) -> mpf:
        x = ERFC_MIDDLE * (1 + t) / (1 - t)
        return (1 + 2 * x) * exp(x * x) * erfc(x)

    last = (mpf(high) - ERFC_MIDDLE) / (mpf(high) + ERFC_MIDDLE)
    target: Real = lambda t: (scaled(t) - 1) / (1 + t)  # noqa: E731
    return Fit(name, formula, target, lambda t: (1 + t) / scaled(t), mpf("1e-9") - 1, last, coefficients)


def arctangent(name: str, coefficients: int) -> Fit:
    formula = "atan(r) = r + r*r*r*P(r*r), |r| <= 1"
    target: Real = lambda z: (atan(sqrt(z)) - sqrt(z)) / z ** mpf("1.5")  # noqa: E731
    return Fit(name, formula, target, lambda z: z ** mpf("1.5") / atan(sqrt(z)), mpf("1e-9"), mpf(1), coefficients)


FITS = (
    exponential("EXPONENTIAL_F32", 5, single=True),
    exponential("EXPONENTIAL_F32_IN_F64", 6),
    exponential("EXPONENTIAL_F64", 11),
    logarithm("LOGARITHM_F32", 4, single=True),
    logarithm("LOGARITHM_F32_IN_F64", 5),
    logarithm("LOGARITHM_F64", 8),
    sine("SINE_F32_IN_F64", 4),
    sine("SINE_F64", 6),
    cosine("COSINE_F32_IN_F64", 3),
    cosine("COSINE_F64", 6),
    tanh_near_zero("TANH_NEAR_ZERO_F32", 5, single=True),
    tanh_near_zero("TANH_NEAR_ZERO_F64", 11),
    erf_near_zero("ERF_NEAR_ZERO_F32", 6, single=True),
    erf_near_zero("ERF_NEAR_ZERO_F64", 12),
    erfc_exponent("ERFC_EXPONENT_F32", 7, "4.0", single=True),
    erfc_exponent("ERFC_EXPONENT_F64", 18, "6.0"),
    erfc_scaled("ERFC_SCALED_F32_IN_F64", 12, "10.5"),
    erfc_scaled("ERFC_SCALED_F64", 22, "28.0"),
    arctangent("ARCTANGENT_F32_IN_F64", 10),
    arctangent("ARCTANGENT_F64", 20),
)


def main() -> None:
    print('"""Minimax polynomials, lowest power first; made by `benchmarks/vector_math_coefficients.py`."""')
    for fit in FITS:
        coefficients, error = solve_fit(fit)
        bound = f"2**{float(log(error, 2)):.1f}"
        print(f"\n# {fit.formula}; largest weighted error {bound}.\n{fit.name} = (")
        for coefficient in coefficients:
            print(f"    {coefficient!r},")
        print(")")


if __name__ == "__main__":
    main()
