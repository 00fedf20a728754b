"""Convolutions -> products of windows, which leave the loop, take their turn and give gradients as other products do.

    convolution(x, w)[o, p]  =  sum over k, c of  windows(x)[p, k, c] * w[o, c, k]

Two operators that only plans have: `pad` puts zeros around the first feature axes; `windows` looks at what a kernel
sees at each position, x[B, *L, C] -> [B, *P, *K, C]. Both are free of arithmetic. The channels come last, so that what
is read lies together.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch

from throughtime.capture.graph import ROWS, Node, Ref, Shape
from throughtime.plan.editor import GraphEditor, has_rows

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
            steps = _Steps(graph, node)
            result = _product(steps)
            graph.replace(node.name, steps.made, result.name)


def _product(s: "_Steps") -> Ref:
    """What is transposed is the input's gradient of what is not."""
    transposed = s.node.attributes["transposed"]
    if s.node.op == "convolution":
        x, w, bias = s.node.args
        return _spread_out(s, x, w, bias) if transposed else _gather_in(s, x, w, bias)
    d_y, x, w = s.node.args
    if s.node.attributes["output"] == INPUT:
        return _gather_in(s, d_y, w) if transposed else _spread_out(s, d_y, w)
    return _kernel_gradient(s, d_y, x, w) if transposed else _kernel_gradient(s, x, d_y, w)


class _Steps:
    """The nodes on the way to one, and their shapes."""

    def __init__(self, graph: GraphEditor, node: Node) -> None:
        self.graph, self.node = graph, node
        self.made: list[Node] = []
        self.shapes: dict[str, Shape] = {}
        self.stride, self.padding, self.dilation = (node.attributes[k] for k in ("stride", "padding", "dilation"))

    def shape(self, value: Ref) -> Shape:
        return self.shapes.get(value.name) or self.graph.shape(value.name)

    def make(
        self, op: str, args: Sequence[Any], shape: Shape, dtype: torch.dtype | None = None, **attributes: Any
    ) -> Ref:
        made = self.graph.make(op, tuple(args), shape, dtype or self.node.dtype, **attributes)
        self.made.append(made)
        self.shapes[made.name] = shape
        return Ref(made.name)

    def dtype(self, value: Ref) -> torch.dtype:
        own = next((node.dtype for node in self.made if node.name == value.name), None)
        return own or self.graph.value(value.name).dtype

    def view(self, value: Ref, *shape: Any) -> Ref:
        return self.make("view", (value,), shape, self.dtype(value))

    def permute(self, value: Ref, *dims: int) -> Ref:
        shape: Shape = tuple(self.shape(value)[d] for d in dims)
        return self.make("permute", (value,), shape, self.dtype(value), dims=dims)

    def pad(self, value: Ref, before: Sequence[int], after: Sequence[int]) -> Ref:
        """Zeros around the first axes; what is less than none is cut off."""
        shape: Shape = self.shape(value)
        for dim, (low, high) in enumerate(zip(before, after), 1):
            if low < 0 or high < 0:
                start, end = max(-low, 0), int(shape[dim]) - max(-high, 0)
                shape = (*shape[:dim], end - start, *shape[dim + 1 :])
                cut = {"dim": dim, "start": start, "end": end, "step": 1}
                value = self.make("slice", (value,), shape, self.dtype(value), **cut)
        before, after = ([max(n, 0) for n in side] for side in (before, after))
        if not any((*before, *after)):
            return value
        wide = [int(n) + low + high for n, low, high in zip(shape[1:], before, after)]
        attributes = {"before": tuple(before), "after": tuple(after)}
        return self.make("pad", (value,), (ROWS, *wide, *shape[len(wide) + 1 :]), self.dtype(value), **attributes)

    def channels_last(self, x: Ref) -> Ref:
        return self.permute(x, 0, *range(2, len(self.shape(x))), 1)

    def windows(self, x: Ref, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Ref:
        """[B, *L, C] -> [B, P, K * C]"""
        _, *sizes, channels = self.shape(x)
        reach = [d * (k - 1) for k, d in zip(kernel, dilation)]
        places = [(int(n) - r - 1) // s + 1 for n, r, s in zip(sizes, reach, stride)]
        shape: Shape = (ROWS, *places, *kernel, channels)
        options = {"kernel": tuple(kernel), "stride": tuple(stride), "dilation": tuple(dilation)}
        seen = self.make("windows", (x,), shape, self.dtype(x), **options)
        return self.view(seen, ROWS, prod(places), int(channels) * prod(kernel))


def _gather_in(s: _Steps, x: Ref, w: Ref, bias: Ref | None = None) -> Ref:
    outputs, channels, *kernel = (int(n) for n in s.shape(w))
    seen = s.windows(s.pad(s.channels_last(x), s.padding, s.padding), kernel, s.stride, s.dilation)
    matrix = s.view(s.permute(w, *range(2, 2 + len(kernel)), 1, 0), prod(kernel) * channels, outputs)
    return _as_image(s, seen, matrix, bias)


def _as_image(s: _Steps, seen: Ref, matrix: Ref, bias: Ref | None) -> Ref:
    shape: Shape = (ROWS, s.shape(seen)[1], s.shape(matrix)[1])
    made = s.make("mm", (seen, matrix), shape)
    if bias is not None:
        if s.dtype(bias) != s.node.dtype:
            bias = s.make("to_dtype", (bias,), s.shape(bias), dtype=s.node.dtype)
        made = s.make("add", (made, bias), shape)
    _, channels, *sizes = s.node.shape
    last = len(sizes) + 1
    return s.permute(s.view(made, ROWS, *sizes, channels), 0, last, *range(1, last))


def _spread_out(s: _Steps, d_y: Ref, w: Ref, bias: Ref | None = None) -> Ref:
    """d_x = convolution(d_y with `stride - 1` zeros between its elements, w turned round)"""
    outputs, channels, *kernel = (int(n) for n in s.shape(w))
    spread = _spread(s, s.channels_last(d_y))
    reach = [d * (k - 1) for k, d in zip(kernel, s.dilation)]
    before = [r - p for r, p in zip(reach, s.padding)]
    sizes = zip(s.node.shape[2:], s.shape(spread)[1:], reach, before)
    after = [int(n) + r - int(own) - low for n, own, r, low in sizes]
    seen = s.windows(s.pad(spread, before, after), kernel, [1] * len(kernel), s.dilation)
    axes = range(2, 2 + len(kernel))
    turned = s.make("flip", (w,), s.shape(w), s.dtype(w), dims=tuple(axes))
    matrix = s.view(s.permute(turned, *axes, 0, 1), prod(kernel) * outputs, channels)
    return _as_image(s, seen, matrix, bias)


def _spread(s: _Steps, x: Ref) -> Ref:
    for dim, step in enumerate(s.stride, 1):
        shape = s.shape(x)
        if step > 1 and shape[dim] != 1:
            size, before = int(shape[dim]), [0] * dim
            tall = s.view(x, *shape[: dim + 1], 1, *shape[dim + 1 :])
            wide = s.pad(tall, [*before, 0], [*before, step - 1])
            whole = s.view(wide, *shape[:dim], size * step, *shape[dim + 1 :])
            x = s.pad(whole, before, [*before[1:], 1 - step])
    return x


def _kernel_gradient(s: _Steps, x: Ref, d_y: Ref, w: Ref) -> Ref:
    """d_w[o, c, k] = sum over pairs and p of d_y[o, p] * windows(x)[p, k, c]"""
    outputs, channels, *kernel = (int(n) for n in s.shape(w))
    seen = s.windows(s.pad(s.channels_last(x), s.padding, s.padding), kernel, s.stride, s.dilation)
    d_rows = s.view(s.channels_last(d_y), ROWS, s.shape(seen)[1], outputs)
    outer = s.make("outer", (seen, d_rows), (prod(kernel) * channels, outputs))
    last = len(kernel)
    return s.permute(s.view(outer, *kernel, channels, outputs), last + 1, last, *range(last))
