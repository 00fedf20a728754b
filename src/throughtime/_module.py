"""A cell -> a module that is called like nn.LSTM."""

import copy
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from throughtime._errors import SequenceError, StateError
from throughtime._nested import Nested, map_leaves
from throughtime._types import Backend
from throughtime._unroll import bidirectional_dynamic_rnn, dynamic_rnn

__all__ = ["RNN"]


class RNN(nn.Module):
    """A layer that unrolls any cell: `outputs, state = rnn(inputs, state)`, as with `nn.LSTM`.

    Means `dynamic_rnn(cell, inputs, sequence_length, initial_state=state)`. Bidirectional, it means
    `bidirectional_dynamic_rnn` with the outputs concatenated on their last axis and the state a pair
    (forwards, backwards).

    Args:
        cell: any cell; a cell that is an `nn.Module` becomes the submodule `cell`.
        batch_first: whether padded inputs are [B, T, ...] (unlike in `nn.LSTM` the default) or [T, B, ...].
        bidirectional: run a second cell backwards in time.
        cell_bw: that second cell; by default a copy of `cell` with parameters of its own, drawn anew by those of its
            modules that have `reset_parameters`.
        backend: as in `dynamic_rnn`.

    >>> import torch, throughtime
    >>> rnn = throughtime.RNN(throughtime.GRUCell(8), bidirectional=True)
    >>> outputs, (forwards, backwards) = rnn(torch.randn(2, 5, 3), sequence_length=[5, 2])
    >>> outputs.shape, backwards.shape
    (torch.Size([2, 5, 16]), torch.Size([2, 8]))
    """

    def __init__(
        self,
        cell: Any,
        *,
        batch_first: bool = True,
        bidirectional: bool = False,
        cell_bw: Any = None,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        if cell_bw is not None and not bidirectional:
            raise ValueError("RNN: cell_bw runs backwards in time; say bidirectional=True with it.")
        self.cell = cell
        self.batch_first = batch_first
        self.bidirectional = bidirectional
        self.backend: Backend = backend
        if bidirectional:
            self.cell_bw = _fresh_copy(cell) if cell_bw is None else cell_bw

    def forward(
        self,
        inputs: Nested,
        state: Nested = None,
        sequence_length: Any = None,
        *,
        reset: Any = None,
        reset_state: Nested = None,
    ) -> tuple[Nested, Nested]:
        """Arguments, layouts and errors as in `dynamic_rnn`; `state` is the initial state."""
        time_major = not self.batch_first
        if not self.bidirectional:
            return dynamic_rnn(
                self.cell,
                inputs,
                sequence_length,
                state,
                time_major=time_major,
                reset=reset,
                reset_state=reset_state,
                backend=self.backend,
            )
        if reset is not None or reset_state is not None:
            raise ValueError("RNN: reset has no meaning for both directions at once; unroll each cell by itself.")
        if state is not None and not (isinstance(state, (tuple, list)) and len(state) == 2):
            raise StateError(
                f"RNN: the state of both directions is a pair (forwards, backwards), got a {type(state).__name__}."
            )
        state_fw, state_bw = (None, None) if state is None else state
        outputs, state = bidirectional_dynamic_rnn(
            self.cell,
            self.cell_bw,
            inputs,
            sequence_length,
            state_fw,
            state_bw,
            time_major=time_major,
            backend=self.backend,
        )
        return _concatenate(*outputs), state

    def extra_repr(self) -> str:
        return f"batch_first={self.batch_first}, bidirectional={self.bidirectional}"


def _fresh_copy(cell: Any) -> Any:
    twin = copy.deepcopy(cell)
    if twin is cell:
        raise ValueError(
            f"RNN: a {type(cell).__name__} has no second set of parameters for the way back; pass cell_bw=."
        )
    if isinstance(twin, nn.Module):
        for module in twin.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
    return twin


def _concatenate(forwards: Nested, backwards: Nested) -> Nested:
    def join(a: Any, b: Any) -> Any:
        if isinstance(a, PackedSequence):
            return a._replace(data=join(a.data.unsqueeze(0), b.data.unsqueeze(0)).squeeze(0))
        if a.dim() < 3:
            raise SequenceError(
                "RNN: outputs of both directions are joined on their last axis, and the cell's output has no axis of "
                "features. Give it one, or use bidirectional_dynamic_rnn."
            )
        return torch.cat([a, b], -1)

    return map_leaves(join, forwards, backwards)
