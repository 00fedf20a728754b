"""Products of rows of a small table -> rows of the table's product, which is made once a call."""

from throughtime.capture.graph import Node, Ref
from throughtime.plan.editor import GraphEditor, has_rows

__all__ = ["tabulate_products"]

MOST_ENTRIES = 256
"""A product of the whole table is work for so many pairs, which a call of few pairs does in vain."""


def tabulate_products(graph: GraphEditor) -> None:
    """Tokens of a small vocabulary, as in decoding, where they depend on the state.

    Before: mm(embedding(table, ids), w)
    After:  embedding(mm(table, w), ids)
    """
    for node in graph.where(lambda n: n.op == "mm" and has_rows(n) and len(n.shape) == 2):
        left, weight = (graph.value(name) for name in node.operands)
        if not (isinstance(left, Node) and left.op == "embedding") or has_rows(weight):
            continue
        table = graph.value(left.operands[0])
        if has_rows(table) or int(table.shape[0]) > MOST_ENTRIES:
            continue
        shape = (table.shape[0], node.shape[-1])
        product = graph.make("mm", (Ref(table.name), Ref(weight.name)), shape, node.dtype)
        looked_up = graph.make("embedding", (Ref(product.name), *left.args[1:]), node.shape, node.dtype)
        graph.replace(node.name, [product, looked_up], looked_up.name)
