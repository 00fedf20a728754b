"""Protocols, and the legend of the letters that shapes ride on.

| letter | axis |
|---|---|
| T | time: steps |
| B | batch: rows, one sequence each |
| N | real (step, row) pairs, step by step: the sum of the lengths |
| I | input features |
| H | units |
"""

from typing import Any, Literal, Protocol

from torch import Tensor, device, dtype

from throughtime._nested import Nested

__all__ = ["Backend", "Cell", "DeclaresRowConsts", "DeclaresState", "Rows"]

Backend = Literal["auto", "native", "portable"]
Rows = Tensor


class Cell(Protocol):
    """One step: `output, next_state = cell(inputs, state)`. Any callable of this form is a cell."""

    def __call__(self, inputs: Any, state: Any, /) -> Any: ...


class DeclaresState(Protocol):
    """A cell that makes its own initial state."""

    def initial_state(self, batch_size: int, dtype: dtype, device: device) -> Nested: ...


class DeclaresRowConsts(Protocol):
    """A cell with tensors of one entry per row that stay the same for all steps of a call.

    An attention memory, or a dropout mask that is drawn once a sequence. The unroller asks for them once a
    call and hands the cell those of the rows that still run: `cell(inputs, state, row_consts)`.
    """

    def row_consts(self, batch_size: int, dtype: dtype, device: device) -> Nested: ...
