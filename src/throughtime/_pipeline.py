"""READ FIRST: a cell and a ragged batch -> ys and the final state. Chooses the backend; owns the only cache."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from throughtime._errors import BackendError
from throughtime._nested import Nested, flatten, leaves, map_leaves, unflatten
from throughtime._sequence import Ragged
from throughtime._state import check_output, split_result, trial
from throughtime._types import Backend
from throughtime.loop.portable import PortableLoop

__all__ = ["Run", "run"]


@dataclass(frozen=True)
class Run:
    """Everything one call of an unroller needs, checked and in loop order (longest row first)."""

    cell: Any
    ragged: Ragged
    state: Nested
    row_consts: Nested
    reset: Tensor | None
    reset_state: Nested
    backend: Backend
    chunk: int


def run(request: Run) -> tuple[Nested, Nested]:
    """ys [N, ...] and the final state [B, ...], in loop order."""
    if request.backend == "native":
        raise BackendError("the native backend is not there yet; use backend='portable'.")
    if request.ragged.steps == 0:
        return _no_outputs(request), request.state
    return _portable(request)


def _portable(request: Run) -> tuple[Nested, Nested]:
    loop = PortableLoop(
        lambda x, state, row_consts: _step(request.cell, x, state, row_consts),
        request.ragged.active,
        request.row_consts,
        request.reset,
        request.reset_state,
    )
    return loop.run(request.ragged.xs, request.state)


def _step(cell: Any, x: Nested, state: Nested, row_consts: Nested) -> tuple[Nested, Nested]:
    result = cell(x, state, row_consts) if leaves(row_consts) else cell(x, state)
    output, next_state = split_result(result, state)
    check_output(output, leaves(x)[0].shape[0])
    return _full_precision(output, state), next_state


def _full_precision(output: Nested, state: Nested) -> Nested:
    """Under autocast products are rounded, outputs are not: they come out in the state's precision."""
    flat, structure = flatten(output)
    if not any(torch.is_autocast_enabled(leaf.device.type) for leaf in flat[:1]):
        return output
    floating = [leaf.dtype for leaf in leaves(state) if leaf.is_floating_point()]
    wanted = floating[0] if floating else torch.float32
    return unflatten(structure, [leaf.to(wanted) if leaf.is_floating_point() else leaf for leaf in flat])


def _no_outputs(request: Run) -> Nested:
    """No row has a step: the cell is tried once on a row of zeros, to learn the shapes of what it would return."""

    def one_row(leaf: Tensor) -> Tensor:
        return leaf.new_zeros(1, *leaf.shape[1:])

    x, state, row_consts = (map_leaves(one_row, v) for v in (request.ragged.xs, request.state, request.row_consts))
    with trial(request.ragged.xs):
        output, _ = _step(request.cell, x, state, row_consts)
    return map_leaves(lambda leaf: leaf.new_zeros(0, *leaf.shape[1:]), output)
