"""Options do what they say, or the error says the rule."""

import pytest
import torch
from torch import nn

from throughtime.cells import BasicLSTMCell, BasicRNNCell, GRUCell, LSTMCell
from throughtime.cells._options import find_activation


@pytest.mark.parametrize("make", [BasicRNNCell, BasicLSTMCell, LSTMCell, GRUCell])
def test_num_units(make) -> None:
    for bad in (0, -1, 2.0, True, "4", None):
        with pytest.raises(ValueError, match="num_units must be a whole number of at least 1"):
            make(bad)


def test_activation_by_name_by_callable_and_by_default() -> None:
    x = torch.linspace(-3, 3, 7)
    assert torch.equal(find_activation(None, "tanh")(x), x.tanh())
    assert torch.equal(find_activation("relu", "tanh")(x), x.clamp(min=0))
    assert torch.equal(find_activation("linear", "tanh")(x), x)
    assert find_activation(torch.sin, "tanh") is torch.sin
    with pytest.raises(ValueError, match=r"activation must be a callable or one of .*gelu.*got 'tanhh'"):
        BasicRNNCell(3, "tanhh")


@pytest.mark.parametrize("make", [BasicRNNCell, BasicLSTMCell, LSTMCell, GRUCell])
def test_a_module_as_activation_is_a_submodule(make) -> None:
    cell = make(4, activation=nn.PReLU())
    cell(torch.randn(2, 3), cell.initial_state(2))[0].sum().backward()
    assert cell.activation.weight.grad is not None


def test_forget_bias_is_no_part_of_the_bias() -> None:
    for make in (BasicLSTMCell, LSTMCell):
        cell = make(4, forget_bias=100.0, input_size=3)
        c = torch.randn(2, 4)
        nn.init.zeros_(cell.kernel)
        _, state = cell(torch.randn(2, 3), (c, torch.zeros(2, 4)))
        assert torch.equal(state.c, c)
        assert not cell.bias.any()


def test_clips() -> None:
    cell = LSTMCell(4, cell_clip=0.25, num_proj=2, proj_clip=0.1, input_size=3)
    output, state = cell(torch.randn(5, 3), (10 * torch.randn(5, 4), 10 * torch.randn(5, 2)))
    assert state.c.abs().max().item() == pytest.approx(0.25)
    assert output.abs().max().item() == pytest.approx(0.1)


def test_bad_clips() -> None:
    with pytest.raises(ValueError, match="pass cell_clip=None"):
        LSTMCell(4, cell_clip=0)
    with pytest.raises(ValueError, match="pass proj_clip=None"):
        LSTMCell(4, num_proj=2, proj_clip=-1.0)
    with pytest.raises(ValueError, match="pass num_proj with it"):
        LSTMCell(4, proj_clip=1.0)
    with pytest.raises(ValueError, match="num_proj must be a whole number"):
        LSTMCell(4, num_proj=0)
