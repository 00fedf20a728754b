"""What is the same at all steps of a row -> done once for the row, before the steps; and its gradient, after them.

A cell that projects its attention memory inside the step does the same product at every step. What depends on consts
and row consts only is computed once. The gradient of such a product is a product too, linear in what comes from the
step: with the sum over the row's steps in hand, it is done once.

    Before: d_memory = sum over t of d_keys[t] @ w^T
    After:  d_memory = (sum over t of d_keys[t]) @ w^T
"""

from dataclasses import dataclass

from throughtime.capture.graph import Input, Node, Ref
from throughtime.plan.editor import GraphEditor, has_rows
from throughtime.plan.operators import VIEWS

__all__ = ["PerRow", "find_per_row", "find_still"]

LINEAR_IN_ONE = frozenset({"mm", "bmm", "outer", "embedding_dense_backward"})
"""What is worth postponing. They are linear in one operand at a time."""
ADDITIVE = frozenset(
    {"add", "sub", "neg", "cat", "sum", "cumsum", "flip", "to_dtype", "view", "permute", "expand", "slice", "pad"}
    | {"windows"}
)
"""Linear in all operands together."""


@dataclass(frozen=True, slots=True)
class PerRow:
    """before: nodes of rows that are computed once. after: nodes that are computed on sums over a row's steps.
    sums: what these are sums of; not the gradients that are in `after` themselves.
    """

    before: frozenset[str]
    after: frozenset[str]
    sums: tuple[str, ...]


def find_per_row(graph: GraphEditor) -> PerRow:
    still = find_still(graph)
    after = _postponed(graph, still)
    results = {name for name in graph.outputs["d_row_consts"] if name}
    read = {operand for name in after for operand in graph.nodes[name].operands}
    roots = {o for o in read if o not in after and o not in still and has_rows(graph.value(o))}
    sums = [name for name in (*graph.inputs, *graph.nodes) if name in roots | (results - after)]
    return PerRow(frozenset(_worth_keeping(graph, still, read)), frozenset(after), tuple(sums))


def find_still(graph: GraphEditor) -> set[str]:
    """Values that are the same at all steps."""
    found = {i.name for i in (*graph.of_kind("const"), *graph.of_kind("row_const"))}
    for node in graph.nodes.values():
        if found.issuperset(node.operands):
            found.add(node.name)
    return found


def _worth_keeping(graph: GraphEditor, still: set[str], read_after: set[str]) -> set[str]:
    """Rows of values that are the same at all steps: those with arithmetic, and what these and `after` look at."""
    found: set[str] = set()
    for node in reversed(list(graph.nodes.values())):
        if node.name in still and has_rows(node) and (node.op not in VIEWS or node.name in found | read_after):
            found.add(node.name)
            found.update(o for o in node.operands if o in graph.nodes and has_rows(graph.nodes[o]))
    return found


def _postponed(graph: GraphEditor, still: set[str]) -> set[str]:
    """Products of gradients with what is still, what follows them, and views on the way to them."""
    able = _able_to_wait(graph, still)
    after: set[str] = set()
    for node in graph.nodes.values():
        if node.name in able and (node.op in LINEAR_IN_ONE or not after.isdisjoint(node.operands)):
            after.add(node.name)
    for node in reversed(list(graph.nodes.values())):
        users = graph.users(node.name)
        waiting = users and all(user.name in after for user in users)
        if node.name in able and node.op in VIEWS and waiting and node.name not in graph.results():
            after.add(node.name)
    return after


def _able_to_wait(graph: GraphEditor, still: set[str]) -> set[str]:
    """Nodes that are linear in gradients, and that no step needs."""
    gradients = graph.gradients()
    needed_by_steps = {name for field in ("ys", "next_carry", "d_xs", "d_carry") for name in graph.outputs[field]}
    able: set[str] = set()
    for node in reversed(list(graph.nodes.values())):
        if node.name not in gradients or not any(has_rows(graph.value(o)) for o in node.operands):
            continue
        used = has_rows(node) and not all(user.name in able for user in graph.users(node.name))
        if node.name not in needed_by_steps and not used and _is_linear(node, gradients, still, graph):
            able.add(node.name)
    return able


def _is_linear(node: Node, gradients: set[str], still: set[str], graph: GraphEditor) -> bool:
    moving = [operand for operand in node.operands if operand not in still]
    if not gradients.issuperset(moving):
        return False
    if node.op in ADDITIVE:
        return all((isinstance(arg, Ref) and arg.name in moving) or _is_zero(arg, graph) for arg in node.args)
    if node.op in LINEAR_IN_ONE or node.op == "mul":
        return len(moving) == 1
    first = node.args[0].name if node.args and isinstance(node.args[0], Ref) else None
    if node.op == "div":
        return moving == [first]
    return node.op == "where" and first in still and all(
        (isinstance(arg, Ref) and arg.name in moving) or _is_zero(arg, graph) for arg in node.args[1:]
    )  # fmt: skip


def _is_zero(arg: object, graph: GraphEditor) -> bool:
    if isinstance(arg, Ref):
        value: Input | Node = graph.value(arg.name)
        return isinstance(value, Node) and value.op == "full" and value.attributes["value"] == 0
    return arg == 0
