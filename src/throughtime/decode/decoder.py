"""A cell and a helper -> a decoder: what `dynamic_decode` runs.

Source: TensorFlow 1.15, contrib/seq2seq/python/ops/decoder.py and basic_decoder.py.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from throughtime._nested import Nested, leaves
from throughtime._state import fit_state, initial_row_consts, split_result
from throughtime._state import initial_state as start_of
from throughtime.decode.helpers import Helper
from throughtime.decode.history import Recorded, alignments_of, plain_output, put_history, wants_history
from throughtime.decode.tokens import check_callable

__all__ = ["BasicDecoder", "BasicDecoderOutput", "Decoder", "float_dtype", "run_cell"]


class Decoder(ABC):
    """What `dynamic_decode` runs: a step whose inputs come from the step before.

    Attributes:
        tracks_own_finished: whether `finished` of a step is the whole truth (beams change places); otherwise a row
            that has finished stays finished.
        drops_rows: whether the step runs on any choice of rows, so that finished ones can be left out. Everything that
            it keeps per row is then in the inputs, the state or `row_consts`.
    """

    tracks_own_finished: bool = False

    @property
    def drops_rows(self) -> bool:
        return False

    @abstractmethod
    def initialize(self) -> tuple[Tensor, Nested, Nested]:
        """(finished bool [B, ...], the first inputs, the first state); B rows in every leaf."""

    @abstractmethod
    def step(
        self, time: int, inputs: Nested, state: Nested, row_consts: Nested = ()
    ) -> tuple[Nested, Nested, Nested, Tensor]:
        """-> (outputs, next state, next inputs, finished). `row_consts` is passed where there are any."""

    def row_consts(self) -> Nested:
        """Tensors [B, ...] that stay the same for all steps; asked for once, after `initialize`."""
        return ()

    def finalize(self, outputs: Nested, final_state: Nested, sequence_lengths: Tensor) -> tuple[Nested, Nested]:
        """The outputs of all steps, time first, and the final state -> what is returned."""
        return outputs, final_state

    def final_lengths(self, final_state: Nested, sequence_lengths: Tensor) -> Tensor:
        """`sequence_lengths`, counted by the loop -> what is returned."""
        return sequence_lengths


class BasicDecoderOutput(NamedTuple):
    """rnn_output: the cell's output, through the output layer; sample_id: the token taken."""

    rnn_output: Nested
    sample_id: Tensor


class BasicDecoder(Decoder):
    """One token a step, one row a sequence::

        output, state = cell(inputs, state)
        rnn_output = output_layer(output)
        sample_id = helper.sample(time, rnn_output, state)
        finished, inputs, state = helper.next_inputs(time, rnn_output, state, sample_id)

    Args:
        cell: any cell.
        helper: chooses tokens and inputs.
        initial_state: of the cell; by default its own.
        output_layer: a function of the cell's output, such as `nn.Linear`.

    Source: TensorFlow 1.15, `tf.contrib.seq2seq.BasicDecoder`.

    >>> import torch, throughtime
    >>> helper = throughtime.GreedyEmbeddingHelper(torch.randn(6, 3), start_tokens=[1, 1], end_token=0)
    >>> decoder = throughtime.BasicDecoder(throughtime.GRUCell(5), helper, output_layer=torch.nn.Linear(5, 6))
    >>> outputs, state, lengths = throughtime.dynamic_decode(decoder, maximum_iterations=4)
    >>> outputs.rnn_output.shape[-1], state.shape
    (6, torch.Size([2, 5]))
    """

    def __init__(
        self,
        cell: Any,
        helper: Helper,
        initial_state: Nested = None,
        output_layer: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if not isinstance(helper, Helper):
            raise TypeError(f"BasicDecoder: helper must be a Helper, got a {type(helper).__name__}.")
        check_callable("BasicDecoder", optional={"output_layer": output_layer})
        self.cell, self.helper, self.output_layer = cell, helper, output_layer
        self._initial_state = initial_state
        self._records = wants_history(cell)
        self._like: tuple[torch.dtype, torch.device] | None = None

    @property
    def batch_size(self) -> int:
        return self.helper.batch_size

    @property
    def drops_rows(self) -> bool:
        return self.helper.drops_rows

    def initialize(self) -> tuple[Tensor, Nested, Nested]:
        finished, inputs = self.helper.initialize()
        rows, device = finished.shape[0], finished.device
        dtype = float_dtype(self.cell, self._initial_state, inputs)
        self._like = dtype, device
        state = self._initial_state
        if state is None:
            state = start_of(self.cell, inputs, rows, dtype, device)
        return finished, inputs, fit_state(state, None, rows, "initial_state")

    def row_consts(self) -> Nested:
        """The number of each row, and what the cell keeps per row."""
        dtype, device = self._like or (torch.get_default_dtype(), torch.device("cpu"))
        numbers = torch.arange(self.batch_size, device=device)
        return numbers, initial_row_consts(self.cell, self.batch_size, dtype, device)

    def step(
        self, time: int, inputs: Nested, state: Nested, row_consts: Nested = ()
    ) -> tuple[Nested, Nested, Nested, Tensor]:
        rows, cell_consts = row_consts or (None, ())
        output, cell_state = run_cell(self.cell, inputs, state, cell_consts)
        output = plain_output(output)
        if self.output_layer is not None:
            output = self.output_layer(output)
        which = {"rows": rows} if self.helper.drops_rows else {}
        sample_ids = self.helper.sample(time, output, cell_state, **which)
        finished, next_inputs, next_state = self.helper.next_inputs(time, output, cell_state, sample_ids, **which)
        outputs = BasicDecoderOutput(output, sample_ids)
        recorded = Recorded(outputs, alignments_of(cell_state)) if self._records else outputs
        return recorded, next_state, next_inputs, finished

    def finalize(self, outputs: Nested, final_state: Nested, sequence_lengths: Tensor) -> tuple[Nested, Nested]:
        if not isinstance(outputs, Recorded):
            return outputs, final_state
        return outputs.outputs, put_history(final_state, outputs.alignments)


def run_cell(cell: Any, inputs: Nested, state: Nested, row_consts: Nested) -> tuple[Nested, Nested]:
    """(output, next state) of any cell."""
    result = cell(inputs, state, row_consts) if leaves(row_consts) else cell(inputs, state)
    # What nearly every cell returns; the general reading takes 0.1 ms, as long as a small cell's step.
    if type(result) is tuple and len(result) == 2 and _alike(result[1], state):
        return result
    return split_result(result, state)


def _alike(a: Nested, b: Nested) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.shape == b.shape and a.dtype == b.dtype
    return type(a) is type(b) and isinstance(a, tuple) and len(a) == len(b) and all(map(_alike, a, b))


def float_dtype(cell: Any, *values: Nested) -> torch.dtype:
    """The dtype of the first floating tensor of `values`, else of the cell's weights."""
    weights = cell.parameters() if isinstance(cell, torch.nn.Module) else ()
    tensors = [leaf for leaf in leaves(values) if isinstance(leaf, Tensor)]
    floating = (tensor.dtype for tensor in (*tensors, *weights) if tensor.is_floating_point())
    return next(floating, torch.get_default_dtype())
