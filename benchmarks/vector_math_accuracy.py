"""How accurate and how fast are our vector functions, beside PyTorch's in the same process?

float: the largest error in units in the last place over every float32 (`atan2`, `pow`: over random pairs), against
PyTorch's double. double: over random samples of several kinds, against mpmath. Speed: one thread, nanoseconds per
element of an array that fits into the cache, medians of processor time of interleaved runs.

    python benchmarks/vector_math_accuracy.py                       # everything; some minutes
    python benchmarks/vector_math_accuracy.py --stride 997 tanh exp # every 997th float, two functions
"""

import argparse
import ctypes
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import mpmath
import numpy as np
import torch
from llvmlite import ir

from throughtime.loop.native.ir import F32, F64, I64, PTR, define, new_module
from throughtime.loop.native.jit import compile_module
from throughtime.loop.native.target import host_target
from throughtime.loop.native.vecmath import ARGUMENTS, FUNCTIONS, ULP_BOUNDS, emit
from throughtime.loop.native.vecmath.lanes import FLOAT64, Lanes, is_nan, where

CHUNK = 1 << 16
TIMED = 1 << 14
PAIRS = 10**7
Run = Callable[..., None]

TORCH: dict[str, Callable[..., torch.Tensor]] = {
    name: getattr(torch, name) for name in FUNCTIONS if name != "softplus"
} | {"softplus": torch.nn.functional.softplus}

# torch's softplus is x from 20 on, also for doubles.
REFERENCE = TORCH | {"softplus": lambda x: torch.logaddexp(x, torch.zeros((), dtype=x.dtype))}

EXACT = {
    name: getattr(mpmath, name)
    for name in ("atan", "atan2", "cos", "erf", "erfc", "exp", "expm1", "log", "log1p", "sin", "sqrt", "tanh")
} | {
    "pow": mpmath.power,
    "rsqrt": lambda x: 1 / mpmath.sqrt(x),
    "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)),
    "softplus": lambda x: mpmath.log1p(mpmath.exp(x)),
}


def compile_function(name: str, element: ir.Type) -> Run:
    """A loop of whole vectors: run(address of each input, address of the output, count)."""
    target = host_target()
    module = new_module("vector_math", target)
    arguments = {f"x{i}": PTR for i in range(ARGUMENTS[name])}
    emitter = define(module, "run", arguments | {"out": PTR, "count": I64}, target)
    *xs, out, count = emitter.arguments

    def body(index: ir.Value, _: list[ir.Value]) -> None:
        values = [emitter.load_vector(x, element, index=index) for x in xs]
        emitter.store_vector(emit(name, emitter.b, *values), out, index=index)

    emitter.loop(count, body, step=emitter.lanes(element))
    emitter.done()
    addresses = [ctypes.c_void_p] * (len(xs) + 1)
    return compile_module(module, target).function("run", *addresses, ctypes.c_int64)


def apply(run: Run, inputs: Sequence[np.ndarray]) -> np.ndarray:
    result = np.empty_like(inputs[0])
    assert result.size % 16 == 0, "the loop takes whole vectors only"
    run(*(x.ctypes.data for x in inputs), result.ctypes.data, result.size)
    return result


def compile_error() -> Run:
    """run(ours, reference, error of each, count), with the errors of `float_error`."""
    target = host_target()
    module = new_module("float_error", target)
    emitter = define(module, "run", {"ours": PTR, "reference": PTR, "errors": PTR, "count": I64}, target)
    ours, reference, errors, count = emitter.arguments
    lanes = emitter.lanes(F64)

    def body(index: ir.Value, _: list[ir.Value]) -> None:
        got = Lanes(emitter.b, emitter.load_vector(ours, F32, index=index, lanes=lanes))
        wanted = Lanes(emitter.b, emitter.load_vector(reference, F64, index=index))
        emitter.store_vector(float_error(got.to(FLOAT64), wanted).value, errors, index=index)

    emitter.loop(count, body, step=lanes)
    emitter.done()
    return compile_module(module, target).function("run", *[ctypes.c_void_p] * 3, ctypes.c_int64)


def float_error(ours: Lanes, reference: Lanes) -> Lanes:
    """|ours - reference| in units in the last place of a float32; infinity counts as 2**128; NaN must meet NaN."""
    limit = 2.0**128
    power = reference.abs().at_least(2.0**-126).at_most(2.0**127).as_bits() & (0x7FF << 52)
    ulps_in_one = ((2046 << 52) - power).as_float() * 2.0**23
    difference = ours.at_least(-limit).at_most(limit) - reference.at_least(-limit).at_most(limit)
    infinite = where(is_nan(ours), where(is_nan(reference), ours.splat(0.0), math.inf), math.inf)
    return where(is_nan(difference), infinite, difference.abs() * ulps_in_one)


def float_inputs(name: str, stride: int) -> Iterator[tuple[np.ndarray, ...]]:
    """Every `stride`-th float32 in chunks, or pairs."""
    if ARGUMENTS[name] == 2:
        random = np.random.default_rng(0)
        for _ in range(0, PAIRS // stride, CHUNK):
            x = np.exp2(random.uniform(-149, 128, CHUNK))
            with np.errstate(over="ignore"):
                yield x.astype(np.float32), second_argument(name, x, 105, random).astype(np.float32)
        return
    steps = np.arange(0, CHUNK * stride, stride, dtype=np.uint64).astype(np.uint32)
    for first in range(0, 1 << 32, CHUNK * stride):
        # The last chunk may run over into the first numbers again.
        yield ((steps + np.uint32(first)).view(np.float32),)


def second_argument(name: str, x: np.ndarray, logarithm: float, random: np.random.Generator) -> np.ndarray:
    """An exponent whose power is neither 0 nor infinite, or an abscissa of the same order."""
    if name == "pow":
        return random.uniform(-1, 1, x.size) * logarithm / np.maximum(np.abs(np.log(x)), 1e-300)
    return x * np.exp2(random.normal(0, 4, x.size)) * random.choice([-1, 1], x.size)


def largest_float_error(name: str, stride: int) -> tuple[float, float]:
    """The largest error of our function, and the input where it is."""
    run, measure = compile_function(name, F32), compile_error()
    errors = np.empty(CHUNK)
    worst, place = 0.0, 0.0
    chunks = max(1, (PAIRS if ARGUMENTS[name] == 2 else 1 << 32) // (CHUNK * stride))
    for done, inputs in enumerate(float_inputs(name, stride)):
        show_progress(name, done, chunks)
        reference = REFERENCE[name](*(torch.from_numpy(x).double() for x in inputs))
        ours = apply(run, inputs)
        measure(ours.ctypes.data, reference.data_ptr(), errors.ctypes.data, CHUNK)
        if errors.max() > worst:
            worst, place = float(errors.max()), float(inputs[0][errors.argmax()])
    return worst, place


def show_progress(name: str, done: int, chunks: int) -> None:
    if sys.stderr.isatty() and done % 256 == 0:
        print(f"\r{name:9s} {100 * done // chunks:3d} %", end="", file=sys.stderr, flush=True)


def double_inputs(name: str, count: int) -> list[np.ndarray]:
    """Numbers near zero and far out; positive ones, beyond -1 or enormous ones as the function has it."""
    random = np.random.default_rng(0)
    kinds = [random.uniform(-width, width, count) for width in (1, 10, 50)]
    kinds.append(np.exp2(random.uniform(-60, 9.4, count)) * random.choice([-1, 1], count))
    if name in ("sin", "cos"):
        kinds.append(np.exp2(random.uniform(0, 1023, count)))
        kinds.append(np.arange(1, count) * np.pi / 2)
    if name in ("log", "sqrt", "rsqrt", "pow", "atan2"):
        kinds.append(np.exp2(random.uniform(-1074, 1023, count)))
        kinds = [np.abs(kind) for kind in kinds]
    x = np.concatenate(kinds)
    x = x[(x > -1) & (x != 0)] if name == "log1p" else x[x != 0]
    x = np.resize(x, -(-x.size // 16) * 16)
    return [x] if ARGUMENTS[name] == 1 else [x, second_argument(name, x, 740, random)]


def largest_double_error(name: str, count: int) -> float:
    inputs = double_inputs(name, count)
    results = apply(compile_function(name, F64), inputs)
    with mpmath.workprec(200):
        return max(double_error(name, float(result), *map(float, xs)) for result, *xs in zip(results, *inputs))


def double_error(name: str, result: float, *xs: float) -> float:
    exact = EXACT[name](*(mpmath.mpf(x) for x in xs))
    if abs(exact) >= mpmath.ldexp(1, 1024):
        return 0.0 if np.isinf(result) else float("inf")
    exponent = -1022 if exact == 0 else max(mpmath.frexp(exact)[1] - 1, -1022)
    return float(abs(mpmath.mpf(result) - exact) / mpmath.ldexp(1, exponent - 52))


def speeds(name: str, element: ir.Type) -> tuple[float, float]:
    """Nanoseconds per element of ours and of torch's."""
    dtype = np.float32 if element is F32 else np.float64
    random = np.random.default_rng(0)
    low = 0.01 if name in ("log", "log1p", "pow", "rsqrt", "sqrt") else -4.0
    inputs = [random.uniform(low, 4.0, TIMED).astype(dtype) for _ in range(ARGUMENTS[name])]
    tensors = [torch.from_numpy(x) for x in inputs]
    run = compile_function(name, element)
    out = np.empty_like(inputs[0])
    addresses = [x.ctypes.data for x in (*inputs, out)]
    rivals = (lambda: run(*addresses, TIMED), lambda: TORCH[name](*tensors))
    rounds = [[seconds(run) for run in rivals] for _ in range(31)]
    mine, theirs = (statistics.median(times) * 1e9 / TIMED for times in zip(*rounds))
    return mine, theirs


def seconds(run: Callable[[], object], repeats: int = 10) -> float:
    start = time.thread_time()
    for _ in range(repeats):
        run()
    return (time.thread_time() - start) / repeats


def print_row(name: str, stride: int, samples: int) -> bool:
    """Measure one function; False if it misses its bound."""
    threads = torch.get_num_threads()
    worst_float, place = largest_float_error(name, stride)
    double = largest_double_error(name, samples) if name in EXACT else 0.0
    torch.set_num_threads(1)
    (float_ours, float_torch), (double_ours, double_torch) = speeds(name, F32), speeds(name, F64)
    torch.set_num_threads(threads)
    float_bound, double_bound = ULP_BOUNDS[name]
    print(
        f"\r| {name} | {worst_float:.3f} (bound {float_bound}) at {place:.9g} | {double:.3f} (bound {double_bound}) "
        f"| {float_ours:.2f} / {float_torch:.2f} | {double_ours:.2f} / {double_torch:.2f} |",
        flush=True,
    )
    return worst_float <= float_bound and double <= double_bound


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("functions", nargs="*", choices=[[], *FUNCTIONS], metavar="function", default=[])
    parser.add_argument("--stride", type=int, default=1, help="take every n-th float32 only")
    parser.add_argument("--samples", type=int, default=3000, help="doubles of each kind")
    options = parser.parse_args()
    print("| function | float: ulp | double: ulp | float: ns, ours / torch | double: ns, ours / torch |")
    print("|---|---|---|---|---|")
    rows = [print_row(name, options.stride, options.samples) for name in options.functions or FUNCTIONS]
    return 0 if all(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
