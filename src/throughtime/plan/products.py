"""Matrix products of concatenations and slices of products -> products of the parts.

Each rewrite goes over the whole graph once and says whether it changed anything.
"""

from throughtime.capture.graph import Node, Ref
from throughtime.plan.editor import GraphEditor, has_rows, joins
from throughtime.plan.places import Places, Run
from throughtime.plan.sums import split_into_sums

__all__ = ["name_outer_products", "narrow_products", "split_outer_products", "split_products"]


def name_outer_products(graph: GraphEditor) -> None:
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


def split_products(graph: GraphEditor, places: Places) -> bool:
    """Before: mm(cat([x, h], -1), w)
    After:  mm(x, w[:I]) + mm(h, w[I:])
    """
    return split_into_sums(
        graph, places, lambda n: n.op == "mm" and has_rows(n), lambda n: len(n.shape) - 1, _product_of_part
    )


def _product_of_part(graph: GraphEditor, node: Node, part: str, start: int, end: int) -> list[Node]:
    weight = graph.cut(node.operands[1], 0, start, end)
    return [weight, graph.make("mm", (Ref(part), Ref(weight.name)), node.shape, node.dtype)]


def split_outer_products(graph: GraphEditor, places: Places) -> bool:
    """The parts of a concatenation in the forward pass are there; the concatenation is not.

    Before: outer(cat([x, h], -1), g)
    After:  cat([outer(x, g), outer(h, g)], 0)          and so on the other side, joined on axis 1
    """
    changed = False
    gradients = graph.gradients()
    for node in graph.where(lambda n: n.op == "outer"):
        for side in (0, 1):
            whole = graph.value(node.operands[side])
            if joins(whole, len(whole.shape) - 1) and whole.name not in gradients:
                parts = [_outer_of_part(graph, node, side, part) for part in whole.operands]
                joined = graph.make("cat", tuple(Ref(p.name) for p in parts), node.shape, node.dtype, dim=side)
                graph.replace(node.name, [*parts, joined], joined.name)
                changed = True
                break
    return changed


def _outer_of_part(graph: GraphEditor, node: Node, side: int, part: str) -> Node:
    args, shape = list(node.args), list(node.shape)
    args[side], shape[side] = Ref(part), graph.shape(part)[-1]
    return graph.make("outer", tuple(args), tuple(shape), node.dtype)


def narrow_products(graph: GraphEditor, places: Places) -> bool:
    """Where all that is used of a product is slices, and some columns are not used or leave the loop:

    Before: mm(g, w)[..., a:b]
    After:  mm(g, w[:, a:b])
    """
    changed = False
    results = graph.results()
    for node in graph.where(lambda n: n.op == "mm" and has_rows(n) and n.name not in results):
        runs = places.runs_of(graph, node, len(node.shape) - 1)
        for run in runs:
            _narrow(graph, graph.nodes[node.name], run)
        changed |= bool(runs)
    return changed


def _narrow(graph: GraphEditor, node: Node, run: Run) -> None:
    start, end, cuts = run
    weight = graph.cut(node.operands[1], 1, start, end)
    product = graph.make("mm", (node.args[0], Ref(weight.name)), (*node.shape[:-1], end - start), node.dtype)
    graph.insert_after(node.name, [weight, product])
    graph.cut_again(product, start, cuts)
