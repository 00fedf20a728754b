"""Products of rows of a small table -> rows of the table's product, which is made once a call."""

from throughtime.capture.graph import Node, Ref
from throughtime.plan.editor import GraphEditor, has_rows

__all__ = ["tabulate_products"]

MOST_ENTRIES = 256
"""A product of the whole table is work for so many pairs, which a call of few pairs does in vain."""


def tabulate_products(graph: GraphEditor) -> None:
    """Tokens of a small vocabulary, as in decoding, where they depend on the state.

    Before: mm(embedding(table, ids), w) + bias
    After:  embedding(mm(table, w) + bias, ids)
    """
    for node in graph.where(lambda n: n.op == "mm" and has_rows(n) and len(n.shape) == 2):
        left, weight = (graph.value(name) for name in node.operands)
        if not (isinstance(left, Node) and left.op == "embedding") or has_rows(weight):
            continue
        table = graph.value(left.operands[0])
        if has_rows(table) or int(table.shape[0]) > MOST_ENTRIES:
            continue
        shape = (table.shape[0], node.shape[-1])
        made = [graph.make("mm", (Ref(table.name), Ref(weight.name)), shape, node.dtype)]
        if (biased := _biased(graph, node)) is not None:
            total, bias = biased
            made.append(graph.make("add", (Ref(made[0].name), Ref(bias)), shape, node.dtype))
            node = total
        made.append(graph.make("embedding", (Ref(made[-1].name), *left.args[1:]), node.shape, node.dtype))
        graph.replace(node.name, made, made[-1].name)


def _biased(graph: GraphEditor, product: Node) -> tuple[Node, str] | None:
    """The sum with a bias, if that is all that the product is for, and the bias."""
    users = graph.users(product.name)
    if len(users) != 1 or users[0].op != "add" or product.name in graph.results():
        return None
    others = [name for name in users[0].operands if name != product.name]
    if len(others) != 1 or graph.shape(others[0]) != product.shape[1:]:
        return None
    return users[0], others[0]
