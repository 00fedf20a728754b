"""StepPair -> a graph whose products stand so that they can leave the loop. Each rewrite keeps every value.

A rewrite makes one product into narrower ones that need no rewrite of the same kind, so their number is bounded by
the parts and slices of the graph.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import TypeGuard

from throughtime.capture.graph import Node, Ref, StepPair
from throughtime.plan.editor import GraphEditor, has_rows
from throughtime.plan.per_row import find_still
from throughtime.plan.stages import Loops, find_loops

__all__ = ["normalise"]


def normalise(pair: StepPair) -> GraphEditor:
    graph = GraphEditor(pair)
    _name_outer_products(graph)
    graph.drop_dead()
    graph.merge_equal()
    while True:
        loops = find_loops(graph.where(has_rows), graph.feedback)
        if not (_split_product(graph, loops) or _split_outer(graph) or _narrow_product(graph, loops)):
            break
    graph.drop_dead()
    graph.merge_equal()
    return graph


def _name_outer_products(graph: GraphEditor) -> None:
    """The sum over rows, and over the vectors of a row, of the products of each entry of one with each of another.

    Before: mm(permute(a[B, K], (1, 0)), b[B, N]); sum(bmm(permute(a[B, M, K], (0, 2, 1)), b[B, M, N]), 0)
    After:  outer(a, b)                                                                             [K, N]
    """
    for node in graph.where(lambda n: n.op == "mm" and not has_rows(n)):
        left = graph.value(node.operands[0])
        if isinstance(left, Node) and left.op == "permute" and has_rows(left):
            outer = graph.make("outer", (Ref(left.operands[0]), node.args[1]), node.shape, node.dtype)
            graph.replace(node.name, [outer], outer.name)
    for node in graph.where(lambda n: n.op == "sum" and n.attributes["dims"] == (0,) and len(n.shape) == 2):
        product = graph.value(node.operands[0])
        if isinstance(product, Node) and product.op == "bmm" and len(product.shape) == 3:
            new, left = _turned(graph, product.operands[0])
            outer = graph.make("outer", (Ref(left), product.args[1]), node.shape, node.dtype)
            graph.replace(node.name, [*new, outer], outer.name)


def _turned(graph: GraphEditor, name: str) -> tuple[list[Node], str]:
    """(new nodes, permute(value, (0, 2, 1))): of a value that is such a permutation, what it permutes."""
    value = graph.value(name)
    if isinstance(value, Node) and value.op == "permute" and value.attributes["dims"] == (0, 2, 1):
        return [], value.operands[0]
    rows, height, width = value.shape
    turned = graph.make("permute", (Ref(name),), (rows, width, height), value.dtype, dims=(0, 2, 1))
    return [turned], turned.name


def _split_product(graph: GraphEditor, loops: Loops) -> bool:
    """Where some of the parts are in the product's loop and some are not, or some are the same at all steps:

    Before: mm(cat([x, h], -1), w)
    After:  mm(x, w[:I]) + mm(h, w[I:])
    """
    still = find_still(graph)
    for node in graph.where(lambda n: n.op == "mm" and has_rows(n)):
        left = graph.value(node.operands[0])
        if _joins_features(left):
            groups = _groups(left.operands, loops, loops.get(node.name), still)
            if len(groups) > 1:
                graph.replace(node.name, *_sum_of_products(graph, node, groups))
                return True
    return False


def _groups(names: Sequence[str], loops: Loops, loop: frozenset[str] | None, still: set[str]) -> list[list[str]]:
    """Neighbours that are in the loop, that are free of it, that are the same at all steps."""

    def place(name: str) -> tuple[bool, bool]:
        return name in still, loop is not None and loops.get(name) == loop

    return [list(group) for _, group in groupby(names, place)]


def _sum_of_products(graph: GraphEditor, node: Node, groups: Sequence[Sequence[str]]) -> tuple[list[Node], str]:
    new: list[Node] = []
    start, total = 0, None
    for group in groups:
        part, width = group[0], sum(graph.shape(name)[-1] for name in group)  # type: ignore[misc]
        if len(group) > 1:
            shape = (*graph.shape(part)[:-1], width)
            joined = graph.make("cat", tuple(map(Ref, group)), shape, graph.value(part).dtype, dim=len(shape) - 1)
            new.append(joined)
            part = joined.name
        weight = _cut_weight(graph, node, 0, start, start + width)
        product = graph.make("mm", (Ref(part), Ref(weight.name)), node.shape, node.dtype)
        new += [weight, product]
        if total is not None:
            product = graph.make("add", (Ref(total), Ref(product.name)), node.shape, node.dtype)
            new.append(product)
        start, total = start + width, product.name
    assert total is not None
    return new, total


def _split_outer(graph: GraphEditor) -> bool:
    """The parts of a concatenation in the forward pass are there; the concatenation is not.

    Before: outer(cat([x, h], -1), g)
    After:  cat([outer(x, g), outer(h, g)], 0)          and so on the other side, joined on axis 1
    """
    gradients = graph.gradients()
    for node in graph.where(lambda n: n.op == "outer"):
        for side in (0, 1):
            joined = graph.value(node.operands[side])
            if not _joins_features(joined) or joined.name in gradients:
                continue
            parts = [_outer_of_part(graph, node, side, part) for part in joined.operands]
            whole = graph.make("cat", tuple(Ref(p.name) for p in parts), node.shape, node.dtype, dim=side)
            graph.replace(node.name, [*parts, whole], whole.name)
            return True
    return False


def _outer_of_part(graph: GraphEditor, node: Node, side: int, part: str) -> Node:
    args, shape = list(node.args), list(node.shape)
    args[side], shape[side] = Ref(part), graph.shape(part)[-1]
    return graph.make("outer", tuple(args), tuple(shape), node.dtype)


def _narrow_product(graph: GraphEditor, loops: Loops) -> bool:
    """Where all that is used of a product is slices, and some columns are not used or leave the loop:

    Before: mm(g, w)[..., a:b]
    After:  mm(g, w[:, a:b])
    """
    users, results = graph.users(), graph.results()
    for node in graph.where(lambda n: n.op == "mm" and has_rows(n)):
        cuts = users[node.name]
        if node.name in results or not cuts or not all(_cuts_features(cut) for cut in cuts):
            continue
        runs = _runs(cuts, loops, loops.get(node.name))
        used = sum(end - start for start, end, _ in runs)
        if used < node.shape[-1] or (len(runs) > 1 and used == node.shape[-1]):  # type: ignore[operator]
            for start, end, members in runs:
                _narrow_run(graph, node, start, end, members)
            return True
    return False


def _runs(cuts: Sequence[Node], loops: Loops, loop: frozenset[str] | None) -> list[tuple[int, int, list[Node]]]:
    """Slices that touch, and are in the loop or are not: (first column, end, slices)."""
    runs: list[tuple[int, int, list[Node]]] = []
    inside = None
    for cut in sorted(cuts, key=lambda c: (c.attributes["start"], c.attributes["end"])):
        start, end = cut.attributes["start"], cut.attributes["end"]
        side = loop is not None and loops.get(cut.name) == loop
        if runs and side == inside and start <= runs[-1][1]:
            first, last, members = runs[-1]
            runs[-1] = (first, max(last, end), [*members, cut])
        else:
            runs.append((start, end, [cut]))
        inside = side
    return runs


def _narrow_run(graph: GraphEditor, node: Node, start: int, end: int, members: Sequence[Node]) -> None:
    weight = _cut_weight(graph, node, 1, start, end)
    product = graph.make("mm", (node.args[0], Ref(weight.name)), (*node.shape[:-1], end - start), node.dtype)
    graph.insert_after(node.name, [weight, product])
    for cut in members:
        a, b = cut.attributes["start"] - start, cut.attributes["end"] - start
        if (a, b) == (0, end - start):
            graph.replace(cut.name, [], product.name)
        else:
            attributes = {**cut.attributes, "start": a, "end": b}
            narrow = graph.make("slice", (Ref(product.name),), cut.shape, cut.dtype, **attributes)
            graph.replace(cut.name, [narrow], narrow.name)


def _cut_weight(graph: GraphEditor, product: Node, dim: int, start: int, end: int) -> Node:
    weight = graph.value(product.operands[1])
    shape = list(weight.shape)
    shape[dim] = end - start
    return graph.make("slice", (Ref(weight.name),), tuple(shape), weight.dtype, dim=dim, start=start, end=end, step=1)


def _joins_features(value: object) -> TypeGuard[Node]:
    return isinstance(value, Node) and value.op == "cat" and value.attributes["dim"] == len(value.shape) - 1


def _cuts_features(node: Node) -> bool:
    return node.op == "slice" and node.attributes["dim"] == len(node.shape) - 1 and node.attributes["step"] == 1
