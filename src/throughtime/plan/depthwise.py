"""Convolutions with a kernel for each channel -> sums of weighted windows, without a product of matrices.

convolution(x, w, groups=C)[c * M + m, p]  =  sum over k of  windows(x)[p, k, c] * w[c * M + m, k]
"""

from collections.abc import Sequence

from throughtime.capture.graph import ROWS, Node, Ref, Shape
from throughtime.plan.editor import GraphEditor
from throughtime.plan.image_steps import Steps

__all__ = ["weigh_windows"]

INPUT, KERNEL = range(2)


def weigh_windows(graph: GraphEditor) -> None:
    """Before: convolution(x, w, b, groups=C)
    After:  permute(view(sum over K of (windows(pad(permute(x)))[B, *P, *K, C, 1] * w[*K, C, M]), [B, *P, C * M]) + b)
    """
    for node in graph.where(lambda n: _is_depthwise(graph, n)):
        steps = Steps(graph, node)
        result = _Depthwise(steps).result()
        graph.replace(node.name, steps.made, result.name)


def _is_depthwise(graph: GraphEditor, node: Node) -> bool:
    backward = node.op == "convolution_backward"
    if not backward and node.op != "convolution":
        return False
    groups, (count, each, *_) = node.attributes["groups"], graph.shape(node.args[2 if backward else 1].name)
    one_channel = groups > 1 and each == 1 and (count == groups or not node.attributes["transposed"])
    return one_channel and (not backward or node.attributes["output"] in (INPUT, KERNEL))


class _Depthwise:
    """C channels, of which each gives M; what is transposed is the input's gradient of what is not, and has M = 1."""

    def __init__(self, steps: Steps) -> None:
        self.s, attributes = steps, steps.node.attributes
        self.turned = attributes["transposed"]
        self.stride, self.padding, self.dilation = (attributes[k] for k in ("stride", "padding", "dilation"))
        weight = steps.node.args[1 if steps.node.op == "convolution" else 2]
        count, _, *self.kernel = (int(n) for n in steps.shape(weight))
        self.channels = attributes["groups"]
        self.each = count // self.channels
        self.axes = len(self.kernel)

    def result(self) -> Ref:
        if self.s.node.op == "convolution":
            x, w, bias = self.s.node.args
            return self._spread_out(x, w, bias) if self.turned else self._gather_in(x, w, bias)
        d_y, x, w = self.s.node.args
        if self.s.node.attributes["output"] == INPUT:
            return self._gather_in(d_y, w) if self.turned else self._spread_out(d_y, w)
        return self._kernel_gradient(d_y, x) if self.turned else self._kernel_gradient(x, d_y)

    def _gather_in(self, x: Ref, w: Ref, bias: Ref | None = None) -> Ref:
        return self._as_image(self._sum(self._times(self._windows(x), self._weights(w)), self._kernel_axes()), bias)

    def _spread_out(self, d_y: Ref, w: Ref, bias: Ref | None = None) -> Ref:
        s = self.s
        image = s.channels_last(self._exact(d_y))
        seen = s.windows_back(image, self.kernel, self.stride, self.padding, self.dilation)
        apart = s.view(seen, *s.shape(seen)[:-1], self.channels, self.each)
        turned = s.make("flip", (w,), s.shape(w), s.dtype(w), dims=tuple(range(2, 2 + self.axes)))
        product = self._times(apart, self._weights(turned))
        return self._as_image(self._sum(product, [*self._kernel_axes(), len(s.shape(product)) - 1]), bias)

    def _kernel_gradient(self, x: Ref, d_y: Ref) -> Ref:
        """Summed over the positions in each row first: what is left of a row is as small as the kernel."""
        s = self.s
        seen, d_last = self._windows(x), s.channels_last(self._exact(d_y))
        places = s.shape(d_last)[1:-1]
        d_rows = s.view(d_last, ROWS, *places, *[1] * self.axes, self.channels, self.each)
        of_row = self._sum(self._times(seen, d_rows), range(1, 1 + self.axes))
        total = s.make("sum", (of_row,), s.shape(of_row)[1:], dims=(0,), keepdim=False)
        flat = s.view(total, *self.kernel, self.channels * self.each, 1)
        return s.permute(flat, self.axes, self.axes + 1, *range(self.axes))

    def _windows(self, x: Ref) -> Ref:
        """[B, *P, *K, C, 1]"""
        s = self.s
        image = s.pad(s.channels_last(self._exact(x)), self.padding, self.padding)
        seen = s.windows(image, self.kernel, self.stride, self.dilation)
        return s.view(seen, *s.shape(seen), 1)

    def _weights(self, w: Ref) -> Ref:
        """[*K, C, M]"""
        s = self.s
        last = s.permute(self._exact(w), *range(2, 2 + self.axes), 0, 1)
        return s.view(last, *self.kernel, self.channels, self.each)

    def _exact(self, value: Ref) -> Ref:
        """What autocast has rounded is multiplied in full."""
        s = self.s
        rounded = s.dtype(value) != s.node.dtype
        return s.make("to_dtype", (value,), s.shape(value), dtype=s.node.dtype) if rounded else value

    def _times(self, a: Ref, b: Ref) -> Ref:
        """Broadcast along the last axes: the kernel's, the channels and what each gives."""
        ahead, behind = self.s.shape(a), self.s.shape(b)[-self.axes - 2 :]
        both: Shape = tuple(n if m == 1 else m for m, n in zip(ahead[-len(behind) :], behind))
        return self.s.make("mul", (a, b), (*ahead[: -len(behind)], *both))

    def _kernel_axes(self) -> range:
        return range(1 + self.axes, 1 + 2 * self.axes)

    def _sum(self, value: Ref, axes: Sequence[int]) -> Ref:
        kept: Shape = tuple(n for i, n in enumerate(self.s.shape(value)) if i not in axes)
        return self.s.make("sum", (value,), kept, dims=tuple(axes), keepdim=False)

    def _as_image(self, made: Ref, bias: Ref | None) -> Ref:
        s = self.s
        _, channels, *sizes = s.node.shape
        made = s.view(made, ROWS, *sizes, channels)
        if bias is not None:
            made = s.make("add", (made, self._exact(bias)), s.shape(made))
        return s.channels_first(made)
