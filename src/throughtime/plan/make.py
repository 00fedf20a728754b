"""StepPair -> LoopPlan. Sorts the nodes of a step by what they depend on, and stages them."""

from collections.abc import Iterable, Sequence

from throughtime._errors import PlanError
from throughtime.capture.graph import Node, StepPair
from throughtime.plan.editor import GraphEditor, has_rows
from throughtime.plan.loop_plan import LoopPlan
from throughtime.plan.normalise import normalise
from throughtime.plan.residuals import VIEWS, Residuals, choose_residuals
from throughtime.plan.stages import make_stages

__all__ = ["make_plan"]

LINEAR = VIEWS | {"add", "sub", "neg", "sum", "cat", "to_dtype", "mul", "div", "mm", "where", "outer"}
"""Operators that keep a sum over pairs a sum, when all but one of their operands are consts."""


def make_plan(pair: StepPair) -> LoopPlan:
    """What leaves the loop, what stays, what is stored for the backward pass. Raises PlanError."""
    graph = normalise(pair)
    kinds = _Kinds(graph)
    residuals = _residuals(graph, kinds)
    carries = pair.forward.of_kind("carry")
    paths = {c.name: c.path for c in carries}
    d_next = _cotangents_of_carries(pair)
    backward_feedback = {
        cotangent: gradient
        for cotangent, gradient in zip(d_next, _floating(graph.outputs["d_carry"], carries))
        if gradient is not None
    }
    d_paths = dict(zip(d_next, (f"d {c.path}" for c in carries if c.dtype.is_floating_point)))
    return LoopPlan(
        inputs=pair.forward.inputs,
        cotangents=pair.backward_inputs,
        once=tuple(kinds.once),
        forward=make_stages(kinds.forward, dict(zip(paths, graph.outputs["next_carry"])), paths),  # type: ignore[arg-type]
        ys=_names(graph.outputs["ys"]),
        next_carry=_names(graph.outputs["next_carry"]),
        saved=residuals.saved,
        traced=_traced(graph, kinds, residuals),
        backward=make_stages([*residuals.recomputed, *kinds.backward], backward_feedback, d_paths),
        reductions=tuple(kinds.reductions),
        after=tuple(kinds.after),
        d_consts=graph.outputs["d_consts"],
        d_row_consts=graph.outputs["d_row_consts"],
        d_xs=graph.outputs["d_xs"],
        d_carry=graph.outputs["d_carry"],
    )


class _Kinds:
    """The nodes of a normalised graph by what they depend on; the order within each is the graph's."""

    def __init__(self, graph: GraphEditor) -> None:
        self.once: list[Node] = []
        self.forward: list[Node] = []
        self.backward: list[Node] = []
        self.reductions: list[Node] = []
        self.after: list[Node] = []
        forward_names = _ancestors(graph, (*graph.outputs["ys"], *graph.outputs["next_carry"]))
        sums: set[str] = set()
        consts = {i.name for i in graph.inputs.values() if i.kind == "const"}
        for node in graph.nodes.values():
            if has_rows(node):
                (self.forward if node.name in forward_names else self.backward).append(node)
            elif all(operand in consts for operand in node.operands):
                consts.add(node.name)
                self.once.append(node)
            elif any(has_rows(graph.value(operand)) for operand in node.operands):
                _check_reduction(node, graph)
                sums.add(node.name)
                self.reductions.append(node)
            else:
                _check_linear(node, sums)
                sums.add(node.name)
                self.after.append(node)
        self.consts = consts


def _residuals(graph: GraphEditor, kinds: _Kinds) -> Residuals:
    forward = {node.name: node for node in kinds.forward}
    needed = {o for node in (*kinds.backward, *kinds.reductions) for o in node.operands if o in forward}
    needed |= {name for name in _gradients(graph) if name in forward}
    kept = {i.name for i in graph.inputs.values()} | kinds.consts
    kept |= set(graph.outputs["next_carry"]) | set(graph.outputs["ys"])  # type: ignore[arg-type]
    return choose_residuals(forward, needed, kept)


def _traced(graph: GraphEditor, kinds: _Kinds, residuals: Residuals) -> tuple[int, ...]:
    """The carry leaves whose values the backward pass reads, before a step or after it."""
    nodes = (*kinds.backward, *kinds.reductions, *residuals.recomputed)
    used = {operand for node in nodes for operand in node.operands} | set(_gradients(graph))
    carries = [i.name for i in graph.inputs.values() if i.kind == "carry"]
    following = graph.outputs["next_carry"]
    return tuple(i for i, name in enumerate(carries) if name in used or following[i] in used)


def _gradients(graph: GraphEditor) -> list[str]:
    fields = ("d_consts", "d_row_consts", "d_xs", "d_carry")
    return [name for field in fields for name in graph.outputs[field] if name is not None]


def _ancestors(graph: GraphEditor, names: Iterable[str | None]) -> set[str]:
    found = {name for name in names if name}
    for node in reversed(list(graph.nodes.values())):
        if node.name in found:
            found.update(node.operands)
    return found


def _cotangents_of_carries(pair: StepPair) -> list[str]:
    return [i.name for i in pair.backward_inputs if i.kind == "d_next_carry"]


def _floating(gradients: Sequence[str | None], carries: Sequence) -> list[str | None]:
    return [gradient for gradient, carry in zip(gradients, carries) if carry.dtype.is_floating_point]


def _names(names: Sequence[str | None]) -> tuple[str, ...]:
    return tuple(name for name in names if name is not None)


def _check_reduction(node: Node, graph: GraphEditor) -> None:
    rows_first = all(graph.shape(o)[0] == "B" for o in node.operands if has_rows(graph.value(o)))
    over_rows = node.op == "outer" or (node.op == "sum" and 0 in node.attributes["dims"])
    if rows_first and (over_rows or node.op in ("embedding_dense_backward", "convolution_backward")):
        return
    raise PlanError(
        f"the gradient of a const sums over rows through '{node.op}' ({node}), which cannot be split over the steps. "
        f"The portable backend runs it."
    )


def _check_linear(node: Node, sums: set[str]) -> None:
    depending = [operand for operand in node.operands if operand in sums]
    products = node.op in ("mul", "mm", "outer") and len(depending) > 1
    divisor = node.op == "div" and node.operands[-1] in sums
    condition = node.op == "where" and node.operands[0] in sums
    if node.op not in LINEAR or products or divisor or condition:
        raise PlanError(
            f"the gradient of a const is not linear in its sum over rows: '{node.op}' ({node}). "
            f"The portable backend runs it."
        )
