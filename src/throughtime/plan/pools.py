"""Pools of images -> reductions over windows.

max_pool(x)[p]  =  max over k of  windows(x)[p, k]          avg_pool: the mean
"""

from math import prod
from typing import Any

import torch

from throughtime.capture.graph import Node, Ref, Shape
from throughtime.plan.editor import GraphEditor
from throughtime.plan.image_steps import Steps

__all__ = ["reduce_windows"]

OPTIONS = {
    "max_pool2d_with_indices": ("kernel", "stride", "padding", "dilation", "ceil_mode"),
    "max_pool3d_with_indices": ("kernel", "stride", "padding", "dilation", "ceil_mode"),
    "avg_pool1d": ("kernel", "stride", "padding", "ceil_mode", "count_include_pad"),
    "avg_pool2d": ("kernel", "stride", "padding", "ceil_mode", "count_include_pad", "divisor"),
    "avg_pool3d": ("kernel", "stride", "padding", "ceil_mode", "count_include_pad", "divisor"),
}
"""The arguments after the tensors, in ATen's order; the gradients have them too."""


class _Pool:
    """What a node's arguments mean."""

    def __init__(self, node: Node) -> None:
        op = node.op.removesuffix("_backward")
        self.backward, self.is_max = op != node.op, op.startswith("max")
        tensors = 2 if self.backward else 1
        given: dict[str, Any] = dict(zip(OPTIONS[op], node.args[tensors:])) | node.attributes
        axes = len(node.shape) - 2
        self.kernel = _each(given["kernel"], axes)
        self.stride = _each(given.get("stride") or self.kernel, axes)
        self.padding = _each(given.get("padding", 0), axes)
        self.dilation = _each(given.get("dilation", 1), axes)
        even = not any(self.padding) or given.get("count_include_pad", True)
        self.divisor = given.get("divisor") or prod(self.kernel)
        self.fits = self.is_max or (even and not given.get("ceil_mode", False))
        self.reach = [d * (k - 1) for k, d in zip(self.kernel, self.dilation)]


def _each(value: Any, axes: int) -> tuple[int, ...]:
    """One number stands for all axes."""
    found = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return found * axes if len(found) == 1 else found


def reduce_windows(graph: GraphEditor) -> None:
    """Before: max_pool2d_with_indices(x, K, output=0)
    After:  permute(amax(windows(pad(permute(x), -inf)), K))

    The indices (output 1) that the gradient takes are found again from x.
    """
    for node in graph.where(lambda n: n.op.removesuffix("_backward") in OPTIONS and n.attributes.get("output", 0) == 0):
        pool, steps = _Pool(node), Steps(graph, node)
        if pool.fits:
            result = (_backward if pool.backward else _forward)(steps, pool)
            graph.replace(node.name, steps.made, result.name)


def _forward(s: Steps, pool: _Pool) -> Ref:
    seen = _windows(s, pool, s.node.args[0], s.node.shape[2:])
    if pool.is_max:
        return s.channels_first(_reduced(s, "amax", seen, pool))
    total = _reduced(s, "sum", seen, pool)
    return s.channels_first(s.make("div", (total, float(pool.divisor)), s.shape(total)))


def _windows(s: Steps, pool: _Pool, x: Ref, places: Shape) -> Ref:
    """The last window may reach over the edge."""
    sizes = zip(places, pool.stride, pool.reach, s.shape(x)[2:], pool.padding)
    after = [(int(p) - 1) * step + reach + 1 - int(n) - low for p, step, reach, n, low in sizes]
    fill = float("-inf") if pool.is_max else 0
    return s.windows(s.pad(s.channels_last(x), pool.padding, after, fill), pool.kernel, pool.stride, pool.dilation)


def _reduced(s: Steps, op: str, seen: Ref, pool: _Pool, keep: bool = False) -> Ref:
    """Over the kernel's axes."""
    axes = len(pool.kernel)
    dims = tuple(range(1 + axes, 1 + 2 * axes))
    shape: Shape = tuple(1 if i in dims else n for i, n in enumerate(s.shape(seen)) if keep or i not in dims)
    return s.make(op, (seen,), shape, s.dtype(seen), dims=dims, keepdim=keep)


def _backward(s: Steps, pool: _Pool) -> Ref:
    """For each place the sum of the gradients of the windows that it is seen in; of those that chose it, for max."""
    d_y, x = s.node.args[:2]

    def back(value: Ref, fill: float = 0) -> Ref:
        return s.windows_back(value, pool.kernel, pool.stride, pool.padding, pool.dilation, fill)

    given = back(s.channels_last(d_y))
    if not pool.is_max:
        total = _reduced(s, "sum", given, pool)
        return s.channels_first(s.make("div", (total, float(pool.divisor)), s.shape(total)))
    chosen = back(_chosen(s, pool, x, s.shape(d_y)[2:]), -1)
    hit = s.make("eq", (chosen, _numbers(s, pool, last_first=True)), s.shape(given), torch.bool)
    return s.channels_first(_reduced(s, "sum", s.make("where", (hit, given, 0.0), s.shape(given)), pool))


def _chosen(s: Steps, pool: _Pool, x: Ref, places: Shape) -> Ref:
    """[B, *P, C]: the number of the element that each window chose, the first of equal ones."""
    seen = _windows(s, pool, x, places)
    top = _reduced(s, "amax", seen, pool, keep=True)
    shape = s.shape(seen)
    hit = s.make("eq", (seen, top), shape, torch.bool)
    nothing = s.make("ne", (seen, seen), shape, torch.bool)
    found = s.make("logical_or", (hit, nothing), shape, torch.bool)
    last = prod(pool.kernel) - 1
    number = s.make("where", (found, _numbers(s, pool), last), shape, torch.int64)
    return _reduced(s, "amin", number, pool)


def _numbers(s: Steps, pool: _Pool, *, last_first: bool = False) -> Ref:
    """The elements of a kernel by number."""
    count = prod(pool.kernel)
    numbers = range(count)[::-1] if last_first else range(count)
    shape = (*pool.kernel, 1)
    return s.make("constant", (), shape, torch.int64, data=_nested(list(numbers), shape))


def _nested(numbers: list[int], shape: tuple[int, ...]) -> Any:
    if not shape:
        return numbers[0]
    size = len(numbers) // shape[0]
    return tuple(_nested(numbers[i * size : (i + 1) * size], shape[1:]) for i in range(shape[0]))
