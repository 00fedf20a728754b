"""A function's name and LLVM vectors -> its value in every lane, to 2 units in the last place or what `ULP_BOUNDS` says.

Every function is straight-line code, the same instructions for every lane: an element's result depends neither on its
neighbours nor on where in a row it stands. No fast-math flags; infinities, NaN, signed zeros and denormal numbers come out as
IEEE and C have them. Measured by `benchmarks/vector_math_accuracy.py` over every float32.
"""

from collections.abc import Callable

from llvmlite import ir

from throughtime.loop.native.vecmath.error_function import erf
from throughtime.loop.native.vecmath.exponential import exp, expm1, sigmoid, tanh
from throughtime.loop.native.vecmath.lanes import Lanes, format_of, intrinsic
from throughtime.loop.native.vecmath.logarithm import log, log1p, softplus
from throughtime.loop.native.vecmath.power import power, rsqrt, sqrt
from throughtime.loop.native.vecmath.trigonometric import cos, sin

__all__ = ["FUNCTIONS", "ULP_BOUNDS", "declare_in", "emit", "emit_inline"]


def _hardware(name: str) -> Callable[[Lanes], Lanes]:
    return lambda x: intrinsic(name, x)


FUNCTIONS: dict[str, Callable[..., Lanes]] = {
    "abs": _hardware("fabs"),
    "ceil": _hardware("ceil"),
    "cos": cos,
    "erf": erf,
    "exp": exp,
    "expm1": expm1,
    "floor": _hardware("floor"),
    "log": log,
    "log1p": log1p,
    "pow": power,
    # Halves go to the even neighbour, as torch.round has it.
    "round": _hardware("nearbyint"),
    "rsqrt": rsqrt,
    "sigmoid": sigmoid,
    "sin": sin,
    "softplus": softplus,
    "sqrt": sqrt,
    "tanh": tanh,
    "trunc": _hardware("trunc"),
}

ULP_BOUNDS: dict[str, float] = {}

_ARGUMENTS = {"pow": 2}


def emit_inline(name: str, builder: ir.IRBuilder, *arguments: ir.Value) -> ir.Value:
    """Write the function's instructions where the builder stands."""
    return FUNCTIONS[name](*(Lanes(builder, argument) for argument in arguments)).value


def declare_in(module: ir.Module, name: str, element_type: ir.Type, lanes: int) -> ir.Function:
    """The function as an internal one of the module, written at its first use."""
    vector = ir.VectorType(element_type, lanes)
    symbol = f"vecmath.{name}.v{lanes}{format_of(vector).name}"
    if symbol in module.globals:
        return module.globals[symbol]
    signature = ir.FunctionType(vector, [vector] * _ARGUMENTS.get(name, 1))
    function = ir.Function(module, signature, name=symbol)
    function.linkage = "internal"
    function.attributes.add("nounwind")
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    builder.ret(emit_inline(name, builder, *function.args))
    return function


emit = emit_inline
