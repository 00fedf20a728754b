"""Products of a concatenation -> sums of the products of its parts: what matrix products and convolutions share."""

from collections.abc import Callable, Sequence

from throughtime.capture.graph import Node, Ref
from throughtime.plan.editor import GraphEditor, joins
from throughtime.plan.places import Places

__all__ = ["PartOf", "split_into_sums"]

PartOf = Callable[[GraphEditor, Node, str, int, int], list[Node]]
"""(graph, product, part, start, end) -> new nodes, the last of them the product of what the concatenation holds from
`start` to `end`."""


def split_into_sums(
    graph: GraphEditor,
    places: Places,
    products: Callable[[Node], bool],
    axis_of: Callable[[Node], int],
    part_of: PartOf,
) -> bool:
    """Where some of the parts are in the product's loop and some are not, or some are the same at all steps.

    axis_of: along which a product's first operand is joined. Says whether anything changed.
    """
    changed = False
    for node in graph.where(products):
        joined, axis = graph.value(node.operands[0]), axis_of(node)
        if joins(joined, axis):
            groups = places.groups(joined.operands, node.name)
            if len(groups) > 1:
                new, total = _sum_of_parts(graph, node, axis, groups, part_of)
                graph.replace(node.name, new, total)
                places.follow(node.name, total)
                changed = True
    return changed


def _sum_of_parts(
    graph: GraphEditor, node: Node, axis: int, groups: Sequence[Sequence[str]], part_of: PartOf
) -> tuple[list[Node], str]:
    new: list[Node] = []
    start, total = 0, None
    for group in groups:
        joined, part = graph.join(group, axis)
        end = start + int(part.shape[axis])
        made = part_of(graph, node, part.name, start, end)
        new += [*joined, *made]
        product = made[-1]
        if total is not None:
            product = graph.make("add", (Ref(total), Ref(product.name)), node.shape, node.dtype)
            new.append(product)
        start, total = end, product.name
    assert total is not None
    return new, total
