"""A cell, padded inputs, lengths -> outputs and final state. The definition of a run: row by row, step by step.

It shares no code with the library but the names of nested leaves: no sorting, no packing, no masks, and no guess of
what a cell returns (the author of the cell's descriptor says that).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from throughtime._nested import Nested, map_leaves

__all__ = ["Leaf", "plain_loop", "real", "whole", "zeros"]

Step = Callable[[Any, Any, Any], tuple[Any, Any]]


class Leaf:
    """The features of one leaf, per row: real numbers, or whole ones from 0 to below a bound."""

    def __init__(self, shape: tuple[int, ...], below: int | None = None) -> None:
        self.shape, self.below = shape, below

    def dtype(self, floating: torch.dtype) -> torch.dtype:
        return floating if self.below is None else torch.int64

    def __repr__(self) -> str:
        return f"{'real' if self.below is None else f'whole<{self.below}'}{list(self.shape)}"


def real(*shape: int) -> Leaf:
    return Leaf(shape)


def whole(below: int, *shape: int) -> Leaf:
    return Leaf(shape, below)


def zeros(spec: Nested, axes: tuple[int, ...], dtype: torch.dtype) -> Nested:
    return map_leaves(lambda leaf: torch.zeros(*axes, *leaf.shape, dtype=leaf.dtype(dtype)), spec)


def plain_loop(
    step: Step,
    output: Nested,
    dtype: torch.dtype,
    inputs: Nested,
    lengths: list[int],
    steps: int,
    initial_state: Nested,
    row_consts: Nested = (),
    reset: Tensor | None = None,
    reset_state: Nested = None,
) -> tuple[Nested, Nested]:
    """For each row by itself: `for t in range(length): output[t], state = step(inputs[t], state, row_consts)`.

    step: one step, as the author of the cell means it.
    output: nested `Leaf`, what a step gives, for the rows that have no step.
    inputs: [B, T, ...] in every leaf. initial_state, row_consts, reset_state: [B, ...]. reset: bool [B, T].
    """
    if not lengths:
        return zeros(output, (0, steps), dtype), initial_state
    rows = []
    for b, length in enumerate(lengths):
        state, back, consts = (_row(value, b) for value in (initial_state, reset_state, row_consts))
        ys = zeros(output, (1, steps), dtype)
        for t in range(length):
            if reset is not None and reset[b, t]:
                state = back
            y, state = step(map_leaves(lambda x: x[b : b + 1, t], inputs), state, consts)  # noqa: B023
            ys = map_leaves(lambda whole, part: _put(whole, t, part), ys, y)  # noqa: B023
        rows.append((ys, state))
    outputs, states = zip(*rows)
    return _cat(outputs), _cat(states)


def _row(value: Nested, b: int) -> Nested:
    return None if value is None else map_leaves(lambda leaf: leaf[b : b + 1], value)


def _put(whole: Tensor, t: int, part: Tensor) -> Tensor:
    return torch.cat([whole[:, :t], part.unsqueeze(1).to(whole.dtype), whole[:, t + 1 :]], 1)


def _cat(parts: Any) -> Nested:
    return map_leaves(lambda *leaves: torch.cat(leaves), *parts)
