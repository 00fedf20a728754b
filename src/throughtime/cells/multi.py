"""A stack of cells as one cell: each takes the output of the one below."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from throughtime._nested import Nested, leaves
from throughtime._state import declares_state
from throughtime.cells._base import RNNCell
from throughtime.cells._inner import (
    call_cell,
    initial_state_of,
    output_size_of,
    row_consts_of,
    state_size_of,
)

__all__ = ["MultiRNNCell"]


class MultiRNNCell(RNNCell):
    """Several cells as one::

        for k, cell in enumerate(cells):
            x, next_state[k] = cell(x, state[k])
        output = x

    Args:
        cells: modules that are cells, the lowest first. The same one twice shares its weights.
        state_is_tuple: False makes the state one tensor [B, sum of the sizes], for cells whose states are one tensor.

    Parameters: those of the cells, under `cells.0`, `cells.1`, and so on.

    Source: Graves 2013, arXiv 1308.0850, section 2; TensorFlow 1.15, `tf.nn.rnn_cell.MultiRNNCell`.

    >>> import torch, throughtime
    >>> cell = throughtime.MultiRNNCell([throughtime.LSTMCell(5), throughtime.GRUCell(4)])
    >>> output, (lower, upper) = cell(torch.randn(2, 3), cell.initial_state(2))
    >>> output.shape, lower.c.shape, upper.shape
    (torch.Size([2, 4]), torch.Size([2, 5]), torch.Size([2, 4]))
    """

    def __init__(self, cells: Sequence[nn.Module], state_is_tuple: bool = True) -> None:
        super().__init__()
        if not isinstance(cells, (list, tuple, nn.ModuleList)):
            raise TypeError(f"MultiRNNCell: cells must be a list or tuple, got a {type(cells).__name__}.")
        if not cells:
            raise ValueError("MultiRNNCell: at least one cell is needed, got an empty list.")
        for k, cell in enumerate(cells):
            if not isinstance(cell, nn.Module):
                raise TypeError(
                    f"MultiRNNCell: cells[{k}] must be an nn.Module, got a {type(cell).__name__}. "
                    f"Put the function into the forward of a module."
                )
        self.cells = nn.ModuleList(cells)
        self.state_is_tuple = state_is_tuple
        if not state_is_tuple and any(not isinstance(state_size_of(cell), int) for cell in cells):
            raise ValueError(
                "MultiRNNCell(state_is_tuple=False): a cell's state is a tuple and cannot be a column of one tensor. "
                "Leave state_is_tuple out, or build that cell with state_is_tuple=False too."
            )

    @property
    def declares_state(self) -> bool:
        return all(map(declares_state, self.cells))

    @property
    def state_size(self) -> Any:
        sizes = tuple(state_size_of(cell) for cell in self.cells)
        return sizes if self.state_is_tuple else sum(sizes)

    @property
    def output_size(self) -> Any:
        return output_size_of(self.cells[-1])

    def initial_state(
        self, batch_size: int, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Nested:
        return self._join([initial_state_of(cell, batch_size, dtype, device) for cell in self.cells])

    def row_consts(self, batch_size: int, dtype: torch.dtype, device: torch.device) -> Nested:
        """One entry per cell."""
        return tuple(row_consts_of(cell, batch_size, dtype, device) for cell in self.cells)

    def forward(self, inputs: Nested, state: Nested, row_consts: Nested = ()) -> tuple[Nested, Nested]:
        consts = row_consts if leaves(row_consts) else [()] * len(self.cells)
        next_state = []
        for cell, cell_state, cell_consts in zip(self.cells, self._split(state), consts, strict=True):
            inputs, cell_state = call_cell(cell, inputs, cell_state, cell_consts)
            next_state.append(cell_state)
        return inputs, self._join(next_state)

    def _split(self, state: Nested) -> Sequence[Nested]:
        if not self.state_is_tuple:
            if not isinstance(state, Tensor):
                raise TypeError(
                    f"MultiRNNCell(state_is_tuple=False): the state is one tensor, got a {type(state).__name__}."
                )
            return state.split([state_size_of(cell) for cell in self.cells], -1)
        if not isinstance(state, (tuple, list)) or len(state) != len(self.cells):
            got = f"of length {len(state)}" if isinstance(state, (tuple, list)) else f"a {type(state).__name__}"
            raise ValueError(
                f"MultiRNNCell: the state must be a tuple with one entry for each of {len(self.cells)} cells, got one "
                f"{got}. Start from cell.initial_state(batch_size)."
            )
        return state

    def _join(self, parts: list[Nested]) -> Nested:
        return tuple(parts) if self.state_is_tuple else torch.cat(parts, -1)
