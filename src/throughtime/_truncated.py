"""Truncated back-propagation through time: windows over sequences, with the state carried and detached between them.

Source: Williams and Peng 1990, "An Efficient Gradient-Based Algorithm for On-Line Training of Recurrent Network
Trajectories" (BPTT(h; h'): `window` is h, `stride` is h').
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from throughtime._errors import SequenceError
from throughtime._nested import Nested, leaves, map_leaves
from throughtime._sequence import read_lengths
from throughtime._types import Backend, Cell
from throughtime._unroll import dynamic_rnn

__all__ = ["Window", "truncated"]


class Window(NamedTuple):
    """The steps [start, stop). `fresh`: how many of them, at the end, no earlier window had."""

    outputs: Nested
    state: Nested
    start: int
    stop: int
    fresh: int


def truncated(
    cell: Cell,
    inputs: Nested | Iterable[Nested],
    window: int | None = None,
    stride: int | None = None,
    sequence_length: Sequence[int] | Tensor | None = None,
    initial_state: Nested = None,
    *,
    backend: Backend = "auto",
) -> Iterator[Window]:
    """Yield windows of `window` steps, every `stride` steps; gradients end at the window's first step.

    Means, for `stride == window`::

        for start in range(0, T, window):
            outputs, state = dynamic_rnn(cell, inputs[:, start : start + window], initial_state=state)
            yield outputs                       # call backward() on its loss before the next one is taken
            state = detach(state)

    With a smaller stride windows overlap, and each step has gradients through up to `window` steps before it. No more
    than one window is held.

    Args:
        cell, sequence_length, initial_state, backend: as in `dynamic_rnn`.
        inputs: padded, [B, T, ...] in every leaf (a NumPy memory map too: a window at a time is read); or an
            iterable of such windows, one after the other, each of any number of steps.
        window: steps in a window. Left out for an iterable.
        stride: steps from one window's start to the next's; by default `window`.

    Raises:
        SequenceError: a window or a stride that is not between 1 and its bound, inputs of several lengths, or an
            iterable with a stride.

    >>> import torch, throughtime
    >>> cell = throughtime.GRUCell(4)
    >>> [w.outputs.shape[1] for w in throughtime.truncated(cell, torch.randn(2, 10, 3), window=4)]
    [4, 4, 2]
    """
    if window is None and not isinstance(inputs, (Tensor, np.ndarray)):
        if stride is not None or sequence_length is not None:
            raise SequenceError("truncated: an iterable brings its windows itself; leave stride and lengths out.")
        return _over_chunks(cell, inputs, initial_state, backend)
    if window is None or window < 1:
        raise SequenceError(f"truncated: window is a number of steps, at least 1, got {window}.")
    batch, steps = _common_axes(inputs)
    stride = window if stride is None else stride
    if not 1 <= stride <= window:
        raise SequenceError(f"truncated: stride must lie between 1 and the window of {window} steps, got {stride}.")
    lengths = np.full(batch, steps) if sequence_length is None else read_lengths(sequence_length, batch, steps)
    return _over_steps(cell, inputs, lengths, initial_state, (window, stride, steps), backend)


def _common_axes(inputs: Any) -> tuple[int, int]:
    axes = {tuple(leaf.shape[:2]) if isinstance(leaf, (Tensor, np.ndarray)) else () for leaf in leaves(inputs)}
    if len(axes) != 1 or len(found := axes.pop()) != 2:
        raise SequenceError(
            "truncated: with a window, inputs are tensors or arrays [B, T, ...] that share their first two axes. "
            "Leave window out for an iterable of windows."
        )
    return found


def _as_tensor(part: Any) -> Tensor:
    """A copy of what an array holds: it may be mapped, and closed to writing."""
    return part if isinstance(part, Tensor) else torch.from_numpy(np.array(part))


def _over_chunks(cell: Cell, chunks: Iterable[Nested], state: Nested, backend: Backend) -> Iterator[Window]:
    start = 0
    for chunk in chunks:
        chunk = map_leaves(_as_tensor, chunk)
        steps = leaves(chunk)[0].shape[1]
        outputs, final = dynamic_rnn(cell, chunk, initial_state=state, backend=backend)
        state = _detached(final)
        yield Window(outputs, final, start, start + steps, steps)
        start += steps
        del outputs, final, chunk


def _over_steps(
    cell: Cell,
    inputs: Nested,
    lengths: np.ndarray,
    state: Nested,
    sizes: tuple[int, int, int],
    backend: Backend,
) -> Iterator[Window]:
    window, stride, steps = sizes
    seen = 0

    def unroll(start: int, stop: int, state: Nested) -> tuple[Nested, Nested]:
        part = map_leaves(lambda leaf: _as_tensor(leaf[:, start:stop]), inputs)
        within = np.clip(lengths - start, 0, stop - start).tolist()
        return dynamic_rnn(cell, part, within, state, backend=backend)

    for start in range(0, steps, stride):
        middle, stop = min(start + stride, steps), min(start + window, steps)
        outputs, final = unroll(start, middle, state)
        state = _detached(final)
        if stop > middle:
            rest, final = unroll(middle, stop, final)
            outputs = map_leaves(lambda a, b: torch.cat([a, b], 1), outputs, rest)
        yield Window(outputs, final, start, stop, stop - seen)
        seen = stop
        del outputs, final
        if stop == steps:
            return


def _detached(state: Nested) -> Nested:
    return map_leaves(Tensor.detach, state)
