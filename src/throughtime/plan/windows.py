"""Convolutions -> products of windows, which leave the loop, take their turn and give gradients as other products do.

convolution(x, w)[o, p]  =  sum over k, c of  windows(x)[p, k, c] * w[o, c, k]
"""

from collections.abc import Sequence
from math import prod

from throughtime.capture.graph import ROWS, Node, Ref, Shape
from throughtime.plan.editor import GraphEditor, has_rows
from throughtime.plan.image_steps import Steps

__all__ = ["multiply_windows", "split_groups"]

MOST_GROUPS = 16
INPUT, KERNEL = range(2)


def split_groups(graph: GraphEditor) -> None:
    """Before: convolution(x, w, b, groups=2)
    After:  cat([convolution(x[:, :C], w[:O], b[:O]), convolution(x[:, C:], w[O:], b[O:])], 1)
    """
    for node in graph.where(_is_grouped):
        parts = [_part_of_group(graph, node, i) for i in range(node.attributes["groups"])]
        joined = tuple(Ref(part[-1].name) for part in parts)
        axis = 0 if node.attributes.get("output") == KERNEL else 1
        whole = graph.make("cat", joined, node.shape, node.dtype, dim=axis)
        graph.replace(node.name, [*(new for part in parts for new in part), whole], whole.name)


def _is_grouped(node: Node) -> bool:
    return node.op in ("convolution", "convolution_backward") and _fits(node) and node.attributes["groups"] > 1


def _fits(node: Node) -> bool:
    own = node.op == "convolution" or node.attributes["output"] in (INPUT, KERNEL)
    return own and node.attributes["groups"] <= MOST_GROUPS


def _part_of_group(graph: GraphEditor, node: Node, i: int) -> list[Node]:
    """Rows are cut by channels, the kernel and the bias by outputs."""
    groups = node.attributes["groups"]
    new: list[Node] = []
    args: list[Ref | None] = []
    for arg in node.args:
        if arg is None:
            args.append(None)
            continue
        axis = 1 if has_rows(graph.value(arg.name)) else 0
        width = int(graph.shape(arg.name)[axis]) // groups
        new.append(graph.cut(arg.name, axis, i * width, (i + 1) * width))
        args.append(Ref(new[-1].name))
    axis = 0 if node.attributes.get("output") == KERNEL else 1
    shape = (*node.shape[:axis], int(node.shape[axis]) // groups, *node.shape[axis + 1 :])
    part = graph.make(node.op, tuple(args), shape, node.dtype, **{**node.attributes, "groups": 1})
    return [*new, part]


def multiply_windows(graph: GraphEditor) -> None:
    """Before: convolution(x, w, b)
    After:  permute(view(mm(view(windows(pad(permute(x))), [B, P, K * C]), w[K * C, O]) + b, [B, *P, O]), [B, O, *P])
    """
    for node in graph.where(lambda n: n.op in ("convolution", "convolution_backward") and _fits(n)):
        if node.attributes["groups"] == 1:
            steps = Steps(graph, node)
            result = _product(steps)
            graph.replace(node.name, steps.made, result.name)


def _product(s: Steps) -> Ref:
    """What is transposed is the input's gradient of what is not."""
    transposed = s.node.attributes["transposed"]
    if s.node.op == "convolution":
        x, w, bias = s.node.args
        return _spread_out(s, x, w, bias) if transposed else _gather_in(s, x, w, bias)
    d_y, x, w = s.node.args
    if s.node.attributes["output"] == INPUT:
        return _gather_in(s, d_y, w) if transposed else _spread_out(s, d_y, w)
    return _kernel_gradient(s, d_y, x, w) if transposed else _kernel_gradient(s, x, d_y, w)


def _gather_in(s: Steps, x: Ref, w: Ref, bias: Ref | None = None) -> Ref:
    outputs, channels, *kernel = (int(n) for n in s.shape(w))
    seen = _windows(s, x, kernel)
    matrix = s.view(s.permute(w, *range(2, 2 + len(kernel)), 1, 0), prod(kernel) * channels, outputs)
    return _as_image(s, seen, matrix, bias)


def _as_image(s: Steps, seen: Ref, matrix: Ref, bias: Ref | None) -> Ref:
    shape: Shape = (ROWS, s.shape(seen)[1], s.shape(matrix)[1])
    made = s.make("mm", (seen, matrix), shape)
    if bias is not None:
        if s.dtype(bias) != s.node.dtype:
            bias = s.make("to_dtype", (bias,), s.shape(bias), dtype=s.node.dtype)
        made = s.make("add", (made, bias), shape)
    _, channels, *sizes = s.node.shape
    return s.channels_first(s.view(made, ROWS, *sizes, channels))


def _windows(s: Steps, x: Ref, kernel: Sequence[int]) -> Ref:
    stride, padding, dilation = (s.node.attributes[k] for k in ("stride", "padding", "dilation"))
    return _flat(s, s.windows(s.pad(s.channels_last(x), padding, padding), kernel, stride, dilation), len(kernel))


def _flat(s: Steps, seen: Ref, axes: int) -> Ref:
    """[B, *P, *K, C] -> [B, P, K * C]"""
    sizes = [int(n) for n in s.shape(seen)[1:]]
    return s.view(seen, ROWS, prod(sizes[:axes]), prod(sizes[axes:]))


def _spread_out(s: Steps, d_y: Ref, w: Ref, bias: Ref | None = None) -> Ref:
    """d_x = convolution(d_y with `stride - 1` zeros between its elements, w turned round)"""
    outputs, channels, *kernel = (int(n) for n in s.shape(w))
    stride, padding, dilation = (s.node.attributes[k] for k in ("stride", "padding", "dilation"))
    seen = _flat(s, s.windows_back(s.channels_last(d_y), kernel, stride, padding, dilation), len(kernel))
    axes = range(2, 2 + len(kernel))
    turned = s.make("flip", (w,), s.shape(w), s.dtype(w), dims=tuple(axes))
    matrix = s.view(s.permute(turned, *axes, 0, 1), prod(kernel) * outputs, channels)
    return _as_image(s, seen, matrix, bias)


def _kernel_gradient(s: Steps, x: Ref, d_y: Ref, w: Ref) -> Ref:
    """d_w[o, c, k] = sum over pairs and p of d_y[o, p] * windows(x)[p, k, c]"""
    outputs, channels, *kernel = (int(n) for n in s.shape(w))
    seen = _windows(s, x, kernel)
    d_rows = s.view(s.channels_last(d_y), ROWS, s.shape(seen)[1], outputs)
    outer = s.make("outer", (seen, d_rows), (prod(kernel) * channels, outputs))
    last = len(kernel)
    return s.permute(s.view(outer, *kernel, channels, outputs), last + 1, last, *range(last))
