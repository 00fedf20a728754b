"""Matrix products of concatenations and slices of products -> products of the parts.

Each rewrite goes over the whole graph once and says whether it changed anything.
"""

from collections.abc import Iterator, Sequence

from throughtime.capture.graph import Input, Node, Ref
from throughtime.plan.editor import GraphEditor, has_rows, joins
from throughtime.plan.places import Places, Run
from throughtime.plan.sums import split_into_sums

__all__ = ["join_biases", "name_outer_products", "narrow_products", "split_outer_products", "split_products"]


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


def join_biases(graph: GraphEditor) -> None:
    """Vectors that are added to sums of products are added to each other once per call.

    Before: add(add(mm(x, w), b), add(mm(h, u), c))
    After:  add(add(mm(x, w), add(b, c)), mm(h, u))
    """
    for root in graph.where(_is_sum):
        if _is_part_of_sum(graph, root):
            continue
        addends = list(_addends(graph, root, root.name))
        biases = [addend for addend in addends if _is_bias(graph, addend, root)]
        if len(biases) < 2 or not any(_is_product(graph, addend) for addend in addends):
            continue
        bias = _added(graph, biases, graph.value(biases[0]))
        place, rest = addends.index(biases[0]), [addend for addend in addends if addend not in biases]
        summed = _added(graph, [*rest[:place], bias[-1].name, *rest[place:]], root)
        graph.replace(root.name, [*bias, *summed], summed[-1].name)


def _is_sum(node: Node) -> bool:
    return node.op == "add" and has_rows(node) and len(node.operands) == 2


def _is_part_of_sum(graph: GraphEditor, node: Node) -> bool:
    users = graph.users(node.name)
    alone = len(users) == 1 and node.name not in graph.results()
    return alone and _is_sum(users[0]) and users[0].shape == node.shape and users[0].dtype == node.dtype


def _addends(graph: GraphEditor, root: Node, name: str) -> Iterator[str]:
    value = graph.value(name)
    inner = name == root.name or (isinstance(value, Node) and _is_sum(value) and _is_part_of_sum(graph, value))
    if not inner:
        yield name
        return
    assert isinstance(value, Node)
    for operand in value.operands:
        yield from _addends(graph, root, operand)


def _is_product(graph: GraphEditor, name: str) -> bool:
    value = graph.value(name)
    return isinstance(value, Node) and value.op == "mm"


def _is_bias(graph: GraphEditor, name: str, root: Node) -> bool:
    value = graph.value(name)
    return not has_rows(value) and value.shape == root.shape[1:] and value.dtype == root.dtype


def _added(graph: GraphEditor, names: Sequence[str], like: Input | Node) -> list[Node]:
    """New nodes, the last of them the sum from left to right."""
    new, total = [], names[0]
    for name in names[1:]:
        new.append(graph.make("add", (Ref(total), Ref(name)), like.shape, like.dtype))
        total = new[-1].name
    return new


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
