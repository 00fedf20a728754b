"""Values made inside the step: filled tensors, small tables, random numbers."""

from typing import Any

import torch

from throughtime.capture.rows import FRONT, MixedRows, row_axis
from throughtime.capture.rules.table import rule
from throughtime.capture.tape import Call
from throughtime.capture.values import Value, Values

__all__ = ["LARGEST_TABLE", "ROW_NUMBERS", "constant"]

LARGEST_TABLE = 4096
ROW_NUMBERS = "row_numbers"
"""`arange(batch size)`, which may only serve to say that each row is indexed by its own: x[arange(B), index]."""


@rule("full", "new_full", "full_like")
def _full(v: Values, call: Call, *args: Any, **kwargs: Any) -> Value:
    value = args[2] if call.name == "new_full" else args[1]
    return v.full(call.result.shape, v.plain(value), call.result.dtype)


@rule("fill")
def _fill(v: Values, call: Call, x: Value, value: Any) -> Value:
    if not isinstance(value, Value):
        return v.full(x.sizes, v.plain(value), x.dtype)
    return v.expand(v.cast(value, x.dtype), x.sizes)


@rule("scalar_tensor")
def _scalar(v: Values, call: Call, value: Any, **_: Any) -> Value:
    return v.full((), v.plain(value), call.result.dtype)


@rule("zeros", "zeros_like", "new_zeros", "zero", "_efficientzerotensor")
def _zeros(v: Values, call: Call, *_: Any, **__: Any) -> Value:
    return v.full(call.result.shape, 0, call.result.dtype)


@rule("ones", "ones_like", "new_ones")
def _ones(v: Values, call: Call, *_: Any, **__: Any) -> Value:
    return v.full(call.result.shape, 1, call.result.dtype)


@rule("empty", "empty_like", "new_empty", "new_empty_strided", "empty_strided", "empty_permuted")
def _empty(v: Values, call: Call, *_: Any, **__: Any) -> Value:
    """What is read before it is written is nobody's number: zero is one of those it may be."""
    return v.full(call.result.shape, 0, call.result.dtype)


@rule("arange", "eye", "linspace", "logspace", "tril_indices", "triu_indices", "hann_window")
def _table(v: Values, call: Call, *args: Any, **kwargs: Any) -> Value:
    if row_axis(call.result.shape, v.rows) is None:
        return constant(v, _on_cpu(call.operator, args, kwargs))
    if call.name == "arange" and tuple(call.result.shape) == (v.rows,) and args[-1] in (1, v.rows):
        return v.emit(ROW_NUMBERS, (), (v.rows,), FRONT, call.result.dtype)
    raise MixedRows("it numbers the rows")


def _on_cpu(operator: Any, args: Any, kwargs: Any) -> torch.Tensor:
    return operator(*args, **{**kwargs, "device": torch.device("cpu")})


@rule("lift_fresh", "lift_fresh_copy")
def _lift(v: Values, call: Call, x: Any) -> Value:
    return x if isinstance(x, Value) else constant(v, x)


def constant(v: Values, table: torch.Tensor) -> Value:
    """A tensor whose numbers are known while tracing."""
    if table.numel() > LARGEST_TABLE:
        raise MixedRows(
            f"it makes a table of {table.numel()} numbers at each step; keep it as an attribute of the cell "
            f"(up to {LARGEST_TABLE} may stand in the step)"
        )
    numbers = table.reshape(-1).tolist()
    if numbers and all(n == numbers[0] for n in numbers):
        return v.full(tuple(table.shape), numbers[0], table.dtype)
    return v.emit("constant", (), tuple(table.shape), None, table.dtype, data=_tuples(table.tolist()))


def _tuples(data: Any) -> Any:
    return tuple(_tuples(d) for d in data) if isinstance(data, list) else data


@rule("native_dropout")
def _dropout(v: Values, call: Call, x: Value, p: float, train: bool | None) -> list[Value]:
    ones = v.full(x.sizes, True, torch.bool)
    if train is False or p == 0:
        return [x, ones]
    noise = v.noise(x.sizes, "uniform", _noise_dtype(x.dtype))
    keep = v.pointwise("lt", noise, 1.0 - p, dtype=torch.bool, within=noise.dtype)
    scale = 1.0 / (1.0 - p) if p < 1 else 0.0
    factor = v.pointwise("mul", v.cast(keep, x.dtype), scale, dtype=x.dtype)
    return [v.pointwise("mul", x, factor, dtype=x.dtype), keep]


@rule("native_dropout_backward")
def _dropout_backward(v: Values, call: Call, d_y: Value, keep: Value, scale: float) -> Value:
    factor = v.pointwise("mul", v.cast(keep, d_y.dtype), scale, dtype=d_y.dtype)
    return v.pointwise("mul", d_y, factor, dtype=d_y.dtype)


def _noise_dtype(dtype: torch.dtype) -> torch.dtype:
    """Noise is drawn in single precision, or in double for doubles."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _uniform(v: Values, call: Call) -> Value:
    return v.cast(v.noise(call.result.shape, "uniform", _noise_dtype(call.result.dtype)), call.result.dtype)


def _normal(v: Values, call: Call) -> Value:
    return v.cast(v.noise(call.result.shape, "normal", _noise_dtype(call.result.dtype)), call.result.dtype)


@rule("rand", "rand_like")
def _rand(v: Values, call: Call, *_: Any, **__: Any) -> Value:
    return _uniform(v, call)


@rule("randn", "randn_like")
def _randn(v: Values, call: Call, *_: Any, **__: Any) -> Value:
    return _normal(v, call)


@rule("bernoulli")
def _bernoulli(v: Values, call: Call, x: Value, p: Any = None, generator: Any = None) -> Value:
    """With `p`, x says only the shape; without, the probabilities."""
    probability = x if p is None else p
    noise = v.noise(call.result.shape, "uniform", _noise_dtype(call.result.dtype))
    below = v.pointwise("lt", noise, probability, dtype=torch.bool, within=noise.dtype)
    return v.cast(below, call.result.dtype)


@rule("uniform")
def _uniform_between(
    v: Values, call: Call, x: Value, low: float = 0.0, high: float = 1.0, generator: Any = None
) -> Value:
    dtype = call.result.dtype
    scaled = v.pointwise("mul", _uniform(v, call), high - low, dtype=dtype)
    return v.pointwise("add", scaled, low, dtype=dtype)


@rule("normal_functional", "normal")
def _normal_about(v: Values, call: Call, x: Any, mean: Any = 0.0, std: Any = 1.0, **_: Any) -> Value:
    """`normal(mean, std)`, of which either may be a tensor, or `x.normal_(mean, std)`."""
    if call.name == "normal":
        mean, std = x, (1.0 if mean == 0.0 and len(call.args) < 2 else mean)
    dtype = call.result.dtype
    scaled = v.pointwise("mul", _normal(v, call), std, dtype=dtype)
    return v.pointwise("add", scaled, mean, dtype=dtype)


@rule("exponential")
def _exponential(v: Values, call: Call, x: Value, rate: float = 1.0, generator: Any = None) -> Value:
    """-log(1 - u) / rate, and never zero, of which a Gumbel number is the logarithm."""
    dtype = call.result.dtype
    minus = v.pointwise("neg", _uniform(v, call), dtype=dtype)
    log = v.pointwise("log1p", minus, dtype=dtype)
    most = -torch.finfo(_noise_dtype(dtype)).eps / 2
    return v.pointwise("div", v.pointwise("minimum", log, most, dtype=dtype), -rate, dtype=dtype)


@rule("randint", "randint_like")
def _randint(v: Values, call: Call, *args: Any, **_: Any) -> Value:
    numbers = [v.plain(a) for a in args if isinstance(a, int)]
    low, high = numbers if len(numbers) == 2 else (0, numbers[0])
    noise = v.noise(call.result.shape, "uniform", torch.float64)
    scaled = v.pointwise("mul", noise, high - low, dtype=noise.dtype)
    whole = v.pointwise("floor", scaled, dtype=noise.dtype)
    return v.cast(v.pointwise("add", whole, low, dtype=noise.dtype), call.result.dtype)
