"""A cell and a function that feeds it -> the loop with everything in the user's hands.

Source: TensorFlow 1.15, python/ops/rnn.py (raw_rnn).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from throughtime._nested import Nested, leaves, map_leaves
from throughtime._state import initial_row_consts, trial
from throughtime.decode.decoder import float_dtype, run_cell
from throughtime.decode.tokens import check_callable

__all__ = ["raw_rnn"]

LoopFunction = Callable[[int, Nested, Nested, Any], tuple[Tensor, Nested, Nested, Nested, Any]]


def raw_rnn(cell: Any, loop_fn: LoopFunction) -> tuple[Nested, Nested, Any]:
    """Run a cell until a function says that every row has finished.

    Means::

        finished, x, state, emit_structure, loop_state = loop_fn(0, None, None, None)
        while not all(finished):
            output, next_state = cell(x, state)
            now_finished, x, next_state, emit, loop_state = loop_fn(time + 1, output, next_state, loop_state)
            emitted[time], state = where(finished, (0, state), (emit, next_state))
            finished = finished or now_finished

    The function sees every row at every step, so finished rows are masked, not left out (`dynamic_decode` and
    `generate` leave them out). What it carries itself, `loop_state`, is never masked.

    Args:
        cell: any cell.
        loop_fn: (time, cell_output, cell_state, loop_state) ->
            (finished bool [B], next_input, next_cell_state, emit_output, next_loop_state). At its first call all but
            the time are None; the state that it returns is the initial state, and emit_output one row of what will be
            emitted, shapes and dtypes only (None: the cell's output). A next_loop_state of None keeps the old one. It
            is called once more after the last step, so next_input must then be anything of the right shape.

    Returns:
        (outputs, state, loop_state): outputs [T, B, ...], time first.

    Raises:
        TypeError: a loop_fn that cannot be called. ValueError: what it returned does not fit.

    Source: TensorFlow 1.15, `tf.nn.raw_rnn`; its TensorArrays are tensors here.

    >>> import torch, throughtime
    >>> x, cell = torch.randn(3, 2, 4), throughtime.GRUCell(5)
    >>> def loop_fn(time, output, state, loop_state):
    ...     state = cell.initial_state(2) if output is None else state
    ...     return torch.tensor([3, 1]) <= time, x[min(time, 2)], state, output, None
    >>> outputs, state, _ = throughtime.raw_rnn(cell, loop_fn)
    >>> outputs.shape, bool((outputs[1:, 1] == 0).all())
    (torch.Size([3, 2, 5]), True)
    """
    check_callable("raw_rnn", loop_fn=loop_fn)
    finished, inputs, state, emit_structure, loop_state = _first(loop_fn)
    row_consts = initial_row_consts(cell, len(finished), float_dtype(cell, state, inputs), finished.device)
    emitted: list[Nested] = []
    time = 0
    while not bool(finished.all()):
        time += 1
        output, cell_state = run_cell(cell, inputs, state, row_consts)
        now_finished, inputs, next_state, emit, next_loop_state = loop_fn(time, output, cell_state, loop_state)
        if emit is None:
            raise ValueError(f"raw_rnn: loop_fn must return what is emitted at every step, got None at time {time}.")
        _check_finished(now_finished, len(finished))
        loop_state = loop_state if next_loop_state is None else next_loop_state
        emitted.append(map_leaves(lambda leaf: _where(finished, torch.zeros_like(leaf), leaf), emit))  # noqa: B023
        state = map_leaves(lambda old, new: _where(finished, old, new), state, next_state)  # noqa: B023
        finished = finished | now_finished
    if emitted:
        return map_leaves(lambda *steps: torch.stack(steps), emitted[0], *emitted[1:]), state, loop_state
    if emit_structure is None:
        with trial(inputs):
            emit_structure, _ = run_cell(cell, inputs, state, row_consts)
            emit_structure = map_leaves(lambda leaf: leaf[0], emit_structure)
    rows = len(finished)
    return map_leaves(lambda leaf: leaf.new_zeros(0, rows, *leaf.shape), emit_structure), state, loop_state


def _first(loop_fn: LoopFunction) -> tuple[Tensor, Nested, Nested, Nested, Any]:
    finished, inputs, state, emit_structure, loop_state = loop_fn(0, None, None, None)
    _check_finished(finished, None)
    if not leaves(state) or any(not isinstance(leaf, Tensor) for leaf in leaves(state)):
        raise ValueError(
            "raw_rnn: the first call of loop_fn must return the initial state, tensors [B, ...]. "
            "Return cell.initial_state(batch_size) where cell_output is None."
        )
    return finished, inputs, state, emit_structure, loop_state


def _check_finished(finished: Any, rows: int | None) -> None:
    if (
        not isinstance(finished, Tensor)
        or finished.dtype != torch.bool
        or finished.dim() != 1
        or (rows is not None and len(finished) != rows)
    ):
        got = f"{finished.dtype} {list(finished.shape)}" if isinstance(finished, Tensor) else type(finished).__name__
        raise ValueError(f"raw_rnn: loop_fn must return finished as bool, one entry per row; got {got}.")


def _where(finished: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(finished.reshape(-1, *[1] * (no.dim() - 1)), yes, no)
