"""Guarantee: where `reset` is true the row's state is put back before that step, and gradients flow to what it gets.

It goes back to `reset_state`, by default to the cell's own initial state, never to the `initial_state` carried in.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from conformance.cases import assert_same, by_definition, by_library, draw_case
from conformance.descriptors import BACKENDS, Descriptor, by_name, over
from throughtime import ResetError, StateError, dynamic_rnn
from throughtime._nested import leaves

LENGTHS = [5, 2, 0, 4]


@over()
@pytest.mark.parametrize("initial", [False, True], ids=["own start", "initial_state"])
@pytest.mark.parametrize("given", [False, True], ids=["own reset", "reset_state"])
def test_results_and_gradients(descriptor: Descriptor, backend: str, initial: bool, given: bool) -> None:
    case = draw_case(descriptor, LENGTHS, 5, initial=initial, resets=0.4, reset_state=given)
    assert_same(by_library(case, backend), by_definition(case), case.dtype)


@over(by_name("nn.LSTMCell", "learned start", "two widths"))
def test_a_reset_cuts_a_sequence_in_two(descriptor: Descriptor, backend: str) -> None:
    """What comes after a reset is what the rest of the row gives by itself."""
    case = draw_case(descriptor, [6, 6], initial=True)
    reset = torch.zeros(2, 6, dtype=torch.bool)
    reset[:, 2] = True
    whole = by_library(replace(case, reset=reset), backend)
    rest, _ = dynamic_rnn(case.subject.cell, case.inputs[:, 2:], backend=backend)
    torch.testing.assert_close(whole.outputs[:, 2:], rest)


@over(by_name("nn.GRUCell"))
def test_a_reset_at_the_first_step_drops_the_initial_state(descriptor: Descriptor, backend: str) -> None:
    case = draw_case(descriptor, [3], initial=True)
    result = by_library(replace(case, reset=torch.tensor([[True, False, False]])), backend)
    assert not result.gradients["initial_state"].any()


class Counting:
    """Nothing about it says a dtype: the state that is given does."""

    state_size = (1, 1)

    def __call__(self, x: Tensor, state: Any) -> Any:
        seen, mean = state[0] + 1, 0.5 * (state[1] + x.to(state[1].dtype))
        return mean, (seen, mean)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_own_start_has_the_dtypes_of_the_state_that_is_given(backend: str) -> None:
    x, start = torch.tensor([[[1], [2], [4]]]), (torch.ones(1, 1).double(), torch.ones(1, 1).double())
    reset = torch.tensor([[False, True, False]])
    outputs, (seen, mean) = dynamic_rnn(Counting(), x, initial_state=start, reset=reset, backend=backend)
    assert outputs.dtype == seen.dtype == torch.float64
    assert outputs.flatten().tolist() == [1.0, 1.0, 2.5]
    assert (seen.item(), mean.item()) == (2.0, 2.5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("as_kind", [lambda mask: mask, lambda mask: mask.tolist(), lambda mask: mask.numpy()])
def test_kinds_of_mask(backend: str, as_kind: Any) -> None:
    cell, x, mask = nn.GRUCell(3, 4), torch.randn(2, 5, 3), torch.rand(2, 5) < 0.5
    want, _ = dynamic_rnn(cell, x, reset=mask, backend=backend)
    got, _ = dynamic_rnn(cell, x, reset=as_kind(mask), backend=backend)
    assert torch.equal(got, want)


@over(by_name("nn.LSTMCell"))
@pytest.mark.parametrize("layout", ["packed", "jagged"])
@pytest.mark.parametrize("extra", [0, 2])
def test_a_padded_mask_goes_with_ragged_inputs(descriptor: Descriptor, backend: str, layout: str, extra: int) -> None:
    case = draw_case(descriptor, [3, 5, 3, 1], resets=0.4)
    assert case.reset is not None
    mask = torch.cat([case.reset, torch.ones(4, extra, dtype=torch.bool)], 1)
    got = by_library(case, backend, layout, reset=mask)
    assert_same(got, by_definition(case), case.dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_packed_mask_with_the_lengths_of_other_rows_is_refused(backend: str) -> None:
    """Both have rows of 3 and 1 steps, but not the same rows."""
    inputs = nn.utils.rnn.pack_sequence([torch.randn(3, 2), torch.randn(1, 2)])
    mask = nn.utils.rnn.pack_sequence([torch.zeros(1).bool(), torch.ones(3).bool()], enforce_sorted=False)
    with pytest.raises(ResetError, match="lengths of the inputs, row by row"):
        dynamic_rnn(nn.GRUCell(2, 2), inputs, reset=mask, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_equal_length_may_stand_in_another_order_in_the_mask(backend: str) -> None:
    """PyTorch's packing orders equal lengths as it likes; two packings need not agree."""
    torch.manual_seed(0)
    x, mask = torch.randn(3, 2, 2), torch.tensor([[False, True], [False, False], [True, False]])
    sizes = torch.tensor([3, 3])

    def pack(value: Tensor, order: list[int]) -> Any:
        index = torch.tensor(order)
        data = value[index].transpose(0, 1).flatten(0, 1)
        return nn.utils.rnn.PackedSequence(data, sizes, index, torch.argsort(index))

    cell = nn.GRUCell(2, 2)
    want, _ = dynamic_rnn(cell, x, reset=mask, backend=backend)
    packed, _ = dynamic_rnn(cell, pack(x, [2, 0, 1]), reset=pack(mask, [1, 2, 0]), backend=backend)
    got = nn.utils.rnn.pad_packed_sequence(packed, batch_first=True)[0]
    torch.testing.assert_close(got, want)


class _StartsAtOne(nn.Module):
    """Takes None for its state, and then starts at one."""

    def forward(self, x: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor]:
        h = (torch.ones_like(x) if h is None else h) * 0.5 + x
        return h, h


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_own_start_of_a_cell_that_takes_none_must_be_zero(backend: str) -> None:
    x, reset, state = torch.randn(2, 3, 2), torch.ones(2, 3).bool(), torch.randn(2, 2)
    with pytest.raises(StateError, match="shows it is not zeros"):
        dynamic_rnn(_StartsAtOne(), x, initial_state=state, reset=reset, backend=backend)
    outputs, _ = dynamic_rnn(
        _StartsAtOne(), x, initial_state=state, reset=reset, reset_state=torch.ones(2, 2), backend=backend
    )
    torch.testing.assert_close(outputs, x + 0.5)


WRONG = {
    "floats": (torch.ones(2, 5), "got torch.float32 with 0 further axes"),
    "whole numbers": (np.ones((2, 5), np.int64), "got torch.int64"),
    "features": (torch.ones(2, 5, 1).bool(), "with 1 further axes"),
    "one axis": (torch.ones(2).bool(), "with -1 further axes"),
    "too many steps": (torch.ones(2, 6).bool(), "expected 2 rows and 5 steps, got 2 and 6"),
    "too few steps": (torch.ones(2, 4).bool(), "expected 2 rows and 5 steps, got 2 and 4"),
    "too many rows": (torch.ones(3, 5).bool(), "expected 2 rows and 5 steps, got 3 and 5"),
    "no mask": ({"done": 1}, "cannot be made a tensor"),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("reset", "message"), WRONG.values(), ids=WRONG)
def test_wrong_masks(backend: str, reset: Any, message: str) -> None:
    with pytest.raises(ResetError, match="reset") as caught:
        dynamic_rnn(nn.GRUCell(3, 4), torch.randn(2, 5, 3), [5, 3], reset=reset, backend=backend)
    assert message in str(caught.value)


@pytest.mark.parametrize("backend", BACKENDS)
def test_wrong_reset_states(backend: str) -> None:
    cell, x, reset = nn.LSTMCell(3, 4), torch.randn(2, 5, 3), torch.ones(2, 5).bool()
    with pytest.raises(StateError, match="reset_state must have the structure"):
        dynamic_rnn(cell, x, reset=reset, reset_state=torch.zeros(2, 4), backend=backend)
    with pytest.raises(StateError, match="reset_state must have the sizes"):
        dynamic_rnn(cell, x, reset=reset, reset_state=(torch.zeros(2, 4), torch.zeros(2, 5)), backend=backend)
    double = torch.zeros(2, 4, dtype=torch.float64)
    with pytest.raises(StateError, match=r"expected float32\[2, 4\], got float64\[2, 4\]"):
        dynamic_rnn(cell, x, reset=reset, reset_state=(double, double), backend=backend)
    with pytest.raises(ResetError, match="pass reset= too"):
        dynamic_rnn(cell, x, reset_state=(torch.zeros(2, 4), torch.zeros(2, 4)), backend=backend)


@over(by_name("nn.LSTMCell", "MultiRNNCell"))
def test_no_row_is_reset(descriptor: Descriptor, backend: str) -> None:
    case = draw_case(descriptor, LENGTHS, 5)
    none = replace(case, reset=torch.zeros(4, 5, dtype=torch.bool))
    for a, b in zip(leaves(by_library(none, backend).state), leaves(by_library(case, backend).state)):
        assert torch.equal(a, b)
