"""MultiRNNCell and ResidualWrapper: a stack is its cells in order; constants per row go to the cell they belong to."""

import pytest
import torch
from torch import nn

from throughtime._errors import StateError
from throughtime._nested import leaves
from throughtime.cells import (
    BasicRNNCell,
    DropoutWrapper,
    GRUCell,
    LSTMCell,
    MultiRNNCell,
    ResidualWrapper,
    RNNCell,
)


class Scaled(RNNCell):
    """Its constant per row multiplies the input."""

    state_size = output_size = 3

    def row_consts(self, batch_size, dtype, device):
        return torch.arange(batch_size, dtype=dtype, device=device)[:, None]

    def forward(self, inputs, state, row_consts=()):
        return inputs * row_consts, state + 1


class Nameless(nn.Module):
    """A cell that declares nothing."""

    def forward(self, inputs, state):
        return inputs + state, state


CPU = torch.device("cpu")


def test_a_stack_is_its_cells_in_order() -> None:
    lower, upper = LSTMCell(4, input_size=3), GRUCell(2, input_size=4)
    x, s = torch.randn(5, 3), (torch.randn(5, 4), torch.randn(5, 4))
    h = torch.randn(5, 2)
    output, state = MultiRNNCell([lower, upper])(x, (s, h))
    middle, lower_state = lower(x, s)
    expected, upper_state = upper(middle, h)
    assert torch.equal(output, expected)
    assert isinstance(state, tuple)
    assert torch.equal(state[0].c, lower_state.c)
    assert torch.equal(state[1], upper_state)


def test_pytorchs_own_cells_in_a_stack() -> None:
    lstm, gru, rnn = nn.LSTMCell(3, 4), nn.GRUCell(4, 2), nn.RNNCell(2, 2)
    cell = MultiRNNCell([lstm, ResidualWrapper(gru, lambda x, y: y), rnn])
    x = torch.randn(5, 3)
    output, state = cell(x, cell.initial_state(5))
    h, c = lstm(x)
    assert torch.equal(state[0][0], h)
    assert torch.equal(state[0][1], c)
    assert torch.equal(output, rnn(gru(h)))


def test_the_same_cell_twice_shares_its_weights() -> None:
    shared = GRUCell(3, input_size=3)
    cell = MultiRNNCell([shared, shared])
    assert len(list(cell.parameters())) == len(list(shared.parameters()))
    output, _ = cell(torch.randn(2, 3), cell.initial_state(2))
    assert output.shape == (2, 3)


def test_a_stack_with_one_tensor_as_its_state() -> None:
    cells = [GRUCell(4, input_size=3), BasicRNNCell(2, input_size=4)]
    x, a, b = torch.randn(5, 3), torch.randn(5, 4), torch.randn(5, 2)
    output, (first, second) = MultiRNNCell(cells)(x, (a, b))
    flat = MultiRNNCell(cells, state_is_tuple=False)
    assert flat.state_size == 6
    assert flat.initial_state(5).shape == (5, 6)
    output_flat, state = flat(x, torch.cat([a, b], -1))
    assert torch.equal(output, output_flat)
    assert torch.equal(state, torch.cat([first, second], -1))


def test_bad_stacks() -> None:
    with pytest.raises(ValueError, match="at least one cell"):
        MultiRNNCell([])
    with pytest.raises(TypeError, match="cells must be a list or tuple, got a GRUCell"):
        MultiRNNCell(GRUCell(3))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"cells\[1\] must be an nn\.Module, got a function"):
        MultiRNNCell([GRUCell(3), lambda x, s: (x, s)])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="cannot be a column of one tensor"):
        MultiRNNCell([LSTMCell(3)], state_is_tuple=False)


def test_bad_states_of_a_stack() -> None:
    cell, x = MultiRNNCell([GRUCell(3), GRUCell(3)]), torch.randn(2, 3)
    with pytest.raises(ValueError, match="each of 2 cells, got one of length 1"):
        cell(x, (torch.zeros(2, 3),))
    with pytest.raises(ValueError, match="each of 2 cells, got one a Tensor"):
        cell(x, torch.zeros(2, 3))
    with pytest.raises(TypeError, match=r"MultiRNNCell.state_is_tuple=False.: the state is one tensor, got a tuple"):
        MultiRNNCell([GRUCell(3)], False)(x, (torch.zeros(2, 3),))


def test_row_consts_reach_their_cell() -> None:
    cell = MultiRNNCell([GRUCell(3), ResidualWrapper(Scaled()), DropoutWrapper(Scaled())])
    consts = cell.row_consts(4, torch.float32, CPU)
    assert [len(leaves(part)) for part in consts] == [0, 1, 1]
    x = torch.randn(4, 3)
    output, state = cell(x, cell.initial_state(4), consts)
    rows = torch.arange(4.0)[:, None]
    assert torch.allclose(output, (state[0] + state[0] * rows) * rows)


def test_a_stack_without_row_consts_calls_its_cells_with_two_arguments() -> None:
    cell = MultiRNNCell([Nameless()])
    assert leaves(cell.row_consts(2, torch.float32, CPU)) == []
    assert torch.equal(cell(torch.ones(2, 3), (torch.ones(2, 3),))[0], 2 * torch.ones(2, 3))


def test_a_wrapped_cell_must_say_its_state() -> None:
    for cell in (MultiRNNCell([Nameless()]), ResidualWrapper(Nameless())):
        with pytest.raises(StateError, match="must say what state it starts from; Nameless does not"):
            cell.initial_state(2)


def test_a_wrapped_cell_must_be_callable() -> None:
    with pytest.raises(TypeError, match="ResidualWrapper: the wrapped cell is a callable"):
        ResidualWrapper(3)


def test_residual_adds_leaf_by_leaf() -> None:
    class Pairs(nn.Module):
        state_size = 1

        def forward(self, inputs, state):
            return {"a": inputs["a"] * 2, "b": inputs["b"] * 3}, state

    cell = ResidualWrapper(Pairs())
    x = {"a": torch.ones(2, 3), "b": torch.ones(2, 4)}
    output, _ = cell(x, cell.initial_state(2))
    assert output["a"].unique().item() == 3
    assert output["b"].unique().item() == 4


def test_residual_of_another_kind() -> None:
    cell = ResidualWrapper(GRUCell(6), lambda x, y: torch.cat([x, y], -1))
    assert cell(torch.randn(2, 4), cell.initial_state(2))[0].shape == (2, 10)


def test_residual_of_shapes_that_do_not_fit() -> None:
    cell = ResidualWrapper(GRUCell(6))
    with pytest.raises(ValueError, match="inputs is 4 wide, its output 6"):
        cell(torch.randn(2, 4), cell.initial_state(2))
    with pytest.raises(ValueError, match="must be nested like its input"):
        ResidualWrapper(lambda x, s: (x[0], s))((torch.randn(2, 4),), torch.zeros(2, 4))
