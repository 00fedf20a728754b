"""Guarantee: what comes in padded, time-major, packed or jagged goes out so, with the same numbers and gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from conformance.cases import assert_same, by_definition, by_library, draw_case
from conformance.descriptors import BACKENDS, Descriptor, by_name, over
from conformance.layouts import LAYOUTS
from throughtime import SequenceError, bidirectional_dynamic_rnn, dynamic_rnn

LENGTHS = [3, 5, 1, 5, 2]


@over()
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "padded"])
def test_every_layout(descriptor: Descriptor, backend: str, layout: str) -> None:
    case = draw_case(descriptor, LENGTHS, resets=0.2)
    if not LAYOUTS[layout].takes(case.inputs, case.lengths):
        with pytest.raises(SequenceError, match="one PackedSequence"):
            by_library(case, backend, layout)
        return
    assert_same(by_library(case, backend, layout), by_definition(case), case.dtype)


@over(by_name("nn.LSTMCell"))
def test_jagged_with_empty_rows(descriptor: Descriptor, backend: str) -> None:
    case = draw_case(descriptor, [0, 3, 0, 2])
    assert_same(by_library(case, backend, "jagged"), by_definition(case), case.dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sort", [True, False])
def test_a_packed_sequence_keeps_its_own_order(backend: str, sort: bool) -> None:
    lengths = [5, 3, 3] if sort else [3, 5, 3]
    packed = pack_padded_sequence(torch.randn(3, 5, 2), torch.tensor(lengths), True, enforce_sorted=sort)
    outputs, state = dynamic_rnn(nn.GRUCell(2, 4), packed, backend=backend)
    assert isinstance(outputs, PackedSequence)
    assert torch.equal(outputs.batch_sizes, packed.batch_sizes)
    assert outputs.sorted_indices is packed.sorted_indices
    assert outputs.unsorted_indices is packed.unsorted_indices
    padded, _ = nn.utils.rnn.pad_packed_sequence(outputs, batch_first=True)
    ends = torch.stack([padded[row, length - 1] for row, length in enumerate(lengths)])
    assert torch.equal(state, ends)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_jagged_output_has_the_ragged_axis_of_its_input(backend: str) -> None:
    """So that PyTorch adds them, as in a residual connection."""
    rows = [torch.randn(n, 4) for n in (3, 1, 4)]
    jagged = torch.nested.nested_tensor(rows, layout=torch.jagged)
    outputs, _ = dynamic_rnn(nn.GRUCell(4, 4), jagged, backend=backend)
    assert outputs.shape == jagged.shape
    assert (outputs + jagged).is_nested


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("said", "steps"), [({}, 4), ({"min_seqlen": 1, "max_seqlen": 6}, 6)])
def test_a_jagged_output_is_padded_as_its_input(backend: str, said: dict[str, int], steps: int) -> None:
    """Up to the length that the input says is the largest there can be, or that is the largest of all."""
    cell, x, lengths = nn.GRUCell(2, 4), torch.randn(3, steps, 2), [3, 1, 4]
    values = torch.cat([row[:n] for row, n in zip(x, lengths)])
    jagged = torch.nested.nested_tensor_from_jagged(values, torch.tensor([0, 3, 4, 8]), **said)
    outputs, _ = dynamic_rnn(cell, jagged, backend=backend)
    want, _ = dynamic_rnn(cell, x, lengths, backend=backend)
    torch.testing.assert_close(torch.nested.to_padded_tensor(outputs, 0.0), want)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_jagged_output_trains(backend: str) -> None:
    cell = nn.GRUCell(2, 4)
    jagged = torch.nested.nested_tensor([torch.randn(n, 2) for n in (3, 1)], layout=torch.jagged, requires_grad=True)
    outputs, _ = dynamic_rnn(cell, jagged, backend=backend)
    outputs.values().square().sum().backward()
    assert jagged.grad is not None
    assert jagged.grad.values().abs().sum() > 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_nested_outputs_of_packed_and_jagged_inputs(backend: str) -> None:
    def cell(x: Tensor, h: Tensor) -> Any:
        return {"twice": 2 * x, "once": (x,)}, h

    start = torch.zeros(2, 1)
    packed = nn.utils.rnn.pack_sequence([torch.ones(3, 2), torch.ones(1, 2)])
    outputs, _ = dynamic_rnn(cell, packed, initial_state=start, backend=backend)
    assert isinstance(outputs["once"][0], PackedSequence)
    assert torch.equal(outputs["twice"].data, 2 * packed.data)
    jagged = torch.nested.nested_tensor([torch.ones(3, 2), torch.ones(1, 2)], layout=torch.jagged)
    outputs, _ = dynamic_rnn(cell, {"x": jagged}["x"], initial_state=start, backend=backend)
    assert outputs["twice"].is_nested
    assert torch.equal(outputs["once"][0].values(), jagged.values())


@pytest.mark.parametrize("backend", BACKENDS)
def test_nested_jagged_inputs(backend: str) -> None:
    offsets = torch.tensor([0, 3, 3, 5])
    inputs = {
        "a": torch.nested.nested_tensor_from_jagged(torch.ones(5, 2), offsets),
        "b": torch.nested.nested_tensor_from_jagged(torch.ones(5, 2), offsets.clone()),
    }
    outputs, count = dynamic_rnn(
        lambda x, h: (x["a"] + x["b"], h + 1), inputs, initial_state=torch.zeros(3, 1), backend=backend
    )
    assert torch.equal(outputs.values(), torch.full((5, 2), 2.0))
    assert count.squeeze(1).tolist() == [3, 0, 2]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_both_directions_in_every_layout(backend: str, layout: str) -> None:
    """Backwards is forwards over each row turned round by its own length."""
    torch.manual_seed(0)
    lengths, x = [3, 5, 1], torch.randn(3, 5, 2, dtype=torch.float64)
    cell_fw, cell_bw = nn.GRUCell(2, 4).double(), nn.LSTMCell(2, 3).double()
    chosen = LAYOUTS[layout]
    (fw, bw), (state_fw, state_bw) = bidirectional_dynamic_rnn(
        cell_fw,
        cell_bw,
        chosen.encode(x, lengths),
        lengths if chosen.needs_lengths else None,
        backend=backend,
        **chosen.options,
    )
    turned = torch.zeros_like(x)
    for row, n in enumerate(lengths):
        turned[row, :n] = x[row, :n].flip(0)
    want_fw, want_state_fw = dynamic_rnn(cell_fw, x, lengths, backend=backend)
    want_turned, want_state_bw = dynamic_rnn(cell_bw, turned, lengths, backend=backend)
    got_bw = chosen.decode(bw, lengths, 5)
    torch.testing.assert_close(chosen.decode(fw, lengths, 5), want_fw)
    torch.testing.assert_close(state_fw, want_state_fw)
    torch.testing.assert_close(state_bw, want_state_bw)
    for row, n in enumerate(lengths):
        torch.testing.assert_close(got_bw[row, :n], want_turned[row, :n].flip(0))
        assert not got_bw[row, n:].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_lengths_beside_a_layout_that_carries_them_must_agree(backend: str) -> None:
    cell = nn.GRUCell(2, 4)
    rows = [torch.randn(2, 2), torch.randn(4, 2)]
    for inputs, what in (
        (nn.utils.rnn.pack_sequence(rows, enforce_sorted=False), "PackedSequence"),
        (torch.nested.nested_tensor(rows, layout=torch.jagged), "nested tensor"),
    ):
        dynamic_rnn(cell, inputs, [2, 4], backend=backend)
        with pytest.raises(SequenceError, match="carries its lengths itself") as caught:
            dynamic_rnn(cell, inputs, [2, 3], backend=backend)
        assert f"a {what} carries" in str(caught.value)
        assert "row 1 has length 4, and sequence_length says 3" in str(caught.value)
