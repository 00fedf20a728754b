"""StepPair -> LoopPlan. Sorts the nodes of a step by what they depend on, and stages them."""

from collections.abc import Iterable, Sequence

from throughtime._errors import PlanError
from throughtime.capture.graph import Node, StepPair
from throughtime.plan.editor import GraphEditor, has_rows
from throughtime.plan.loop_plan import LoopPlan
from throughtime.plan.normalise import normalise
from throughtime.plan.per_row import find_per_row
from throughtime.plan.residuals import Residuals, choose_residuals
from throughtime.plan.stages import make_stages

__all__ = ["make_plan"]


def make_plan(pair: StepPair) -> LoopPlan:
    """What leaves the loop, what stays, what is stored for the backward pass. Raises PlanError."""
    graph = normalise(pair)
    sorted_nodes = _SortedNodes(graph)
    residuals = _residuals(graph, sorted_nodes)
    carries = pair.forward.of_kind("carry")
    paths = {carry.name: carry.path for carry in carries}
    floating = [carry for carry in carries if carry.dtype.is_floating_point]
    d_paths = {c.name: f"d {carry.path}" for c, carry in zip(graph.of_kind("d_next_carry"), floating, strict=True)}
    return LoopPlan(
        inputs=pair.forward.inputs,
        cotangents=pair.backward_inputs,
        once=tuple(sorted_nodes.once),
        forward=make_stages(sorted_nodes.forward, graph.forward_feedback, paths),
        ys=_names(graph.outputs["ys"]),
        next_carry=_names(graph.outputs["next_carry"]),
        saved=residuals.saved,
        traced=residuals.traced,
        backward=make_stages([*residuals.recomputed, *sorted_nodes.backward], graph.backward_feedback, d_paths),
        reductions=tuple(sorted_nodes.reductions),
        row_sums=sorted_nodes.per_row.sums,
        after=tuple(sorted_nodes.after),
        d_consts=graph.outputs["d_consts"],
        d_row_consts=graph.outputs["d_row_consts"],
        d_xs=graph.outputs["d_xs"],
        d_carry=graph.outputs["d_carry"],
    )


class _SortedNodes:
    """The nodes of a normalised graph by what they depend on; the order within each kind is the graph's."""

    def __init__(self, graph: GraphEditor) -> None:
        self.graph = graph
        self.once: list[Node] = []
        self.forward: list[Node] = []
        self.backward: list[Node] = []
        self.reductions: list[Node] = []
        self.after: list[Node] = []
        self.consts = {i.name for i in graph.of_kind("const")}
        self.per_row = find_per_row(graph)
        forward_names = _ancestors(graph, (*graph.outputs["ys"], *graph.outputs["next_carry"]))
        for node in graph.nodes.values():
            if node.name in self.per_row.before:
                self.once.append(node)
            elif node.name in self.per_row.after:
                self.after.append(node)
            elif has_rows(node):
                (self.forward if node.name in forward_names else self.backward).append(node)
            else:
                self._sort_const(node)

    def _sort_const(self, node: Node) -> None:
        if self.consts.issuperset(node.operands):
            self.consts.add(node.name)
            self.once.append(node)
        elif any(has_rows(self.graph.value(operand)) for operand in node.operands):
            _check_reduction(node, self.graph)
            self.reductions.append(node)
        else:
            self.after.append(node)


def _residuals(graph: GraphEditor, sorted_nodes: _SortedNodes) -> Residuals:
    inputs = [i for i in graph.inputs.values() if i.kind not in ("d_ys", "d_next_carry")]
    carries = {i.name for i in inputs if i.kind == "carry"}
    needed = {o for node in (*sorted_nodes.backward, *sorted_nodes.reductions) for o in node.operands}
    needed |= {*_gradients(graph), *sorted_nodes.per_row.sums}
    needed &= carries | {node.name for node in sorted_nodes.forward}
    free = {i.name for i in inputs} | sorted_nodes.consts | sorted_nodes.per_row.before
    free |= set(_names(graph.outputs["ys"]))
    next_carry = _names(graph.outputs["next_carry"])
    return choose_residuals(sorted_nodes.forward, needed, free - carries, inputs, next_carry)


def _gradients(graph: GraphEditor) -> list[str]:
    fields = ("d_consts", "d_row_consts", "d_xs", "d_carry")
    return [name for field in fields for name in graph.outputs[field] if name is not None]


def _ancestors(graph: GraphEditor, names: Iterable[str | None]) -> set[str]:
    found = {name for name in names if name}
    for node in reversed(list(graph.nodes.values())):
        if node.name in found:
            found.update(node.operands)
    return found


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
