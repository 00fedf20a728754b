"""A function's name and LLVM vectors -> its value in every lane, within `ULP_BOUNDS` of the true one.

Every function is straight-line code, the same instructions for every lane: a result depends neither on its
neighbours nor on where in a row it stands. No fast-math flags; infinities, NaN, signed zeros and denormal numbers
come out as IEEE and C have them. `benchmarks/vector_math_accuracy.py` measures the bounds over every float32.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from throughtime.loop.native.vecmath.arctangent import atan, atan2
from throughtime.loop.native.vecmath.error_function import erf, erfc
from throughtime.loop.native.vecmath.exponential import exp, expm1, sigmoid, tanh
from throughtime.loop.native.vecmath.lanes import Lanes, format_of, intrinsic
from throughtime.loop.native.vecmath.logarithm import log, log1p, softplus
from throughtime.loop.native.vecmath.power import power, rsqrt, sqrt
from throughtime.loop.native.vecmath.trigonometric import cos, sin

__all__ = ["ARGUMENTS", "FUNCTIONS", "ULP_BOUNDS", "declare_in", "emit", "emit_inline"]

Emit = Callable[..., Lanes]


def _hardware(name: str) -> Emit:
    return lambda x: intrinsic(name, x)


# One or two instructions, written where they are needed.
INSTRUCTIONS: dict[str, Emit] = {
    "abs": _hardware("fabs"),
    "ceil": _hardware("ceil"),
    "floor": _hardware("floor"),
    # Halves go to the even neighbour, as torch.round has it.
    "round": _hardware("nearbyint"),
    "rsqrt": rsqrt,
    "sqrt": sqrt,
    "trunc": _hardware("trunc"),
}
# Written once in a module and inlined: a call costs 20 to 70 % of the time of these, an inlined copy 2 to 3 ms of
# compilation (AVX2, float).
INLINED: dict[str, Emit] = {
    "erf": erf,
    "exp": exp,
    "expm1": expm1,
    "log": log,
    "sigmoid": sigmoid,
    "tanh": tanh,
}
# Written once in a module and called: a call costs 0 to 10 % of the time of these, an inlined copy 5 to 7 ms.
CALLED: dict[str, Emit] = {
    "atan": atan,
    "atan2": atan2,
    "cos": cos,
    "erfc": erfc,
    "log1p": log1p,
    "pow": power,
    "sin": sin,
    "softplus": softplus,
}
FUNCTIONS: dict[str, Emit] = dict(sorted((INSTRUCTIONS | INLINED | CALLED).items()))
ARGUMENTS: dict[str, int] = {name: 2 if name in ("atan2", "pow") else 1 for name in FUNCTIONS}

# Units in the last place, of float and of double. The first is what every float32 gave (atan2, pow: 10**7 pairs),
# rounded up; the second is above what random doubles gave (two million of most, ten thousand of atan2, erf, erfc, pow).
ULP_BOUNDS: dict[str, tuple[float, float]] = {
    "abs": (0.0, 0.0),
    "atan": (0.51, 1.5),
    "atan2": (0.51, 1.6),
    "ceil": (0.0, 0.0),
    "cos": (0.51, 0.9),
    "erf": (0.99, 1.0),
    "erfc": (0.51, 1.8),
    "exp": (1.05, 1.1),
    "expm1": (1.6, 1.9),
    "floor": (0.0, 0.0),
    "log": (0.85, 0.9),
    "log1p": (1.4, 1.4),
    "pow": (0.51, 1.2),
    "round": (0.0, 0.0),
    "rsqrt": (1.5, 1.5),
    "sigmoid": (1.8, 1.9),
    "sin": (0.51, 0.9),
    "softplus": (1.7, 1.8),
    "sqrt": (0.5, 0.5),
    "tanh": (1.36, 1.4),
    "trunc": (0.0, 0.0),
}


def emit(name: str, builder: ir.IRBuilder, *arguments: Any) -> Any:
    """The value of the function, in the way that is best for it."""
    if name in INSTRUCTIONS:
        return emit_inline(name, builder, *arguments)
    vector = arguments[0].type
    return builder.call(declare_in(builder.module, name, vector.element, vector.count), arguments)


def emit_inline(name: str, builder: ir.IRBuilder, *arguments: Any) -> Any:
    """Write the function's instructions where the builder stands."""
    return FUNCTIONS[name](*(Lanes(builder, argument) for argument in arguments)).value


def declare_in(module: ir.Module, name: str, element_type: ir.Type, lanes: int) -> ir.Function:
    """The function of vectors as an internal function of the module, written at its first use."""
    vector = ir.VectorType(element_type, lanes)
    symbol = f"vecmath.{name}.v{lanes}{format_of(vector).name}"
    if symbol in module.globals:
        return module.globals[symbol]
    function = ir.Function(module, ir.FunctionType(vector, [vector] * ARGUMENTS[name]), name=symbol)
    function.linkage = "internal"
    function.attributes.add("nounwind")
    function.attributes.add("noinline" if name in CALLED else "alwaysinline")
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    builder.ret(emit_inline(name, builder, *function.args))
    return function
