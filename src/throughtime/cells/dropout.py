"""A cell with dropout around it: on its input, its output, and the state it hands to the next step."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from throughtime._nested import Nested, leaves, map_leaves
from throughtime._state import zeros_of_size
from throughtime.cells._inner import CellWrapper, call_cell, initial_state_of, output_size_of, row_consts_of
from throughtime.cells._options import read_keep_prob
from throughtime.cells.lstm import LSTMStateTuple

__all__ = ["DropoutMasks", "DropoutWrapper"]

StateFilter = Callable[[Nested], Any]


class DropoutMasks(NamedTuple):
    """What variational dropout keeps for a whole sequence: factors [B, ...], 0 or 1 / keep_prob; or ()."""

    inputs: Nested = ()
    state: tuple[Tensor, ...] = ()
    outputs: Nested = ()
    cell: Nested = ()


class DropoutWrapper(CellWrapper):
    """Dropout around a cell, in training mode only::

        output, next_state = cell(drop(x, input_keep_prob), state)
        next_state = drop(next_state, state_keep_prob)        # never the c of an LSTM
        output = drop(output, output_keep_prob)

    where `drop(v, keep)` multiplies each entry by 1 / keep with probability keep, else by 0. Output and state are
    dropped independently, though the h of an LSTM is both.

    Args:
        cell: the cell inside.
        input_keep_prob, output_keep_prob, state_keep_prob: from 0 to 1; 1 drops nothing.
        variational_recurrent: draw the masks once a sequence, one for each row, and use them at all its steps.
            `dynamic_rnn` does so; in a loop of your own pass `cell(x, state, row_consts)` with
            `row_consts = cell.row_consts(batch_size, dtype, device)`.
        input_size: an int, a `torch.Size` or a nested structure of them: the features of one step's input. Needed for
            variational dropout of inputs.
        dtype: TensorFlow needs it for variational dropout; here masks are of the dtype of the run, whatever it says.
        shared_mask: one variational mask for all rows of the batch, as TensorFlow has it.
        dropout_state_filter_visitor: called with the state, then with each part of it: True drops the part (looking
            into it if it is nested), False keeps it, a tuple says so for each entry. By default all but c of an
            `LSTMStateTuple` (or of a wrapped `nn.LSTMCell`).

    Source: Zaremba et al. 2014, arXiv 1409.2329; variational: Gal and Ghahramani 2016, arXiv 1512.05287; state:
    Semeniuta et al. 2016, arXiv 1603.05118; TensorFlow 1.15, `tf.nn.rnn_cell.DropoutWrapper`.

    >>> import torch, throughtime
    >>> cell = throughtime.DropoutWrapper(throughtime.LSTMCell(4), output_keep_prob=0.5)
    >>> output, state = cell(torch.randn(2, 3), cell.initial_state(2))
    >>> torch.equal(output, torch.where(output == 0, 0, 2 * state.h))
    True
    """

    def __init__(
        self,
        cell: Any,
        input_keep_prob: float = 1.0,
        output_keep_prob: float = 1.0,
        state_keep_prob: float = 1.0,
        variational_recurrent: bool = False,
        input_size: Any = None,
        dtype: torch.dtype | None = None,
        *,
        shared_mask: bool = False,
        dropout_state_filter_visitor: StateFilter | None = None,
    ) -> None:
        del dtype
        super().__init__(cell)
        self.input_keep_prob = read_keep_prob("input_keep_prob", input_keep_prob)
        self.output_keep_prob = read_keep_prob("output_keep_prob", output_keep_prob)
        self.state_keep_prob = read_keep_prob("state_keep_prob", state_keep_prob)
        self.variational_recurrent = variational_recurrent
        self.input_size = input_size
        self.shared_mask = shared_mask
        if dropout_state_filter_visitor is None:
            dropout_state_filter_visitor = _keep_second if isinstance(cell, nn.LSTMCell) else _keep_c
        if not callable(dropout_state_filter_visitor):
            raise TypeError("DropoutWrapper: dropout_state_filter_visitor must be callable.")
        self.dropout_state_filter_visitor = dropout_state_filter_visitor
        self._check_variational()

    def row_consts(self, batch_size: int, dtype: torch.dtype, device: torch.device) -> DropoutMasks:
        inner = row_consts_of(self.cell, batch_size, dtype, device)
        if not (self.training and self.variational_recurrent):
            return DropoutMasks(cell=inner)

        def masks(keep_prob: float, like: Callable[[], Nested]) -> Nested:
            if keep_prob == 1.0:
                return ()
            return map_leaves(lambda leaf: self._mask(leaf, keep_prob), like())

        return DropoutMasks(
            masks(self.input_keep_prob, lambda: zeros_of_size(self.input_size, batch_size, dtype, device)),
            masks(self.state_keep_prob, lambda: self._dropped(initial_state_of(self.cell, batch_size, dtype, device))),
            masks(self.output_keep_prob, lambda: zeros_of_size(output_size_of(self.cell), batch_size, dtype, device)),
            inner,
        )

    def forward(self, inputs: Nested, state: Nested, row_consts: Nested = ()) -> tuple[Nested, Nested]:
        masks = DropoutMasks(*row_consts)
        if self.training and self.variational_recurrent and self._drops() and not leaves(masks[:3]):
            raise ValueError(
                "DropoutWrapper(variational_recurrent=True): the masks of a sequence are drawn before its first step. "
                "Use dynamic_rnn, or call cell(inputs, state, row_consts) with "
                "row_consts = cell.row_consts(batch_size, dtype, device)."
            )
        inputs = self._drop(inputs, self.input_keep_prob, masks.inputs)
        outputs, next_state = call_cell(self.cell, inputs, state, masks.cell)
        next_state = self._drop_state(next_state, masks.state)
        return self._drop(outputs, self.output_keep_prob, masks.outputs), next_state

    def extra_repr(self) -> str:
        names = ("input_keep_prob", "output_keep_prob", "state_keep_prob", "variational_recurrent")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)

    def _drop(self, value: Nested, keep_prob: float, masks: Nested) -> Nested:
        if not self.training or keep_prob == 1.0:
            return value
        if self.variational_recurrent:
            return map_leaves(lambda leaf, mask: leaf * mask, value, masks)
        return map_leaves(lambda leaf: F.dropout(leaf, 1.0 - keep_prob, training=True), value)

    def _drop_state(self, state: Nested, masks: tuple[Tensor, ...]) -> Nested:
        if not self.training or self.state_keep_prob == 1.0:
            return state
        dropped: Iterator[Tensor] = iter(self._drop(self._dropped(state), self.state_keep_prob, masks))
        flags = _flags(self.dropout_state_filter_visitor, state)
        return map_leaves(lambda leaf, flag: next(dropped) if flag else leaf, state, flags)

    def _dropped(self, state: Nested) -> tuple[Tensor, ...]:
        """The leaves of a state that are dropped, from left to right."""
        flags = leaves(_flags(self.dropout_state_filter_visitor, state))
        return tuple(leaf for leaf, flag in zip(leaves(state), flags) if flag)

    def _mask(self, leaf: Tensor, keep_prob: float) -> Tensor:
        rows = 1 if self.shared_mask else leaf.shape[0]
        return F.dropout(leaf.new_ones(rows, *leaf.shape[1:]), 1.0 - keep_prob).expand(leaf.shape)

    def _drops(self) -> bool:
        return min(self.input_keep_prob, self.output_keep_prob, self.state_keep_prob) < 1.0

    def _check_variational(self) -> None:
        if self.variational_recurrent and self.input_keep_prob < 1.0 and self.input_size is None:
            raise ValueError(
                "DropoutWrapper: variational dropout of inputs draws its masks before it sees any; pass input_size=."
            )
        if self.shared_mask and not self.variational_recurrent:
            raise ValueError(
                "DropoutWrapper: shared_mask is a kind of variational mask; pass variational_recurrent=True."
            )


def _keep_c(state: Nested) -> Any:
    return (False, True) if isinstance(state, LSTMStateTuple) else True


def _keep_second(state: Nested) -> Any:
    return (True, False) if isinstance(state, tuple) else True


def _flags(visitor: StateFilter, state: Nested) -> Nested:
    """A bool for each leaf of the state, nested as it is: whether it is dropped."""
    choice = visitor(state)
    if choice is False or isinstance(state, Tensor):
        return map_leaves(lambda _: bool(choice), state)
    if isinstance(state, dict):
        chosen = dict.fromkeys(state, True) if choice is True else choice
        return {key: _chosen(visitor, part, chosen[key]) for key, part in state.items()}
    chosen = [True] * len(state) if choice is True else choice
    parts = [_chosen(visitor, part, flag) for part, flag in zip(state, chosen, strict=True)]
    return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)


def _chosen(visitor: StateFilter, part: Nested, flag: bool) -> Nested:
    return _flags(visitor, part) if flag else map_leaves(lambda _: False, part)
