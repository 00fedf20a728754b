"""Nodes of a step and its gradient, together -> StepPair. Names, order, and what a gradient may be."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from throughtime._errors import CaptureError
from throughtime.capture.graph import Input, Node, Ref, StepGraph, StepPair
from throughtime.capture.rules.making import ROW_NUMBERS

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
    if any(n.op == ROW_NUMBERS for n in ordered):
        raise CaptureError(
            "the step computes with torch.arange(batch size), but a row must not depend on its place among the others. "
            "It may only stand in x[torch.arange(batch size), index]."
        )
    outside = [i for i in inputs if i.kind != "noise" or i.name in alive]
    names = _readable(outside, ordered)
    renamed = [_renamed(n, names) for n in ordered]
    step = StepGraph(
        tuple(i for i in outside if i.kind not in ("d_ys", "d_next_carry")),
        tuple(renamed[: len(forward & {n.name for n in nodes})]),
        tuple(names[n] for n in results.ys),
        tuple(names[n] for n in results.next_carry),
    )
    return StepPair(
        step,
        tuple(i for i in outside if i.kind in ("d_ys", "d_next_carry")),
        tuple(renamed[len(step.nodes) :]),
        *(_gradients_of(step, kind, results.gradients, names) for kind in ("const", "row_const", "xs", "carry")),
    )


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
