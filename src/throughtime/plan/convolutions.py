"""Convolutions of concatenated channels -> convolutions of the parts, as for matrix products.

Each rewrite goes over the whole graph once and says whether it changed anything.
"""

from throughtime.capture.graph import Node, Ref
from throughtime.plan.editor import GraphEditor, joins
from throughtime.plan.places import Places
from throughtime.plan.sums import split_into_sums

__all__ = ["narrow_convolutions", "split_convolutions", "split_kernel_gradients", "sum_biases"]

CHANNELS = 1
INPUT, KERNEL, BIAS = range(3)
"""What a `convolution_backward` is the gradient of."""


def sum_biases(graph: GraphEditor) -> None:
    """Before: convolution_backward(g, x, w, output=bias)
    After:  sum(g, all axes but that of the channels)
    """
    for node in graph.where(lambda n: _is_gradient_of(n, BIAS)):
        axes = tuple(axis for axis in range(len(graph.shape(node.operands[0]))) if axis != CHANNELS)
        total = graph.make("sum", node.args[:1], node.shape, node.dtype, dims=axes, keepdim=False)
        graph.replace(node.name, [total], total.name)


def split_convolutions(graph: GraphEditor, places: Places) -> bool:
    """Before: convolution(cat([x, h], 1), w, b)
    After:  convolution(x, w[:, :I], b) + convolution(h, w[:, I:])
    """
    return split_into_sums(
        graph, places, lambda n: n.op == "convolution" and _is_plain(n), lambda n: CHANNELS, _convolution_of_part
    )


def _convolution_of_part(graph: GraphEditor, node: Node, part: str, start: int, end: int) -> list[Node]:
    """The first part has the bias."""
    kernel = graph.cut(node.operands[1], 1, start, end)
    args = (Ref(part), Ref(kernel.name), node.args[2] if start == 0 else None)
    return [kernel, graph.make("convolution", args, node.shape, node.dtype, **node.attributes)]


def split_kernel_gradients(graph: GraphEditor, places: Places) -> bool:
    """Before: convolution_backward(g, cat([x, h], 1), w, output=kernel)
    After:  cat([convolution_backward(g, x, w[:, :I], output=kernel), ... of h], 1)
    """
    changed = False
    for node in graph.where(lambda n: _is_gradient_of(n, KERNEL) and _is_plain(n)):
        joined = graph.value(node.operands[1])
        if joins(joined, CHANNELS):
            new, start = [], 0
            for part in joined.operands:
                end = start + int(graph.shape(part)[CHANNELS])
                kernel = graph.cut(node.operands[2], 1, start, end)
                new += [kernel, _gradient_of_part(graph, node, part, kernel, kernel.shape)]
                start = end
            gradients = tuple(Ref(n.name) for n in new if n.op == "convolution_backward")
            whole = graph.make("cat", gradients, node.shape, node.dtype, dim=1)
            graph.replace(node.name, [*new, whole], whole.name)
            changed = True
    return changed


def narrow_convolutions(graph: GraphEditor, places: Places) -> bool:
    """Where all that is used of an input's gradient is slices, and some channels are not used or leave the loop:

    Before: convolution_backward(g, cat([x, h], 1), w, output=input)[:, a:b]
    After:  convolution_backward(g, x, w[:, a:b], output=input)
    """
    changed = False
    results = graph.results()
    for node in graph.where(lambda n: _is_gradient_of(n, INPUT) and _is_plain(n) and n.name not in results):
        runs = places.runs_of(graph, node, CHANNELS)
        parts = [_parts_between(graph, node.operands[1], start, end) for start, end, _ in runs]
        if not all(parts):
            continue
        for (start, end, cuts), names in zip(runs, parts):
            joined, part = graph.join(names, CHANNELS)
            kernel = graph.cut(node.operands[2], 1, start, end)
            gradient = _gradient_of_part(graph, graph.nodes[node.name], part.name, kernel, part.shape)
            graph.insert_after(node.name, [*joined, kernel, gradient])
            graph.cut_again(gradient, start, cuts)
            changed = True
    return changed


def _gradient_of_part(graph: GraphEditor, node: Node, part: str, kernel: Node, shape: tuple) -> Node:
    args = (node.args[0], Ref(part), Ref(kernel.name))
    return graph.make(node.op, args, shape, node.dtype, **node.attributes)


def _parts_between(graph: GraphEditor, name: str, start: int, end: int) -> list[str]:
    """The parts of a concatenation that make up these channels; none if a part lies across."""
    joined = graph.value(name)
    if not joins(joined, CHANNELS):
        return []
    found, offset = [], 0
    for part in joined.operands:
        width = int(graph.shape(part)[CHANNELS])
        if start <= offset and offset + width <= end:
            found.append(part)
        offset += width
    covered = sum(int(graph.shape(part)[CHANNELS]) for part in found)
    return found if covered == end - start else []


def _is_plain(node: Node) -> bool:
    return not node.attributes["transposed"] and node.attributes["groups"] == 1


def _is_gradient_of(node: Node, what: int) -> bool:
    return node.op == "convolution_backward" and node.attributes["output"] == what
