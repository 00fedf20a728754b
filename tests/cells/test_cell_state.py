"""State sizes, initial states and TensorFlow's aliases; states of a wrong kind are told."""

from typing import NamedTuple

import pytest
import torch

from throughtime._errors import StateError
from throughtime.cells import BasicLSTMCell, BasicRNNCell, GRUCell, LSTMCell, LSTMStateTuple, MultiRNNCell, RNNCell


class Pair(NamedTuple):
    a: object
    b: object


class Sized(RNNCell):
    def __init__(self, size: object) -> None:
        super().__init__()
        self.state_size = self.output_size = size


def test_sizes() -> None:
    assert BasicRNNCell(4).state_size == GRUCell(4).output_size == 4
    assert LSTMCell(4, num_proj=3).state_size == LSTMStateTuple(c=4, h=3)
    assert LSTMCell(4, num_proj=3).output_size == 3
    assert LSTMCell(4, num_proj=3, state_is_tuple=False).state_size == 7
    assert BasicLSTMCell(4, state_is_tuple=False).state_size == 8
    stack = MultiRNNCell([LSTMCell(4), torch.nn.LSTMCell(4, 2), torch.nn.GRUCell(2, 5), GRUCell(3)])
    assert stack.state_size == (LSTMStateTuple(4, 4), (2, 2), 5, 3)
    assert stack.output_size == 3


def test_initial_state_is_zeros_nested_like_the_sizes() -> None:
    cell = Sized({"a": Pair(2, torch.Size([3, 4])), "b": [1, (5,)]})
    state = cell.initial_state(6, torch.float64)
    assert isinstance(state["a"], Pair)
    assert state["a"].b.shape == (6, 3, 4)
    assert state["b"][1][0].shape == (6, 5)
    assert state["b"][0].dtype == torch.float64
    assert not state["a"].a.any()


def test_zero_state_is_initial_state() -> None:
    state = LSTMCell(4).zero_state(3, torch.float64, "meta")
    assert isinstance(state, LSTMStateTuple)
    assert (state.c.shape, state.h.dtype, state.h.device.type) == ((3, 4), torch.float64, "meta")


def test_get_initial_state() -> None:
    cell = GRUCell(4)
    x = torch.zeros(3, 2, dtype=torch.float64)
    for state in (
        cell.get_initial_state(x),
        cell.get_initial_state(batch_size=3, dtype=torch.float64),
        cell.get_initial_state((x, x), 3, torch.float64),
    ):
        assert (state.shape, state.dtype) == ((3, 4), torch.float64)


def test_get_initial_state_refuses() -> None:
    cell, x = GRUCell(4), torch.zeros(3, 2)
    with pytest.raises(ValueError, match="batch_size must be that of the inputs, 3; got 5"):
        cell.get_initial_state(x, batch_size=5)
    with pytest.raises(ValueError, match=r"dtype must be that of the inputs, torch.float32; got torch.float64"):
        cell.get_initial_state(x, dtype=torch.float64)
    with pytest.raises(ValueError, match="batch_size and dtype cannot be None"):
        cell.get_initial_state(batch_size=3)
    with pytest.raises(ValueError, match="batch_size and dtype cannot be None"):
        cell.get_initial_state(dtype=torch.float32)


def test_a_state_size_of_another_kind() -> None:
    with pytest.raises(StateError, match="or a nested structure of them, got str"):
        Sized((3, "four")).initial_state(2)


def test_lstm_state_tuple() -> None:
    assert LSTMStateTuple._fields == ("c", "h")
    assert LSTMStateTuple(torch.zeros(1), torch.zeros(1)).dtype == torch.float32
    with pytest.raises(TypeError, match="c and h must have one dtype"):
        _ = LSTMStateTuple(torch.zeros(1), torch.zeros(1).double()).dtype


@pytest.mark.parametrize("make", [BasicLSTMCell, LSTMCell])
def test_lstm_states_as_pair_and_as_one_tensor(make) -> None:
    pair, joined = make(4, input_size=3), make(4, state_is_tuple=False, input_size=3)
    joined.load_state_dict(pair.state_dict())
    x, c, h = torch.randn(2, 3), torch.randn(2, 4), torch.randn(2, 4)
    output, state = pair(x, (c, h))
    output_joined, state_joined = joined(x, torch.cat([c, h], -1))
    assert isinstance(state, LSTMStateTuple)
    assert torch.equal(output, output_joined)
    assert torch.equal(torch.cat(state, -1), state_joined)


@pytest.mark.parametrize("make", [BasicLSTMCell, LSTMCell])
def test_lstm_states_of_a_wrong_kind(make) -> None:
    # A tensor of two rows would unpack into "c" and "h" without a word.
    with pytest.raises(TypeError, match=r"a pair \(c, h\), got a Tensor"):
        make(4)(torch.randn(2, 3), torch.zeros(2, 4))
    with pytest.raises(TypeError, match=r"a pair \(c, h\), got a tuple of 3"):
        make(4)(torch.randn(2, 3), (torch.zeros(2, 4),) * 3)
    with pytest.raises(TypeError, match=r"state_is_tuple=False.*c and h stand in one tensor, got a tuple"):
        make(4, state_is_tuple=False)(torch.randn(2, 3), (torch.zeros(2, 4),) * 2)
