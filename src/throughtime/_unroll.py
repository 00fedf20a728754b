"""Unroll a cell through time: check -> normalise -> pipeline -> shape the outputs.

Sources: TensorFlow 1.15, python/ops/rnn.py (dynamic_rnn, static_rnn, bidirectional_dynamic_rnn).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from throughtime._eager import eager
from throughtime._errors import MemoryPolicyError, ResetError, SequenceError
from throughtime._nested import (
    Nested,
    flatten,
    leaves,
    leaves_as,
    map_leaves,
    same_structure,
    unflatten,
)
from throughtime._pipeline import Run, run
from throughtime._sequence import Ragged, read_reset, read_sequence
from throughtime._state import (
    declares_state,
    describe,
    fit_state,
    initial_row_consts,
    rounds_products,
    size_parameters,
    zero_state,
)
from throughtime._state import initial_state as start_of
from throughtime._types import Backend, Cell
from throughtime.plan.memory import Budget, MemoryPolicy, Recompute, SaveAll, Spill

__all__ = [
    "CHUNK",
    "Options",
    "bidirectional_dynamic_rnn",
    "check_options",
    "dynamic_rnn",
    "prepare",
    "read_memory",
    "static_rnn",
]

CHUNK = 32  # TensorFlow's default of parallel_iterations


@eager
def dynamic_rnn(
    cell: Cell,
    inputs: Nested,
    sequence_length: Sequence[int] | Tensor | None = None,
    initial_state: Nested = None,
    dtype: torch.dtype | None = None,
    parallel_iterations: int | None = None,
    swap_memory: bool = False,
    time_major: bool = False,
    *,
    reset: Any = None,
    reset_state: Nested = None,
    memory: MemoryPolicy | None = None,
    backend: Backend = "auto",
) -> tuple[Nested, Nested]:
    """Run a cell over every sequence of a batch, each to its own end.

    Means, for each row of the batch::

        for t in range(T):
            output[t], state = cell(inputs[t], state)      # for t >= length: output 0, state kept

    Past a row's length its outputs are exactly 0, its final state is the state after its last step, and nothing of
    its padding, NaN included, reaches an output, a state or a gradient. Work is done for real steps only.

    Args:
        cell: a callable `(input, state) -> (output, next_state)`; `nn.RNNCell`, `nn.GRUCell` and `nn.LSTMCell` too.
        inputs: [B, T, ...], or [T, B, ...] with `time_major`; a `PackedSequence`; a jagged nested tensor; or a
            nested structure of tensors with the same B and T. Outputs come in the same layout.
        sequence_length: the number of steps of each row, whole numbers from 0 to T; by default every row has T.
        initial_state: nested, [B, ...] in every leaf. By default the cell's own (see the guide "write a cell").
        dtype: of the initial state that the cell makes; by default the inputs' own.
        parallel_iterations: how many steps' state-free work is done at once (a chunk; 32 by default).
        swap_memory: what the backward pass needs is moved out of fast memory, as `memory=Spill()`.
        time_major: whether time is the first axis of padded inputs and outputs.
        reset: a bool mask [B, T], or in the layout of the inputs; where true, the row's state is put back before that
            step.
        reset_state: what it is put back to; by default the cell's own initial state, never `initial_state`.
        memory: the memory policy of the backward pass.
        backend: "auto", "native" or "portable".

    Returns:
        (outputs, state): outputs in the layout of the inputs, state with one entry per row, in the user's order.

    Raises:
        SequenceError: inputs or lengths that do not describe a batch of sequences.
        StateError: a state that is unknown, or not of the cell's shapes.
        ResetError: a reset mask or state that does not fit.

    Source: TensorFlow 1.15, `tf.nn.dynamic_rnn`.

    >>> import torch, throughtime
    >>> cell = throughtime.LSTMCell(8)
    >>> outputs, state = throughtime.dynamic_rnn(cell, torch.randn(2, 5, 3), sequence_length=[5, 2])
    >>> outputs.shape, bool((outputs[1, 2:] == 0).all()), state.h.shape
    (torch.Size([2, 5, 8]), True, torch.Size([2, 8]))
    """
    check_options(cell, parallel_iterations, backend)
    ragged = read_sequence(inputs, sequence_length, time_major)
    del inputs, sequence_length
    mask = None if reset is None else read_reset(reset, ragged, time_major)
    del reset
    options = Options(dtype, parallel_iterations or CHUNK, backend, read_memory(swap_memory, memory))
    request = prepare(cell, ragged, initial_state, mask, reset_state, options)
    return _finish(ragged, *run(request))


@eager
def bidirectional_dynamic_rnn(
    cell_fw: Cell,
    cell_bw: Cell,
    inputs: Nested,
    sequence_length: Sequence[int] | Tensor | None = None,
    initial_state_fw: Nested = None,
    initial_state_bw: Nested = None,
    dtype: torch.dtype | None = None,
    parallel_iterations: int | None = None,
    swap_memory: bool = False,
    time_major: bool = False,
    *,
    memory: MemoryPolicy | None = None,
    backend: Backend = "auto",
) -> tuple[tuple[Nested, Nested], tuple[Nested, Nested]]:
    """Run one cell forwards and another backwards, each row reversed by its own length.

    Means: `outputs_bw[b, t]` is what `cell_bw` returns for `inputs[b, t]` after it has seen `inputs[b, length-1]`
    down to `inputs[b, t+1]`.

    Arguments and errors are those of `dynamic_rnn`.

    Returns:
        ((outputs_fw, outputs_bw), (state_fw, state_bw)), not concatenated.

    Source: TensorFlow 1.15, `tf.nn.bidirectional_dynamic_rnn`; Schuster and Paliwal 1997.
    """
    for cell in (cell_fw, cell_bw):
        check_options(cell, parallel_iterations, backend)
    forwards = read_sequence(inputs, sequence_length, time_major)
    del inputs, sequence_length
    backwards = forwards.reversed()
    options = Options(dtype, parallel_iterations or CHUNK, backend, read_memory(swap_memory, memory))
    fw = prepare(cell_fw, forwards, initial_state_fw, None, None, options)
    bw = prepare(cell_bw, backwards, initial_state_bw, None, None, options)
    outputs_fw, state_fw = _finish(forwards, *run(fw))
    outputs_bw, state_bw = _finish(backwards, *run(bw))
    return (outputs_fw, outputs_bw), (state_fw, state_bw)


def static_rnn(
    cell: Cell,
    inputs: Sequence[Nested],
    initial_state: Nested = None,
    dtype: torch.dtype | None = None,
    sequence_length: Sequence[int] | Tensor | None = None,
) -> tuple[list[Nested], Nested]:
    """Unroll a cell over a list of T inputs: a list in, a list out, and T copies of the step in the autograd graph.

    Means `dynamic_rnn` of the stacked inputs, step by step; its own graph does not grow with T.

    Args:
        inputs: T nested values, [B, ...] in every leaf.
        initial_state, dtype, sequence_length: as in `dynamic_rnn`.

    Returns:
        (outputs, state): a list of T outputs, [B, ...] in every leaf, and the final state.

    Raises:
        SequenceError: an empty list, or inputs that differ in shape.

    Source: TensorFlow 1.15, `tf.nn.static_rnn`.

    >>> import torch, throughtime
    >>> outputs, state = throughtime.static_rnn(throughtime.GRUCell(4), [torch.randn(2, 3) for _ in range(5)])
    >>> len(outputs), outputs[0].shape
    (5, torch.Size([2, 4]))
    """
    if isinstance(inputs, Tensor) or not isinstance(inputs, (list, tuple)):
        raise SequenceError(
            f"static_rnn: inputs must be a list of T inputs, got a {type(inputs).__name__}. "
            f"Use dynamic_rnn for one tensor, or list(inputs.unbind(1))."
        )
    if not inputs:
        raise SequenceError("static_rnn: inputs must not be empty. Use dynamic_rnn for sequences of no steps.")
    stacked = _stack(inputs)
    outputs, state = dynamic_rnn(
        cell, stacked, sequence_length, initial_state, dtype, time_major=True, backend="portable"
    )
    # `unbind`, not T selections: the gradient of each of those is as large as all outputs.
    flat, structure = flatten(outputs)
    return [unflatten(structure, step) for step in zip(*(leaf.unbind(0) for leaf in flat))], state


@dataclass(frozen=True)
class Options:
    dtype: torch.dtype | None
    chunk: int
    backend: Backend
    memory: MemoryPolicy


def prepare(
    cell: Any,
    ragged: Ragged,
    initial_state: Nested,
    reset: Tensor | None,
    reset_state: Nested,
    options: Options,
) -> Run:
    rows, dtype, device = ragged.batch_size, options.dtype or _dtype_of(ragged.xs, cell), ragged.device
    own = None
    if initial_state is None or declares_state(cell):
        own = start_of(cell, ragged.xs, rows, dtype, device)
    given = own if initial_state is None else initial_state
    state = fit_state(given, own, rows, "initial_state", any_dtype=True)
    del initial_state, given
    if reset is None and reset_state is not None:
        raise ResetError("dynamic_rnn: reset_state says what a reset goes back to; pass reset= too.")
    if reset is not None:
        if reset_state is None:
            reset_state = zero_state(cell, ragged.xs, state) if own is None else _in_dtypes_of(state, own)
        reset_state = ragged.sort_rows(fit_state(reset_state, state, rows, "reset_state"))
    row_consts = initial_row_consts(cell, rows, dtype, device)
    size_parameters(cell, ragged.xs, state, row_consts)
    return Run(
        cell,
        ragged,
        ragged.sort_rows(state),
        ragged.sort_rows(row_consts),
        reset,
        reset_state,
        options.backend,
        options.chunk,
        options.memory,
    )


def _in_dtypes_of(state: Nested, own: Nested) -> Nested:
    """The state that was given may be of other dtypes than the cell's own."""
    return map_leaves(lambda leaf, like: leaf.to(like.dtype), own, state)


def _finish(ragged: Ragged, ys: Nested, state: Nested) -> tuple[Nested, Nested]:
    return ragged.restore(ys), ragged.unsort_rows(state)


def _dtype_of(xs: Nested, cell: Any) -> torch.dtype:
    """The inputs' dtype; for token ids, that of the cell's weights.

    Under autocast inputs may come rounded from the layer before; the state stays in full precision.
    """
    weights = cell.parameters() if isinstance(cell, torch.nn.Module) else ()
    first = leaves(xs)[0]
    floating = (t.dtype for t in chain(leaves(xs), weights) if t.dtype.is_floating_point)
    dtype = next(floating, torch.get_default_dtype())
    rounded = dtype.itemsize < torch.float32.itemsize and rounds_products(first.device)
    return torch.float32 if rounded else dtype


def _stack(inputs: Sequence[Nested]) -> Nested:
    first, structure = flatten(inputs[0])
    columns = []
    for t, step in enumerate(inputs):
        alike = same_structure(step, inputs[0])
        flat = leaves_as(step, inputs[0]) if alike else []
        if not alike or any(not isinstance(a, Tensor) or a.shape != b.shape for a, b in zip(flat, first)):
            raise SequenceError(
                f"static_rnn: all inputs are tensors of the shapes of inputs[0], {describe(inputs[0])}; "
                f"inputs[{t}] is {describe(step)}."
            )
        columns.append(flat)
    return unflatten(structure, map(torch.stack, zip(*columns)))


def read_memory(swap_memory: bool, memory: MemoryPolicy | None) -> MemoryPolicy:
    if memory is not None and not isinstance(memory, (SaveAll, Recompute, Spill, Budget)):
        raise MemoryPolicyError(
            f"dynamic_rnn: memory is SaveAll(), Recompute(), Spill() or Budget(...), got {memory!r}."
        )
    if swap_memory and memory is not None and not isinstance(memory, Spill):
        raise MemoryPolicyError(f"dynamic_rnn: swap_memory=True means memory=Spill(); memory={memory} says otherwise.")
    return memory or (Spill() if swap_memory else SaveAll())


def check_options(cell: Any, parallel_iterations: int | None, backend: str) -> None:
    if not callable(cell):
        raise TypeError(
            f"dynamic_rnn: a cell is a callable (input, state) -> (output, next_state), got a {type(cell).__name__}."
        )
    if isinstance(cell, type):
        raise TypeError(
            f"dynamic_rnn: a cell is an object, got the class {cell.__name__}. Make one: {cell.__name__}(...)."
        )
    if isinstance(cell, torch.nn.RNNBase):
        kind = cell.mode.removesuffix("_TANH").removesuffix("_RELU")
        raise TypeError(
            f"dynamic_rnn: a cell is one step, and nn.{kind} is a layer that runs through all steps itself. "
            f"Pass nn.{kind}Cell, or call the layer on the inputs."
        )
    if parallel_iterations is not None and parallel_iterations < 1:
        raise ValueError(f"dynamic_rnn: parallel_iterations must be at least 1, got {parallel_iterations}.")
    if backend not in ("auto", "native", "portable"):
        raise ValueError(f"dynamic_rnn: backend must be 'auto', 'native' or 'portable', got {backend!r}.")
