"""Guarantee: rows without steps, T = 0 and B = 0 are valid: outputs zero or empty, the state is the initial one."""

import pytest
import torch
from torch import nn

from conformance.cases import assert_same, by_definition, by_library, draw_case
from conformance.descriptors import BACKENDS, TOLERANCES, Descriptor, by_name, over
from conformance.layouts import LAYOUTS
from throughtime import bidirectional_dynamic_rnn, dynamic_rnn
from throughtime._nested import leaves

EMPTY = {"all rows empty": ([0, 0, 0], 4), "T = 0": ([0, 0, 0], 0), "B = 0": ([], 4), "B = 0, T = 0": ([], 0)}


@over()
@pytest.mark.parametrize(("lengths", "steps"), EMPTY.values(), ids=EMPTY)
@pytest.mark.parametrize("initial", [False, True], ids=["own start", "initial_state"])
def test_everything(descriptor: Descriptor, backend: str, lengths: list[int], steps: int, initial: bool) -> None:
    """Outputs and states with their shapes and dtypes, and gradients: the final state hands its own through."""
    case = draw_case(descriptor, lengths, steps, torch.float32, initial=initial)
    assert_same(by_library(case, backend), by_definition(case), case.dtype)


@over(by_name("nn.LSTMCell", "nested inputs", "nested output"))
@pytest.mark.parametrize("layout", [name for name, layout in LAYOUTS.items() if layout.empty_rows])
def test_all_rows_empty_in_every_layout(descriptor: Descriptor, backend: str, layout: str) -> None:
    case = draw_case(descriptor, [0, 0], 0)
    assert_same(by_library(case, backend, layout), by_definition(case), case.dtype)


@over(by_name("nn.LSTMCell", "MultiRNNCell"))
@pytest.mark.parametrize("steps", [0, 3])
def test_resets_without_rows(descriptor: Descriptor, backend: str, steps: int) -> None:
    for lengths in ([], [0, 0]):
        case = draw_case(descriptor, lengths, steps, resets=0.5, reset_state=True)
        assert_same(by_library(case, backend), by_definition(case), case.dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 0, 3)])
def test_lengths_left_out(backend: str, shape: tuple[int, ...]) -> None:
    outputs, (h, c) = dynamic_rnn(nn.LSTMCell(3, 4), torch.randn(shape), backend=backend)
    assert outputs.shape == (*shape[:2], 4)
    assert h.shape == c.shape == (shape[0], 4)
    assert not h.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_both_directions(backend: str) -> None:
    for shape in ((0, 4, 3), (2, 0, 3)):
        outputs, states = bidirectional_dynamic_rnn(
            nn.GRUCell(3, 4), nn.GRUCell(3, 5), torch.randn(shape), backend=backend
        )
        assert [tuple(y.shape) for y in outputs] == [(*shape[:2], 4), (*shape[:2], 5)]
        assert [tuple(h.shape) for h in states] == [(shape[0], 4), (shape[0], 5)]


@over(by_name("nn.LSTMCell", "token ids", "MultiRNNCell"))
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_the_random_stream_is_untouched(descriptor: Descriptor, backend: str, dtype: torch.dtype) -> None:
    """The trial step that learns the shapes of the outputs draws no numbers of the user's."""
    case = draw_case(descriptor, [0, 0], 2, dtype)
    torch.manual_seed(5)
    outputs, _ = dynamic_rnn(case.subject.cell, case.inputs, case.lengths, backend=backend)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))
    assert all(leaf.dtype == dtype for leaf in leaves(outputs))
