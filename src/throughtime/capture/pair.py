"""Nodes of a step and its gradient, together -> StepPair. Names, order, and what a gradient may be."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from throughtime._errors import CaptureError
from throughtime.capture.graph import ROWS, Input, Node, Ref, StepGraph, StepPair

__all__ = ["Results", "make_pair"]


@dataclass(frozen=True, slots=True)
class Results:
    """Names of the values that the step and its gradient give."""

    ys: tuple[str, ...]
    next_carry: tuple[str, ...]
    gradients: dict[str, str]
    """Of an input, by its name."""


def make_pair(inputs: Sequence[Input], nodes: Sequence[Node], results: Results) -> StepPair:
    """Without what nobody needs, forward nodes first, with readable names."""
    forward = _ancestors(nodes, [*results.ys, *results.next_carry])
    alive = forward | _ancestors(nodes, results.gradients.values())
    ordered = [n for n in nodes if n.name in forward] + [n for n in nodes if n.name in alive - forward]
    outside = [i for i in inputs if i.kind != "noise" or i.name in alive]
    names = _readable(outside, ordered)
    renamed = [_renamed(n, names) for n in ordered]
    step = StepGraph(
        tuple(i for i in outside if i.kind not in ("d_ys", "d_next_carry")),
        tuple(renamed[: len(forward & {n.name for n in nodes})]),
        tuple(names[n] for n in results.ys),
        tuple(names[n] for n in results.next_carry),
    )
    pair = StepPair(
        step,
        tuple(i for i in outside if i.kind in ("d_ys", "d_next_carry")),
        tuple(renamed[len(step.nodes) :]),
        *(_gradients_of(step, kind, results.gradients, names) for kind in ("const", "row_const", "xs", "carry")),
    )
    _check_gradients(pair)
    return pair


def _ancestors(nodes: Sequence[Node], wanted: Iterable[str]) -> set[str]:
    """Names of inputs and nodes that these depend on, themselves included."""
    found = set(wanted)
    for node in reversed(nodes):
        if node.name in found:
            found.update(node.operands)
    return found


def _readable(inputs: Sequence[Input], nodes: Sequence[Node]) -> dict[str, str]:
    """`tanh_2` for the second tanh."""
    names = {i.name: i.name for i in inputs}
    taken = set(names)
    counts: dict[str, int] = {}
    for node in nodes:
        op = node.op.replace("::", "_").replace(".", "_")
        while True:
            counts[op] = counts.get(op, 0) + 1
            name = f"{op}_{counts[op]}"
            if name not in taken:
                break
        names[node.name] = name
    return names


def _renamed(node: Node, names: dict[str, str]) -> Node:
    def rename(argument: Any) -> Any:
        if isinstance(argument, Ref):
            return Ref(names[argument.name])
        return tuple(map(rename, argument)) if isinstance(argument, tuple) else argument

    return replace(node, name=names[node.name], args=rename(node.args))


def _gradients_of(
    step: StepGraph, kind: Any, gradients: dict[str, str], names: dict[str, str]
) -> tuple[str | None, ...]:
    return tuple(names[gradients[i.name]] if i.name in gradients else None for i in step.of_kind(kind))


_KEEPS_SUMS = {
    *("neg", "view", "permute", "expand", "slice", "sum", "to_dtype", "tril", "triu", "diagonal", "flip", "cat", "add"),
    *("sub", "cumsum"),
}
_LINEAR_IN_ONE = {"mul", "mm", "bmm", "embedding", "index_select", "index_add", "index_copy"}


def _check_gradients(pair: StepPair) -> None:
    """The gradient of a const must be a sum over rows, and of nothing else may it be made of other rows."""
    values: dict[str, Input | Node] = {i.name: i for i in (*pair.forward.inputs, *pair.backward_inputs)}
    values |= {n.name: n for n in (*pair.forward.nodes, *pair.backward_nodes)}
    summed: set[str] = set()
    for node in pair.backward_nodes:
        from_sums = [name for name in node.operands if name in summed]
        if from_sums:
            _check_linear(node, from_sums, values)
        if from_sums or _sums_rows(node, values):
            summed.add(node.name)


def _sums_rows(node: Node, values: dict[str, Input | Node]) -> bool:
    return ROWS not in node.shape and any(ROWS in values[name].shape for name in node.operands)


def _check_linear(node: Node, from_sums: Sequence[str], values: dict[str, Input | Node]) -> None:
    if ROWS in node.shape:
        raise CaptureError(
            f"the gradient of one row is made from those of the other rows (at {node.op}), as a custom autograd "
            "function may do, but each row runs on its own. Leave the sum over the batch to the loop."
        )
    others_cancel = all(n in from_sums or _is_zero(values[n]) for n in node.operands)
    linear = (node.op in _KEEPS_SUMS and others_cancel) or (node.op in _LINEAR_IN_ONE and len(from_sums) == 1)
    linear = linear or (node.op == "div" and list(from_sums) == [getattr(node.args[0], "name", None)])
    linear = linear or (node.op == "where" and _chooses_linearly(node, from_sums, values))
    if not linear and not (node.op in ("add", "sub") and _with_zero(node)):
        raise CaptureError(
            f"the gradient of a tensor that the rows share goes through {node.op} after its sum over the rows, which "
            "is not the sum of what each row and step gives. Apply it to the gradient after the call instead."
        )


def _is_zero(value: Input | Node) -> bool:
    return isinstance(value, Node) and value.op == "full" and value.attributes["value"] == 0


def _with_zero(node: Node) -> bool:
    return all(isinstance(a, Ref) or a == 0 for a in node.args) and not node.operands[1:]


def _chooses_linearly(node: Node, from_sums: Sequence[str], values: dict[str, Input | Node]) -> bool:
    condition, *choices = node.args
    free = condition.name not in from_sums
    return free and all(
        c.name in from_sums or _is_zero(values[c.name]) if isinstance(c, Ref) else c == 0 for c in choices
    )
