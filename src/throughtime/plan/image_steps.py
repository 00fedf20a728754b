"""The nodes on the way to one that works on images, one by one.

Two operators that only plans have: `pad` puts a number around the first feature axes; `windows` looks at what a kernel
sees at each position, x[B, *L, C] -> [B, *P, *K, C]. Both are free of arithmetic. The channels come last, so that what
is read lies together.
"""

from collections.abc import Sequence
from typing import Any

import torch

from throughtime.capture.graph import ROWS, Node, Ref, Shape
from throughtime.plan.editor import GraphEditor

__all__ = ["Steps"]


class Steps:
    """The nodes on the way to one, and their shapes."""

    def __init__(self, graph: GraphEditor, node: Node) -> None:
        self.graph, self.node = graph, node
        self.made: list[Node] = []
        self.shapes: dict[str, Shape] = {}

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

    def pad(self, value: Ref, before: Sequence[int], after: Sequence[int], fill: float = 0) -> Ref:
        """Numbers around the first axes; what is less than none is cut off."""
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
        attributes = {"before": tuple(before), "after": tuple(after), "value": fill}
        return self.make("pad", (value,), (ROWS, *wide, *shape[len(wide) + 1 :]), self.dtype(value), **attributes)

    def channels_last(self, x: Ref) -> Ref:
        return self.permute(x, 0, *range(2, len(self.shape(x))), 1)

    def channels_first(self, x: Ref) -> Ref:
        last = len(self.shape(x)) - 1
        return self.permute(x, 0, last, *range(1, last))

    def windows(self, x: Ref, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Ref:
        """[B, *L, C] -> [B, *P, *K, C]"""
        _, *sizes, channels = self.shape(x)
        reach = [d * (k - 1) for k, d in zip(kernel, dilation)]
        places = [(int(n) - r - 1) // s + 1 for n, r, s in zip(sizes, reach, stride)]
        shape: Shape = (ROWS, *places, *kernel, channels)
        options = {"kernel": tuple(kernel), "stride": tuple(stride), "dilation": tuple(dilation)}
        return self.make("windows", (x,), shape, self.dtype(x), **options)

    def windows_back(
        self,
        y: Ref,
        kernel: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        fill: float = 0,
    ) -> Ref:
        """[B, *P, C] -> [B, *L, *K, C]: for each place of an image the windows that it is seen in, last one first.

        L is that of the node that is made.
        """
        spread = self.spread(y, stride, fill)
        reach = [d * (k - 1) for k, d in zip(kernel, dilation)]
        before = [r - p for r, p in zip(reach, padding)]
        sizes = zip(self.node.shape[2:], self.shape(spread)[1:], reach, before)
        after = [int(n) + r - int(own) - low for n, own, r, low in sizes]
        return self.windows(self.pad(spread, before, after, fill), kernel, [1] * len(kernel), dilation)

    def spread(self, x: Ref, stride: Sequence[int], fill: float = 0) -> Ref:
        """Numbers between the elements of the first axes."""
        for dim, step in enumerate(stride, 1):
            shape = self.shape(x)
            if step > 1 and shape[dim] != 1:
                size, before = int(shape[dim]), [0] * dim
                tall = self.view(x, *shape[: dim + 1], 1, *shape[dim + 1 :])
                wide = self.pad(tall, [*before, 0], [*before, step - 1], fill)
                whole = self.view(wide, *shape[:dim], size * step, *shape[dim + 1 :])
                x = self.pad(whole, before, [*before[1:], 1 - step])
        return x
