"""Shape operators -> strides. A view costs nothing: it says where the elements of a stored value lie.

Shapes here are *feature shapes*: the axes of one row. A stored value is contiguous in its features.
"""

import math
from dataclasses import dataclass
from typing import Any

from throughtime.capture.graph import ROWS, Node

__all__ = ["Features", "View", "contiguous", "feature_shape", "squeeze", "view_as", "view_through", "walked"]

Features = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class View:
    """Element (i, j, ...) of the value lies at `base[offset + i * strides[0] + j * strides[1] + ...]` in its row."""

    base: str
    shape: Features
    strides: tuple[int, ...]
    offset: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether the elements lie one after the other."""
        return self.strides_match(_row_major(self.shape))

    def strides_match(self, strides: tuple[int, ...]) -> bool:
        return all(n == 1 or a == b for n, a, b in zip(self.shape, self.strides, strides))

    def between(self, axis: int, start: int, end: int) -> "View":
        """A piece along an axis."""
        shape = (*self.shape[:axis], end - start, *self.shape[axis + 1 :])
        return View(self.base, shape, self.strides, self.offset + start * self.strides[axis])

    def broadcast_to(self, shape: Features) -> "View":
        """Repeat along axes of size 1, and along new axes in front, as PyTorch does."""
        missing = len(shape) - len(self.shape)
        own, strides = (1,) * missing + self.shape, (0,) * missing + self.strides
        repeated = tuple(0 if n == 1 else stride for n, stride in zip(own, strides))
        return View(self.base, shape, repeated, self.offset)


def feature_shape(shape: tuple[Any, ...]) -> Features:
    """The axes of one row. A value without rows keeps its axes, but for one that only stands for the rows."""
    return tuple(shape[1:]) if shape and shape[0] == ROWS else tuple(shape)


def contiguous(base: str, shape: Features) -> View:
    return View(base, shape, _row_major(shape))


def view_through(node: Node, of: View, has_rows: bool) -> View | None:
    """The view that a shape operator makes of another view; None where the elements must be copied first.

    `has_rows` says whether the operand has the row axis in front: axes in attributes count it.
    """
    attributes = node.attributes
    shape = feature_shape(node.shape)
    if node.op == "slice":
        axis = attributes["dim"] - (1 if has_rows else 0)
        if axis < 0:
            return None
        strides = list(of.strides)
        offset = of.offset + attributes["start"] * strides[axis]
        strides[axis] *= attributes["step"]
        return View(of.base, shape, tuple(strides), offset)
    if node.op == "flip":
        return _flipped(of, [d - (1 if has_rows else 0) for d in attributes["dims"]])
    if node.op == "windows":
        return _windows(of, attributes["stride"], attributes["dilation"], shape)
    if node.op == "permute":
        return _permuted(of, attributes["dims"], has_rows, shape)
    if node.op == "expand":
        if not has_rows and len(of.shape) == len(shape) + 1:  # a const [1, ...] that is repeated over the rows
            of = View(of.base, of.shape[1:], of.strides[1:], of.offset)
        return of.broadcast_to(shape)
    if node.op == "view":
        return view_as(of, shape)
    return None


def view_as(of: View, shape: Features) -> View | None:
    """The same elements in another shape; None where no strides do it."""
    strides = _reshaped(of.shape, of.strides, shape)
    return None if strides is None else View(of.base, shape, strides, of.offset)


def _permuted(of: View, dims: tuple[int, ...], has_rows: bool, shape: Features) -> View | None:
    if has_rows:
        if dims[0] != 0:
            return None
        dims = tuple(d - 1 for d in dims[1:])
    return View(of.base, shape, tuple(of.strides[d] for d in dims), of.offset)


def _flipped(of: View, axes: list[int]) -> View | None:
    """From the last element, backwards."""
    if any(a < 0 for a in axes):
        return None
    strides = tuple(-s if i in axes else s for i, s in enumerate(of.strides))
    offset = of.offset + sum((of.shape[a] - 1) * of.strides[a] for a in axes)
    return View(of.base, of.shape, strides, offset)


def _windows(of: View, steps: tuple[int, ...], apart: tuple[int, ...], shape: Features) -> View:
    """[*L, C] -> [*P, *K, C]: an element of several windows lies at one place."""
    *along, channel = of.strides
    positions = [stride * step for stride, step in zip(along, steps)]
    inside = [stride * gap for stride, gap in zip(along, apart)]
    return View(of.base, shape, (*positions, *inside, channel), of.offset)


def _row_major(shape: Features) -> tuple[int, ...]:
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= n
    return tuple(reversed(strides))


def _reshaped(shape: Features, strides: tuple[int, ...], new: Features) -> tuple[int, ...] | None:
    """Strides for the same elements in another shape, if there are any (as torch.Tensor.view finds them)."""
    if math.prod(shape) != math.prod(new):
        return None
    runs = _runs([(n, s) for n, s in zip(shape, strides) if n != 1])
    result: list[int] = []
    for size in reversed(new):
        if size == 1:
            result.append(0)
            continue
        if not runs:
            return None
        length, stride = runs[-1]
        if length % size:
            return None
        result.append(stride)
        runs[-1] = (length // size, stride * size)
        if runs[-1][0] == 1:
            runs.pop()
    return tuple(reversed(result))


def _runs(axes: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Neighbouring axes whose elements follow each other become one."""
    merged: list[tuple[int, int]] = []
    for n, stride in axes:
        if merged and merged[-1][1] == n * stride:
            merged[-1] = (merged[-1][0] * n, stride)
        else:
            merged.append((n, stride))
    return merged


def squeeze(shape: Features) -> Features:
    """Without the axes of size 1."""
    return tuple(n for n in shape if n != 1)


def walked(view: View, walk: Features) -> View:
    """A view as the walk over `walk` sees it: broadcast, then without the walk's axes of size 1."""
    extra = max(len(view.shape) - len(walk), 0)
    view = View(view.base, view.shape[extra:], view.strides[extra:], view.offset).broadcast_to(walk)
    kept = [i for i, n in enumerate(walk) if n != 1]
    return View(view.base, tuple(walk[i] for i in kept), tuple(view.strides[i] for i in kept), view.offset)
