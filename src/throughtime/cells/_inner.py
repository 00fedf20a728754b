"""What a wrapper asks of the cell inside it: any module that is a cell, PyTorch's own included."""

from typing import Any

import torch
from torch import nn

from throughtime._errors import StateError
from throughtime._nested import Nested, leaves
from throughtime._state import declared_state, declares_state
from throughtime.cells._base import RNNCell

__all__ = ["CellWrapper", "call_cell", "initial_state_of", "output_size_of", "row_consts_of", "state_size_of"]


def call_cell(cell: Any, inputs: Nested, state: Nested, row_consts: Nested = ()) -> tuple[Nested, Nested]:
    """(output, next state). PyTorch's own cells return the state only; (h, c) for an LSTM."""
    if isinstance(cell, nn.RNNCellBase):
        next_state = cell(inputs, state)
        return (next_state[0] if isinstance(next_state, tuple) else next_state), next_state
    return cell(inputs, state, row_consts) if leaves(row_consts) else cell(inputs, state)


def state_size_of(cell: Any) -> Any:
    if isinstance(cell, nn.RNNCellBase):
        return (cell.hidden_size, cell.hidden_size) if isinstance(cell, nn.LSTMCell) else cell.hidden_size
    return cell.state_size


def output_size_of(cell: Any) -> Any:
    return cell.hidden_size if isinstance(cell, nn.RNNCellBase) else cell.output_size


def initial_state_of(
    cell: Any, batch_size: int, dtype: torch.dtype | None, device: torch.device | str | None
) -> Nested:
    state = declared_state(cell, batch_size, dtype, device)
    if state is None:
        raise StateError(
            f"a wrapped cell must say what state it starts from; {type(cell).__name__} does not. "
            f"Give it an initial_state(batch_size, dtype, device) method or a state_size."
        )
    return state


def row_consts_of(cell: Any, batch_size: int, dtype: torch.dtype, device: torch.device) -> Nested:
    declare = getattr(cell, "row_consts", None)
    return declare(batch_size, dtype, device) if callable(declare) else ()


class CellWrapper(RNNCell):
    """A cell around another, `cell`: same sizes, same state, same constants per row."""

    def __init__(self, cell: Any) -> None:
        super().__init__()
        if not callable(cell):
            raise TypeError(
                f"{type(self).__name__}: the wrapped cell is a callable (input, state) -> (output, next_state), "
                f"got a {type(cell).__name__}."
            )
        self.cell = cell

    @property
    def declares_state(self) -> bool:
        return declares_state(self.cell)

    @property
    def state_size(self) -> Any:
        return state_size_of(self.cell)

    @property
    def output_size(self) -> Any:
        return output_size_of(self.cell)

    def initial_state(
        self, batch_size: int, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Nested:
        return initial_state_of(self.cell, batch_size, dtype, device)

    def row_consts(self, batch_size: int, dtype: torch.dtype, device: torch.device) -> Nested:
        return row_consts_of(self.cell, batch_size, dtype, device)
