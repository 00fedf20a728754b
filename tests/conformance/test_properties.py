"""All guarantees at once, over cells, lengths, shapes, resets and layouts at random: results are those of the loop."""

import math
from collections.abc import Callable
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from conformance.cases import assert_same, by_definition, by_library, poisoned
from conformance.descriptors import BACKENDS
from conformance.strategies import calls, descriptors
from throughtime import dynamic_rnn, static_rnn
from throughtime._nested import leaves, map_leaves
from throughtime._sequence import read_sequence

SHARE = settings.default.max_examples // 3


def from_both_sources(test: Callable[..., None]) -> Callable[..., None]:
    """As many examples with cells of the table as with cells at random. (Many more of these: test_random_cells.py.)"""
    return pytest.mark.parametrize("source", ["table", "random"])(settings(max_examples=SHARE)(test))


@from_both_sources
@pytest.mark.parametrize("backend", BACKENDS)
@given(data=st.data())
def test_outputs_states_and_every_gradient(backend: str, source: str, data: st.DataObject) -> None:
    case, layout = data.draw(calls(descriptors(backend, source)))
    want = by_definition(case)
    assert_same(by_library(case, backend, layout), want, case.dtype)
    if layout in ("padded", "time-major"):
        assert_same(by_library(poisoned(case, math.nan), backend, layout), want, case.dtype)


@from_both_sources
@pytest.mark.parametrize("backend", BACKENDS)
@given(data=st.data())
def test_a_sequence_in_two_pieces(backend: str, source: str, data: st.DataObject) -> None:
    """Running the first steps, and the others from the state they left, is running all (truncated BPTT)."""
    case, _ = data.draw(calls(descriptors(backend, source)))
    cut = data.draw(st.integers(0, case.steps))

    def run(inputs, lengths, state, reset):
        with torch.no_grad():
            return dynamic_rnn(
                case.subject.cell, inputs, lengths, state, reset=reset, reset_state=back, backend=backend
            )

    back = case.reset_state if case.reset is not None else None
    whole, end = run(case.inputs, case.lengths, case.initial_state, case.reset)
    first = run(
        map_leaves(lambda x: x[:, :cut], case.inputs),
        [min(n, cut) for n in case.lengths],
        case.initial_state,
        None if case.reset is None else case.reset[:, :cut],
    )
    second = run(
        map_leaves(lambda x: x[:, cut:], case.inputs),
        [max(n - cut, 0) for n in case.lengths],
        first[1],
        None if case.reset is None else case.reset[:, cut:],
    )
    joined = map_leaves(lambda a, b: torch.cat([a, b], 1), first[0], second[0])
    for a, b in zip([*leaves(joined), *leaves(second[1])], [*leaves(whole), *leaves(end)], strict=True):
        torch.testing.assert_close(a, b)


@from_both_sources
@given(data=st.data())
def test_static_is_dynamic(source: str, data: st.DataObject) -> None:
    case, _ = data.draw(calls(descriptors("portable", source)))
    if not case.steps:
        return
    steps = [map_leaves(lambda x: x[:, t], case.inputs) for t in range(case.steps)]  # noqa: B023
    outputs, state = static_rnn(case.subject.cell, steps, case.initial_state, sequence_length=case.lengths)
    want, want_state = dynamic_rnn(case.subject.cell, case.inputs, case.lengths, case.initial_state, backend="portable")
    stacked = map_leaves(lambda *ys: torch.stack(ys, 1), *outputs)
    for a, b in zip([*leaves(stacked), *leaves(state)], [*leaves(want), *leaves(want_state)], strict=True):
        assert torch.equal(a, b)


@given(st.lists(st.integers(0, 7), max_size=8), st.booleans())
def test_the_ragged_form_and_back(lengths: list[int], time_major: bool) -> None:
    """Reading and restoring is the identity inside the lengths and zero outside; turning round twice is nothing."""
    batch, steps = len(lengths), 7
    x = torch.arange(1.0, batch * steps + 1).reshape(batch, steps, 1)
    ragged = read_sequence(x.transpose(0, 1) if time_major else x, lengths, time_major)
    inside = (torch.arange(steps) < torch.tensor(lengths, dtype=torch.int64).unsqueeze(1)).unsqueeze(2)
    restored = ragged.restore(ragged.xs)
    assert torch.equal(restored.transpose(0, 1) if time_major else restored, x * inside)
    assert ragged.user_lengths.tolist() == lengths
    assert len(ragged.xs) == sum(lengths) == sum(ragged.active) == ragged.offsets[-1]
    rows = torch.arange(batch)
    assert torch.equal(ragged.unsort_rows(ragged.sort_rows(rows)), rows)
    turned = ragged.reversed()
    assert torch.equal(turned.reversed().xs, ragged.xs)
    assert torch.equal(turned.restore(turned.xs), restored)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5))
def test_nn_lstm_agrees(lengths: list[int]) -> None:
    """PyTorch's own layer, packed, is the same loop."""
    layer, cell = lstms()
    rows = [torch.randn(n, 3, dtype=torch.float64) for n in lengths]
    packed = nn.utils.rnn.pack_sequence(rows, enforce_sorted=False)
    outputs, (h, c) = dynamic_rnn(cell, packed)
    want, (want_h, want_c) = layer(packed)
    torch.testing.assert_close(outputs.data, want.data)
    torch.testing.assert_close((h, c), (want_h[0], want_c[0]))


@cache
def lstms() -> tuple[nn.LSTM, nn.LSTMCell]:
    """A layer of PyTorch's, and a cell with its weights; compiled once."""
    layer, cell = nn.LSTM(3, 4, batch_first=True).double(), nn.LSTMCell(3, 4).double()
    cell.load_state_dict({name.removesuffix("_l0"): tensor for name, tensor in layer.state_dict().items()})
    return layer, cell
