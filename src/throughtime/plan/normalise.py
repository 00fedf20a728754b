"""StepPair -> a graph whose products stand so that they can leave the loop. Each rewrite keeps every value.

The rewrites run until none applies; each makes one product of a concatenation into products of its parts, so there
are at most as many as there are parts.
"""

from throughtime.capture.graph import Node, Ref, StepPair
from throughtime.plan.editor import GraphEditor, has_rows

__all__ = ["normalise"]


def normalise(pair: StepPair) -> GraphEditor:
    graph = GraphEditor(pair)
    _name_outer_products(graph)
    while _split_product(graph) or _split_outer(graph) or _narrow_product(graph):
        pass
    graph.drop_dead()
    return graph


def _name_outer_products(graph: GraphEditor) -> None:
    """Before: mm(permute(a[B, K], (1, 0)), b[B, N])
    After:  outer(a, b)                                 the sum over rows of a^T b: [K, N]
    """
    for node in graph.where(lambda n: n.op == "mm" and not has_rows(n)):
        left = graph.value(node.operands[0])
        if isinstance(left, Node) and left.op == "permute" and has_rows(left):
            outer = graph.make("outer", (Ref(left.operands[0]), node.args[1]), node.shape, node.dtype)
            graph.replace(node.name, [outer], outer.name)


def _split_product(graph: GraphEditor) -> bool:
    """Before: mm(cat([x, h], -1), w)
    After:  mm(x, w[:I]) + mm(h, w[I:])
    """
    for node in graph.where(lambda n: n.op == "mm" and has_rows(n)):
        left = graph.value(node.operands[0])
        if _joins_features(left):
            graph.replace(node.name, *_sum_of_parts(graph, node, left))
            return True
    return False


def _sum_of_parts(graph: GraphEditor, node: Node, joined: Node) -> tuple[list[Node], str]:
    new: list[Node] = []
    start, total = 0, None
    weight = node.operands[1]
    columns = node.shape[-1]
    for part in joined.operands:
        width = graph.shape(part)[-1]
        end = start + width
        rows = graph.make("slice", (Ref(weight),), (width, columns), node.dtype, dim=0, start=start, end=end, step=1)
        product = graph.make("mm", (Ref(part), Ref(rows.name)), node.shape, node.dtype)
        new += [rows, product]
        if total is not None:
            product = graph.make("add", (Ref(total), Ref(product.name)), node.shape, node.dtype)
            new.append(product)
        start, total = end, product.name
    assert total is not None
    return new, total


def _split_outer(graph: GraphEditor) -> bool:
    """Before: outer(cat([x, h], -1), g)
    After:  cat([outer(x, g), outer(h, g)], 0)
    """
    for node in graph.where(lambda n: n.op == "outer"):
        left = graph.value(node.operands[0])
        if _joins_features(left):
            parts = [
                graph.make("outer", (Ref(part), node.args[1]), (graph.shape(part)[-1], node.shape[1]), node.dtype)
                for part in left.operands
            ]
            joined = graph.make("cat", tuple(Ref(p.name) for p in parts), node.shape, node.dtype, dim=0)
            graph.replace(node.name, [*parts, joined], joined.name)
            return True
    return False


def _narrow_product(graph: GraphEditor) -> bool:
    """Before: mm(g, w)[..., a:b] where g is a gradient and nothing else needs the product
    After:  mm(g, w[:, a:b])
    """
    users, results, gradients = graph.users(), graph.results(), graph.gradients()
    for node in graph.where(lambda n: n.op == "mm" and has_rows(n) and n.name in gradients):
        slices = users[node.name]
        axis = len(node.shape) - 1
        if node.name in results or not slices or not all(_cuts(user, axis) for user in slices):
            continue
        weight = node.operands[1]
        for cut in slices:
            shape = (graph.shape(weight)[0], cut.shape[-1])
            columns = graph.make("slice", (Ref(weight),), shape, node.dtype, **{**cut.attributes, "dim": 1})
            product = graph.make("mm", (node.args[0], Ref(columns.name)), cut.shape, node.dtype)
            graph.replace(cut.name, [columns, product], product.name)
        return True
    return False


def _joins_features(value: object) -> bool:
    return isinstance(value, Node) and value.op == "cat" and value.attributes["dim"] == len(value.shape) - 1


def _cuts(node: Node, axis: int) -> bool:
    return node.op == "slice" and node.attributes["dim"] == axis and node.attributes["step"] == 1
