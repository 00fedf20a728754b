"""Tape -> nodes. Each operator by its rule; an operator that mixes rows, or has no rule for them, is refused."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from throughtime._errors import CaptureError
from throughtime._nested import leaves, map_leaves
from throughtime.capture.refusals import mistakes_told
from throughtime.capture.rows import MixedRows
from throughtime.capture.rules import RULES
from throughtime.capture.rules.indexing import kept
from throughtime.capture.tape import Call, shown_line
from throughtime.capture.values import Value, Values

__all__ = ["lower"]

RANDOM = ("poisson", "multinomial", "randperm", "binomial", "geometric", "cauchy", "log_normal", "_standard_gamma")


def lower(
    calls: Sequence[Call], values: Values, known: dict[int, Value], forward: Sequence[Tensor], wanted: Sequence[Tensor]
) -> None:
    """Adds to `known` (by `id`) the value of every tensor that `wanted` needs; `forward` are those of the step."""
    step = _needed(calls, forward)
    needed = _needed(calls, [*forward, *wanted])
    for i, call in enumerate(calls):
        if i in needed:
            values.backward = i not in step
            _lower_call(call, values, known)


def _needed(calls: Sequence[Call], outputs: Sequence[Tensor]) -> set[int]:
    """Positions of the calls that the outputs depend on."""
    wanted = {id(t) for t in outputs}
    found: set[int] = set()
    for i in range(len(calls) - 1, -1, -1):
        if any(id(t) in wanted for t in calls[i].made()):
            found.add(i)
            wanted.update(id(t) for t in calls[i].read())
    return found


def _lower_call(call: Call, values: Values, known: dict[int, Value]) -> None:
    def lookup(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return known.get(id(leaf), leaf)

    if call.kwargs.get("generator") is not None:
        raise CaptureError(
            f"{call.name} draws from a torch.Generator of its own, but a step is run many times in an order of the "
            f"loop's own. Leave generator= out and call torch.manual_seed before the run.{shown_line(call.line)}"
        )
    args, kwargs = map_leaves(lookup, (call.args, call.kwargs))
    apply = RULES.get(call.name) or _without_rule
    with mistakes_told(f"capture of {call.name}", call.line):
        try:
            made = apply(values, call, *args, **kwargs)
        except MixedRows as reason:
            raise CaptureError(f"{call.name} cannot run row by row: {reason}.{shown_line(call.line)}") from None
        results = [made] if isinstance(made, Value) else made
        for tensor, value in zip(leaves(call.result), results, strict=True):
            if isinstance(tensor, Tensor) and value is not None:
                _check(call, tensor, value)
                known[id(tensor)] = value


def _check(call: Call, tensor: Tensor, value: Value) -> None:
    assert value.sizes == tuple(tensor.shape), f"{call.name}: {value.sizes} for {tuple(tensor.shape)}"
    assert value.dtype == tensor.dtype, f"{call.name}: {value.dtype} for {tensor.dtype}"


def _without_rule(values: Values, call: Call, *args: Any, **kwargs: Any) -> Any:
    """An operator without a rule may work on what all rows share."""
    if call.name.startswith(RANDOM):
        raise MixedRows("there is no rule for this random operator; draw from torch.rand or torch.randn instead")
    operands = [a for a in leaves((args, kwargs)) if isinstance(a, Value)]
    if any(a.place is not None for a in operands) or not operands:
        raise MixedRows("there is no rule for this operator on values of a row, so it is not known to keep rows apart")
    if any(values.rows_in(r) for r in call.made()):
        raise MixedRows("it makes rows out of what all rows share, and there is no rule for it")
    return kept(values, call, args, kwargs, None)
