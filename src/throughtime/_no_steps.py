"""A trial of a step, and a run in which no row has one -> ys of no pairs and the state, with gradients that are zero.

A loss of such a run has a backward pass like any other: whatever the step would have read gets zeros, as from a batch
with steps whose loss does not depend on them. Nothing is computed through the cell, so no zero meets an infinity.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from throughtime._nested import Nested, leaves, map_leaves
from throughtime._state import trial, zero_row
from throughtime.capture.reach import reachable

__all__ = ["run_no_steps"]

Step = Callable[[Nested, Nested, Nested], tuple[Nested, Nested]]


def run_no_steps(
    cell: Any, step: Step, xs: Nested, state: Nested, row_consts: Nested, start: Nested
) -> tuple[Nested, Nested]:
    """The step is tried once on a row of zeros, to learn the shapes of what it would return, and what it reads.

    start: what rows would be put back to, or None.
    """
    trained = torch.is_grad_enabled() and not torch._C._are_functorch_transforms_active()
    with trial(xs), torch.set_grad_enabled(trained):
        output, next_state = step(*(map_leaves(zero_row, v) for v in (xs, state, row_consts)))
    read: list[Tensor] = []
    if trained:
        given = [leaf for value in (xs, state, row_consts, start) for leaf in leaves(value) if leaf is not None]
        read = [leaf for leaf in given if leaf.requires_grad] + _read(cell, [*leaves(output), *leaves(next_state)])
    none = map_leaves(lambda leaf: leaf.detach().new_zeros(0, *leaf.shape[1:]), output)
    return tuple(map_leaves(lambda leaf: _depending(leaf, read), value) for value in (none, state))  # type: ignore[return-value]


def _read(cell: Any, results: Iterable[Tensor]) -> list[Tensor]:
    """What the results were computed from: tensors that the cell holds, and the leaves of autograd's graph."""
    held = {
        (tensor.grad_fn, tensor.output_nr): tensor
        for _, tensor in reachable(cell)
        if isinstance(tensor, Tensor) and tensor.grad_fn is not None
    }
    found = {}
    for edge in _edges(result for result in results if result.grad_fn is not None):
        tensor = held[edge] if edge in held else _leaf(edge[0])
        if tensor is not None:
            found[id(tensor)] = tensor
    return list(found.values())


def _leaf(node: Any) -> Tensor | None:
    return node.variable if type(node).__name__ == "AccumulateGrad" else None


def _edges(results: Iterator[Tensor]) -> Iterator[tuple[Any, int]]:
    """Each edge of the graph behind the results, once."""
    waiting: list[tuple[Any, int]] = [(result.grad_fn, result.output_nr) for result in results]
    seen = set(waiting)
    while waiting:
        edge = waiting.pop()
        yield edge
        following = {e for e in edge[0].next_functions if e[0] is not None} - seen
        seen |= following
        waiting += following


def _depending(value: Tensor, read: list[Tensor]) -> Tensor:
    """A copy of the value, in whose gradient everything that is read gets zeros: none of its entries is joined on."""
    if not (value.is_floating_point() or value.is_complex()):
        return value.clone()
    return torch.cat([value, *(tensor.flatten()[:0].to(value) for tensor in read)])
