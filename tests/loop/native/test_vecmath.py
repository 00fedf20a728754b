"""Vector functions: within their bounds, right at the edges, and the same bits in whatever lane an element stands.

`benchmarks/vector_math_accuracy.py` measures every float32; here it is every 997th, and all the special ones.
"""

import ctypes
import functools
import re

import mpmath
import numpy as np
import pytest
import torch
from llvmlite import ir

from throughtime.loop.native.ir import F32, F64, I64, PTR, define, new_module
from throughtime.loop.native.jit import CompiledModule, compile_module, emit_assembly
from throughtime.loop.native.target import avx2_target, avx512_target, host_target, neon_target
from throughtime.loop.native.vecmath import (
    ARGUMENTS,
    CALLED,
    FUNCTIONS,
    ULP_BOUNDS,
    declare_in,
    emit,
    emit_inline,
)

NUMPY = {F32: np.float32, F64: np.float64}
ELEMENTS = pytest.mark.parametrize("element", [F32, F64], ids=["float", "double"])

# Of doubles, or to be called with doubles when floats are tested.
REFERENCE = {name: getattr(torch, name) for name in FUNCTIONS if name not in ("atan2", "pow", "softplus")} | {
    "softplus": lambda x: torch.logaddexp(x, torch.zeros((), dtype=x.dtype))
}
EXACT = {
    name: getattr(mpmath, name)
    for name in ("atan", "cos", "erf", "erfc", "exp", "expm1", "log", "log1p", "sin", "sqrt", "tanh")
} | {
    "rsqrt": lambda x: 1 / mpmath.sqrt(x),
    "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)),
    "softplus": lambda x: mpmath.log1p(mpmath.exp(x)),
}
ROUNDINGS = ("abs", "ceil", "floor", "round", "trunc")


@functools.cache
def _library(element: ir.Type, lanes: int, write=emit) -> CompiledModule:
    """A loop of whole vectors for each function: name(x, y, out, count)."""
    target = host_target()
    module = new_module("vecmath", target)
    for name in FUNCTIONS:
        _define_loop(module, name, element, lanes, write)
    return compile_module(module, target)


def _define_loop(module: ir.Module, name: str, element: ir.Type, lanes: int, write) -> None:
    e = define(module, name, {"x": PTR, "y": PTR, "out": PTR, "count": I64}, host_target())
    x, y, out, count = e.arguments

    def body(index, _) -> None:
        values = [e.load_vector(p, element, index=index, lanes=lanes) for p in (x, y)]
        e.store_vector(write(name, e.b, *values[: ARGUMENTS[name]]), out, index=index)

    e.loop(count, body, step=lanes)
    e.done()


def _apply(name: str, x: np.ndarray, y: np.ndarray | None = None, lanes: int = 0, write=emit) -> np.ndarray:
    element = F32 if x.dtype == np.float32 else F64
    lanes = lanes or host_target().lanes(x.dtype.itemsize * 8)
    address = _library(element, lanes, write).address(name)
    run = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 3, ctypes.c_int64)(address)
    padded = [np.resize(a, -(-x.size // 16) * 16) for a in (x, x if y is None else y)]
    out = np.full_like(padded[0], np.nan)
    run(padded[0].ctypes.data, padded[1].ctypes.data, out.ctypes.data, out.size)
    return out[: x.size]


def _special(dtype) -> np.ndarray:
    """Both signs of zeros, ones, infinities, NaN, denormal numbers, the largest, and powers of two around halves."""
    info = np.finfo(dtype)
    positive = [0.0, info.smallest_subnormal, info.tiny / 3, info.tiny, info.eps, 0.5, 1.0, 1.5, 2.0, 2.5, info.max]
    positive += [np.inf, np.nan, 88.7, 88.8, 103.9, 104.1, 709.7, 709.8, 744.0, 746.0, 2.0**23, 2.0**23 + 1]
    numbers = np.array(positive, dtype)
    return np.concatenate([numbers, -numbers, np.nextafter(numbers, dtype(0)), -np.nextafter(numbers, dtype(0))])


def _float_errors(ours: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Units in the last place of a float32; infinity counts as 2**128, NaN must meet NaN."""
    limit = 2.0**128
    exponent = np.frexp(np.clip(np.abs(reference), 2.0**-126, 2.0**127))[1] - 1
    with np.errstate(invalid="ignore"):  # signalling NaN
        wide = np.clip(ours.astype(np.float64), -limit, limit)
    errors = np.abs(wide - np.clip(reference, -limit, limit)) / np.ldexp(1.0, exponent - 23)
    both = np.isnan(ours) & np.isnan(reference)
    return np.where(both, 0.0, np.where(np.isnan(errors), np.inf, errors))


def _every_997th_float() -> np.ndarray:
    bits = np.arange(0, 1 << 32, 997, dtype=np.uint64).astype(np.uint32)
    return np.concatenate([bits.view(np.float32), _special(np.float32)])


@pytest.mark.parametrize("name", sorted(REFERENCE.keys() - {*ROUNDINGS}))
def test_floats_are_within_the_bound(name: str) -> None:
    x = _every_997th_float()
    reference = REFERENCE[name](torch.from_numpy(x).double()).numpy()
    errors = _float_errors(_apply(name, x), reference)
    worst = errors.argmax()
    assert errors[worst] <= ULP_BOUNDS[name][0], f"{name}({x[worst]!r}) is {reference[worst]!r}"


@pytest.mark.parametrize("name", sorted(EXACT))
def test_doubles_are_within_the_bound(name: str) -> None:
    x = _double_samples(name)
    results = _apply(name, x)
    with mpmath.workprec(200):
        errors = [_double_error(r, EXACT[name](mpmath.mpf(float(v)))) for r, v in zip(results, x)]
    worst = int(np.argmax(errors))
    assert errors[worst] <= ULP_BOUNDS[name][1], f"{name}({x[worst]!r}), not {results[worst]!r}"


def _double_samples(name: str, count: int = 300) -> np.ndarray:
    random = np.random.default_rng(0)
    kinds = [random.uniform(-width, width, count) for width in (1, 10, 50)]
    kinds.append(np.exp2(random.uniform(-60, 9.4, count)) * random.choice([-1, 1], count))
    kinds.append(np.exp2(random.uniform(-1074, -1000, count)))
    if name == "erfc":
        kinds.append(random.uniform(10, 27, count))
    if name in ("exp", "sigmoid", "softplus"):
        kinds.append(random.uniform(-746, -700, count))
    if name in ("sin", "cos"):
        # The last one comes nearer to a multiple of pi/2 than any other double.
        kinds += [np.exp2(random.uniform(0, 1023, count)), np.ldexp([6381956970095103.0], 797)]
    if name in ("log", "sqrt", "rsqrt"):
        kinds = [np.abs(x) for x in [*kinds, np.exp2(random.uniform(-1074, 1023, count))]]
    x = np.concatenate(kinds)
    return x[(x > -1) & (x != 0)] if name == "log1p" else x[x != 0]


def _double_error(result: float, exact: mpmath.mpf) -> float:
    if abs(exact) >= mpmath.ldexp(1, 1024):
        return 0.0 if np.isinf(result) else float("inf")
    exponent = -1022 if exact == 0 else max(mpmath.frexp(exact)[1] - 1, -1022)
    return float(abs(mpmath.mpf(float(result)) - exact) / mpmath.ldexp(1, exponent - 52))


@ELEMENTS
@pytest.mark.parametrize("name", sorted(REFERENCE))
def test_special_values(name: str, element: ir.Type) -> None:
    """At and to infinities, NaN and zeros the result is torch's, sign included."""
    x = _special(NUMPY[element])
    ours = _apply(name, x)
    with np.errstate(over="ignore"):
        torchs = REFERENCE[name](torch.from_numpy(x).double()).numpy().astype(x.dtype)
    np.testing.assert_array_equal(np.isnan(ours), np.isnan(torchs))
    # Where torch's own result underflows to 0, ours may be the denormal number that is right.
    edges = (np.isinf(torchs) | np.isinf(x) | (x == 0)) & ~np.isnan(torchs)
    np.testing.assert_array_equal(ours[edges], torchs[edges])
    np.testing.assert_array_equal(np.signbit(ours[edges]), np.signbit(torchs[edges]))


@ELEMENTS
@pytest.mark.parametrize("name", ROUNDINGS)
def test_roundings_are_exact(name: str, element: ir.Type) -> None:
    dtype = NUMPY[element]
    x = np.concatenate([np.arange(-40, 40, dtype=dtype) / 4, _special(dtype)])
    np.testing.assert_array_equal(_apply(name, x), REFERENCE[name](torch.from_numpy(x)).numpy())


@ELEMENTS
def test_power_has_the_special_cases_of_c(element: ir.Type) -> None:
    dtype = NUMPY[element]
    bases = np.array([0, 1, 0.5, 2, 3, 2.5, 1e-30, 1e30, 1e-40, np.inf, np.nan, 2.0**24 + 1], dtype)
    exponents = np.array([0, 1, 2, 3, 0.5, 7, 2.5, 1e-30, 1e30, np.inf, np.nan, 2.0**53 - 1, 2.0**53], dtype)
    pairs = np.meshgrid(np.concatenate([bases, -bases]), np.concatenate([exponents, -exponents]))
    x, y = (grid.ravel() for grid in pairs)
    with np.errstate(all="ignore"):
        expected = np.power(x.astype(np.float64), y.astype(np.float64)).astype(dtype)
    ours = _apply("pow", x, y)
    np.testing.assert_array_equal(np.isnan(ours), np.isnan(expected))
    edges = ~np.isfinite(expected) | (expected == 0) | (np.abs(expected) == 1)
    np.testing.assert_array_equal(ours[edges], expected[edges])
    np.testing.assert_array_equal(np.signbit(ours[~np.isnan(ours)]), np.signbit(expected[~np.isnan(ours)]))
    np.testing.assert_allclose(ours[~edges], expected[~edges], rtol=2 * np.finfo(dtype).eps)


def test_power_of_floats_is_within_the_bound() -> None:
    x, y = _power_samples(1 << 17, -149, 128, 105)
    x, y = x.astype(np.float32), y.astype(np.float32)
    errors = _float_errors(_apply("pow", x, y), np.power(x.astype(np.float64), y.astype(np.float64)))
    assert errors.max() <= ULP_BOUNDS["pow"][0]


def test_power_of_doubles_is_within_the_bound() -> None:
    x, y = _power_samples(1000, -1074, 1023, 740)
    with mpmath.workprec(200):
        exact = [mpmath.power(float(a), float(b)) for a, b in zip(x, y)]
        assert max(map(_double_error, _apply("pow", x, y), exact)) <= ULP_BOUNDS["pow"][1]


def _power_samples(count: int, low: int, high: int, logarithm: float) -> tuple[np.ndarray, np.ndarray]:
    """Far out and near 1, with exponents such that the power just fits."""
    random = np.random.default_rng(0)
    x = np.concatenate([np.exp2(random.uniform(low, high, count)), 1 + random.uniform(-0.01, 0.01, count)])
    return x, random.uniform(-1, 1, x.size) * logarithm / np.abs(np.log(x))


@ELEMENTS
def test_the_angle_has_the_special_cases_of_c(element: ir.Type) -> None:
    numbers = _special(NUMPY[element])
    y, x = (grid.ravel() for grid in np.meshgrid(numbers, numbers))
    expected, ours = np.arctan2(y, x), _apply("atan2", y, x)
    np.testing.assert_array_equal(np.isnan(ours), np.isnan(expected))
    edges = ~np.isfinite(x) | ~np.isfinite(y) | (x == 0) | (y == 0)
    np.testing.assert_array_equal(ours[edges], expected[edges])
    real = ~np.isnan(ours)
    np.testing.assert_array_equal(np.signbit(ours[real]), np.signbit(expected[real]))
    np.testing.assert_array_max_ulp(ours[real], expected[real], maxulp=2)


@ELEMENTS
def test_angles_are_within_the_bound(element: ir.Type) -> None:
    random = np.random.default_rng(0)
    y = np.exp2(random.uniform(-100, 100, 2000)) * random.choice([-1, 1], 2000)
    x = y * np.exp2(random.normal(0, 4, 2000)) * random.choice([-1, 1], 2000)
    y, x = y.astype(NUMPY[element]), x.astype(NUMPY[element])
    ours, bounds = _apply("atan2", y, x), ULP_BOUNDS["atan2"]
    if element is F32:
        assert _float_errors(ours, np.arctan2(y.astype(np.float64), x.astype(np.float64))).max() <= bounds[0]
        return
    with mpmath.workprec(200):
        exact = [mpmath.atan2(float(a), float(b)) for a, b in zip(y, x)]
        assert max(map(_double_error, ours, exact)) <= bounds[1]


@ELEMENTS
@pytest.mark.parametrize("lanes", [4, 16])
def test_width_of_the_vector_changes_no_bit(element: ir.Type, lanes: int) -> None:
    x, y = _any_numbers(element)
    for name in FUNCTIONS:
        narrow, wide = (_apply(name, x, y, lanes=count) for count in (lanes, 8))
        np.testing.assert_array_equal(narrow, wide, err_msg=name)


@ELEMENTS
def test_neighbours_change_no_bit(element: ir.Type) -> None:
    x, y = _any_numbers(element)
    order = np.random.default_rng(1).permutation(x.size)
    for name in FUNCTIONS:
        np.testing.assert_array_equal(_apply(name, x, y)[order], _apply(name, x[order], y[order]), err_msg=name)


@ELEMENTS
def test_inlining_changes_no_bit(element: ir.Type) -> None:
    x, y = _any_numbers(element)
    for name in FUNCTIONS:
        inlined = _apply(name, x, y, write=emit_inline)
        np.testing.assert_array_equal(_apply(name, x, y), inlined, err_msg=name)


def _any_numbers(element: ir.Type) -> tuple[np.ndarray, np.ndarray]:
    """Random bits, moderate numbers and special ones."""
    random = np.random.default_rng(0)
    dtype = NUMPY[element]
    bits = random.integers(0, 256, 4096 * np.dtype(dtype).itemsize, dtype=np.uint8)
    x = np.concatenate([bits.view(dtype), random.normal(0, 3, 4096).astype(dtype), _special(dtype)])
    return x, random.permutation(x)


@pytest.mark.parametrize("name", ["tanh", "erf", "sigmoid", "sin", "cos"])
def test_no_result_leaves_the_range(name: str) -> None:
    """The derivatives 1 - tanh**2 and s*(1 - s) must not become negative."""
    results = _apply(name, _every_997th_float())
    results = results[~np.isnan(results)]
    assert results.max() <= 1
    assert results.min() >= (0 if name == "sigmoid" else -1)


@ELEMENTS
@pytest.mark.parametrize("make", [avx2_target, avx512_target, neon_target])
def test_no_machine_needs_a_library(make, element: ir.Type) -> None:
    """Every function is instructions of the vector unit: no libm, no call for each lane."""
    target = make()
    module = new_module("vecmath", target)
    for name in FUNCTIONS:
        e = define(module, f"try_{name}", {"x": PTR, "y": PTR, "out": PTR}, target)
        values = [e.load_vector(p, element) for p in e.arguments[: ARGUMENTS[name]]]
        e.store_vector(emit(name, e.b, *values), e.arguments[2])
        e.done()
    names = re.findall(r"[\w.$]+", emit_assembly(module, target))
    library = {
        f"{name}{suffix}" for name in ("fma", "rint", "nearbyint", "floor", "sqrt", "trunc") for suffix in ("", "f")
    }
    assert not library & set(names)


def test_a_function_is_written_once_in_a_module() -> None:
    module = new_module("twice", host_target())
    first, second = (declare_in(module, "tanh", F32, 8) for _ in range(2))
    assert first is second
    assert declare_in(module, "tanh", F32, 4) is not first
    assert str(module).count("define internal") == 2


def test_scalars_are_refused() -> None:
    with pytest.raises(TypeError, match="vector math works on vectors of float or double, got the type float"):
        emit_inline("tanh", ir.IRBuilder(), ir.Constant(F32, 1.0))


def test_every_function_has_a_bound() -> None:
    assert ULP_BOUNDS.keys() == FUNCTIONS.keys() == ARGUMENTS.keys()
    assert max(map(max, ULP_BOUNDS.values())) <= 2
    assert CALLED.keys() < FUNCTIONS.keys()
