"""One row per cell; the backends; the tolerances. Every guarantee of this folder runs over `DESCRIPTORS` x `BACKENDS`.

A new cell is a row of the table at the end. A new backend is a word in `BACKENDS`, and its name in `refused_by` of the
cells it cannot run. The definition that all are compared with is `definition.plain_loop`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from conformance import user_cells
from conformance.definition import Step, real, whole, zeros
from throughtime import cells
from throughtime._nested import Nested
from throughtime.cells import contrib

__all__ = [
    "BACKENDS",
    "BITWISE",
    "CALLS_THE_CELL",
    "DESCRIPTORS",
    "MIXES_DTYPES",
    "TOLERANCES",
    "Descriptor",
    "Subject",
    "by_name",
    "over",
]

BACKENDS = ["portable", "native"]
# Those whose every step is a call of the cell, which a cell can count.
CALLS_THE_CELL = {"portable"}
# Those that compute with whole numbers and with several floating dtypes in one step; the others refuse.
MIXES_DTYPES = {"portable"}
# Those that promise the same bits for a row whatever stands beside it.
BITWISE = {"native"}
# Relative to the largest value of each result and each gradient.
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-10}


@dataclass(frozen=True)
class Subject:
    """A cell that was made, and the tensors it is trained by."""

    cell: Any
    trainable: dict[str, Tensor]


@dataclass(frozen=True)
class Descriptor:
    """What the author of a cell knows of it.

    make: dtype -> Subject.
    inputs, state, output: nested `Leaf`, the features of one row.
    step: (cell, x, state, row_consts) -> (output, state), as the cell is meant.
    start: (cell, batch, dtype) -> the cell's own initial state; by default zeros.
    knows_start: whether a call without initial_state can find it.
    """

    name: str
    make: Callable[[torch.dtype], Subject]
    inputs: Nested
    state: Nested
    output: Nested
    step: Callable[[Any, Nested, Nested, Nested], tuple[Nested, Nested]]
    start: Callable[[Any, int, torch.dtype], Nested] | None = None
    knows_start: bool = True
    refused_by: frozenset[str] = frozenset()

    def make_start(self, cell: Any, batch: int, dtype: torch.dtype) -> Nested:
        return zeros(self.state, (batch,), dtype) if self.start is None else self.start(cell, batch, dtype)

    def step_of(self, cell: Any) -> Step:
        return partial(self.step, cell)


def over(descriptors: Iterable[Descriptor] | None = None, backends: Iterable[str] | None = None) -> Any:
    """A decorator: the test runs for each cell on each backend that does not refuse it."""
    chosen = DESCRIPTORS if descriptors is None else list(descriptors)
    pairs = [
        pytest.param(descriptor, backend, id=f"{descriptor.name}-{backend}")
        for backend in (BACKENDS if backends is None else backends)
        for descriptor in chosen
        if backend not in descriptor.refused_by
    ]
    return pytest.mark.parametrize(("descriptor", "backend"), pairs)


def by_name(*names: str) -> list[Descriptor]:
    table = {descriptor.name: descriptor for descriptor in DESCRIPTORS}
    return [table[name] for name in names]


def _pair(cell: Any, x: Nested, state: Nested, row_consts: Nested) -> tuple[Nested, Nested]:
    return cell(x, state)


def _pair_with_list(cell: Any, x: Nested, state: Nested, row_consts: Nested) -> tuple[Nested, Nested]:
    output, next_state = cell(x, state)
    return output, tuple(next_state)


def _state_only(cell: Any, x: Nested, state: Nested, row_consts: Nested) -> tuple[Nested, Nested]:
    h = cell(x, state)
    return h, h


def _h_and_c(cell: Any, x: Nested, state: Nested, row_consts: Nested) -> tuple[Nested, Nested]:
    h, c = cell(x, state)
    return h, (h, c)


def _with_row_consts(cell: Any, x: Nested, state: Nested, row_consts: Nested) -> tuple[Nested, Nested]:
    return cell(x, state, row_consts)


def _learned(cell: Any, batch: int, dtype: torch.dtype) -> Nested:
    return torch.stack([cell.start] * batch) if batch else cell.start.new_zeros(0, 4)


def _module(make: Callable[[], nn.Module]) -> Callable[[torch.dtype], Subject]:
    def made(dtype: torch.dtype) -> Subject:
        cell = make().to(dtype)
        return Subject(cell, dict(cell.named_parameters()))

    return made


def _function(make: Callable[..., Any], **shapes: tuple[int, ...]) -> Callable[[torch.dtype], Subject]:
    def made(dtype: torch.dtype) -> Subject:
        tensors = {name: torch.randn(shape, dtype=dtype, requires_grad=True) for name, shape in shapes.items()}
        return Subject(make(**tensors), tensors)

    return made


def _weight_normed() -> nn.Module:
    cell = nn.LSTMCell(3, 4)
    parametrizations.weight_norm(cell, "weight_hh")
    return cell


def _stack_of_three() -> nn.Module:
    lower, upper = cells.LSTMCell(4, input_size=3), cells.LSTMCell(3, use_peepholes=True, input_size=4)
    return cells.MultiRNNCell([lower, upper, cells.GRUCell(5, input_size=3)])


_LSTM = cells.LSTMStateTuple(real(4), real(4))
_TF_LSTM = partial(cells.LSTMCell, 5, use_peepholes=True, cell_clip=0.4, num_proj=3, proj_clip=0.3, input_size=3)
_TWO_LSTM = [(real(4), real(4)), (real(4), real(4))]
_STACK = (_LSTM, cells.LSTMStateTuple(real(3), real(3)), real(5))
_READINGS = user_cells.Readings(real(), {"field": real(2, 2), "twice": real(4)})  # type: ignore[arg-type]
_SLOW = {"a": real(3), "b": real(2, 3)}
_SEEN = {"image": real(2, 3), "action": whole(5)}

# fmt: off
DESCRIPTORS = [
    # PyTorch's own
    Descriptor("nn.RNNCell", _module(lambda: nn.RNNCell(3, 4)), real(3), real(4), real(4), _state_only),
    Descriptor("nn.GRUCell", _module(lambda: nn.GRUCell(3, 4)), real(3), real(4), real(4), _state_only),
    Descriptor("nn.LSTMCell", _module(lambda: nn.LSTMCell(3, 4)), real(3), (real(4), real(4)), real(4), _h_and_c),
    # the user's: functions
    Descriptor("plain function", lambda _: Subject(user_cells.leaky, {}), real(4), real(4), real(4), _pair),
    Descriptor("closed-over tensors", _function(user_cells.closing_over, weight=(7, 4), bias=(4,)),
               real(3), real(4), real(4), _state_only, knows_start=False),
    # the user's: state
    Descriptor("nested dict state", _module(user_cells.DictStateCell),
               real(2), {"fast": real(3), "slow": _SLOW}, real(3), _pair),
    Descriptor("two widths", _module(user_cells.TwoWidthsCell),
               real(2), (real(3), real(5)), real(3), _pair_with_list),
    Descriptor("no state", _module(user_cells.NoStateCell), real(3), (), real(4), _pair),
    Descriptor("matrix state", _module(user_cells.FastWeightsCell), real(3), (real(4), real(4, 4)), real(4), _pair),
    Descriptor("whole-number state", _module(user_cells.CountingCell),
               real(3), {"h": real(4), "step": whole(9, 1)}, real(4), _pair),
    Descriptor("learned start", _module(user_cells.LearnedStartCell), real(3), real(4), real(4), _pair, _learned),
    Descriptor("row constants", _module(user_cells.MemoryCell), real(3), real(4), real(4), _with_row_consts),
    # the user's: inputs and outputs
    Descriptor("token ids", _module(lambda: user_cells.EmbeddingCell(7)), whole(7), real(4), real(4), _pair),
    Descriptor("nested inputs", _module(user_cells.NestedInputCell), _SEEN, real(4), real(4), _pair),
    Descriptor("nested output", _module(user_cells.TupleOutputCell), real(3), [real(4)], _READINGS, _pair),
    Descriptor("output apart", _module(user_cells.ReadoutCell), real(3), real(4), real(2), _pair),
    # the user's: operators
    Descriptor("layer-norm LSTM", _module(user_cells.LayerNormLSTM), real(3), (real(4), real(4)), real(4), _pair),
    Descriptor("weight norm", _module(_weight_normed), real(3), (real(4), real(4)), real(4), _h_and_c),
    Descriptor("convolution", _module(user_cells.ConvCell), real(1, 5), real(2, 5), real(2, 5), _pair),
    Descriptor("sorted", lambda _: Subject(user_cells.in_order, {}), real(4), real(4), real(4), _pair),
    Descriptor("log gamma", lambda _: Subject(user_cells.log_gamma, {}), real(4), real(4), real(4), _pair,
               refused_by=frozenset({"native"})),
    Descriptor("custom gradient", _module(user_cells.SpikingCell), real(3), real(4), real(4), _pair),
    Descriptor("in place", _module(user_cells.InPlaceCell), real(3), real(4), real(4), _pair),
    Descriptor("two LSTMs with a skip", _module(user_cells.StackedLSTM), real(3), _TWO_LSTM, real(4), _pair),
    # ours
    Descriptor("BasicRNNCell", _module(lambda: cells.BasicRNNCell(4, input_size=3)),
               real(3), real(4), real(4), _pair),
    Descriptor("BasicLSTMCell", _module(lambda: cells.BasicLSTMCell(4, input_size=3)), real(3), _LSTM, real(4), _pair),
    Descriptor("LSTMCell, all options", _module(_TF_LSTM),
               real(3), cells.LSTMStateTuple(real(5), real(3)), real(3), _pair),
    Descriptor("GRUCell", _module(lambda: cells.GRUCell(4, input_size=3)), real(3), real(4), real(4), _pair),
    Descriptor("MultiRNNCell", _module(_stack_of_three), real(3), _STACK, real(5), _pair),
    Descriptor("ResidualWrapper", _module(lambda: cells.ResidualWrapper(cells.GRUCell(3, input_size=3))),
               real(3), real(3), real(3), _pair),
    Descriptor("NASCell", _module(lambda: contrib.NASCell(4, use_bias=True, input_size=3)),
               real(3), _LSTM, real(4), _pair),
    Descriptor("PhasedLSTMCell", _module(lambda: contrib.PhasedLSTMCell(4, use_peepholes=True, input_size=3)),
               (real(1), real(3)), _LSTM, real(4), _pair),
]
# fmt: on
