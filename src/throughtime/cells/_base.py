"""The base class of every cell here: its sizes say the state it starts from."""

from typing import Any

import torch
from torch import Tensor, nn

from throughtime._nested import Nested, leaves
from throughtime._state import zeros_of_size

__all__ = ["RNNCell"]


class RNNCell(nn.Module):
    """One step of a recurrent network: `output, next_state = cell(inputs, state)`.

    A subclass sets `state_size` and `output_size` (an int for [B, size], a `torch.Size` for [B, *size], or a nested
    structure of them) and writes `forward(inputs, state, row_consts=())`. `row_consts` is for cells that also
    override the method of that name; all others may leave it out.

    >>> import torch, throughtime
    >>> class Decay(throughtime.RNNCell):
    ...     state_size = output_size = 2
    ...     def forward(self, inputs, state, row_consts=()):
    ...         state = 0.5 * state + inputs
    ...         return state, state
    >>> cell = Decay()
    >>> cell(torch.ones(1, 2), cell.zero_state(1, torch.float32))[0]
    tensor([[1., 1.]])
    """

    state_size: Any
    output_size: Any

    def initial_state(
        self, batch_size: int, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Nested:
        """The state before the first step: zeros of `state_size`, [batch_size, ...] in every leaf."""
        return zeros_of_size(self.state_size, batch_size, dtype, device)

    def zero_state(
        self, batch_size: int, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Nested:
        """TensorFlow's name for `initial_state`."""
        return self.initial_state(batch_size, dtype, device)

    def get_initial_state(
        self, inputs: Nested = None, batch_size: int | None = None, dtype: torch.dtype | None = None
    ) -> Nested:
        """The initial state for one step's inputs [B, ...], or for a batch size and a dtype."""
        device = None
        if inputs is not None:
            first: Tensor = leaves(inputs)[0]
            _check_agreement("batch_size", batch_size, first.shape[0])
            _check_agreement("dtype", dtype, first.dtype)
            batch_size, dtype, device = first.shape[0], first.dtype, first.device
        if batch_size is None or dtype is None:
            raise ValueError(
                f"get_initial_state: batch_size and dtype cannot be None without inputs, got batch_size={batch_size}, "
                f"dtype={dtype}. Pass both, or the inputs of one step."
            )
        return self.initial_state(batch_size, dtype, device)

    def row_consts(self, batch_size: int, dtype: torch.dtype, device: torch.device) -> Nested:
        """Tensors [batch_size, ...] that stay the same for all steps of one call; () for a cell that has none."""
        return ()


def _check_agreement(what: str, given: Any, of_inputs: Any) -> None:
    if given is not None and given != of_inputs:
        raise ValueError(
            f"get_initial_state: {what} must be that of the inputs, {of_inputs}; got {given}. Leave {what} out."
        )
