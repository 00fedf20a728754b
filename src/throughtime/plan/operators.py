"""What planning knows of operators. One it does not know is elementwise, of one addition per element."""

__all__ = ["BATCHED", "DIVISIONS", "PRODUCTS", "REDUCTIONS", "TRANSCENDENTAL", "VIEWS"]

PRODUCTS = frozenset({"mm", "bmm", "convolution", "convolution_backward"})
"""Are never computed again."""

BATCHED = PRODUCTS | {"embedding"}
"""Are worth a pass of their own over many steps, to which their operands are stored."""

REDUCTIONS = frozenset(
    {"sum", "amax", "amin", "prod", "argmax", "argmin", "cumsum", "cumprod", "cummax", "cummin", "logcumsumexp"}
    | {"gather", "index_select"}
)

VIEWS = frozenset({"view", "permute", "expand", "slice", "full", "constant", "pad", "windows"})
"""Cost nothing."""

TRANSCENDENTAL = frozenset(
    {"tanh", "sigmoid", "exp", "expm1", "log", "log1p", "log2", "erf", "erfc", "sin", "cos", "tan", "pow"}
    | {"asin", "acos", "atan", "atan2"}
)
DIVISIONS = frozenset({"div", "sqrt", "rsqrt", "reciprocal", "fmod", "remainder", "floor_divide", "trunc_divide"})
