"""Parameters have TensorFlow's names, shapes and initial values; sizes and dtypes that do not fit are told."""

import math

import pytest
import torch
from torch import nn

from throughtime.cells import BasicLSTMCell, BasicRNNCell, GRUCell, LSTMCell, MultiRNNCell
from throughtime.cells._parameters import SizedByInput, glorot_uniform


def shapes(cell: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in cell.named_parameters()}


def test_names_and_shapes() -> None:
    assert shapes(BasicRNNCell(4, input_size=3)) == {"kernel": (7, 4), "bias": (4,)}
    assert shapes(BasicLSTMCell(4, input_size=3)) == {"kernel": (7, 16), "bias": (16,)}
    assert shapes(GRUCell(4, input_size=3)) == {
        "gates.kernel": (7, 8),
        "gates.bias": (8,),
        "candidate.kernel": (7, 4),
        "candidate.bias": (4,),
    }
    assert shapes(LSTMCell(4, True, num_proj=2, input_size=3)) == {
        "kernel": (5, 16),
        "bias": (16,),
        "w_f_diag": (4,),
        "w_i_diag": (4,),
        "w_o_diag": (4,),
        "projection.kernel": (4, 2),
    }
    stack = MultiRNNCell([BasicRNNCell(4, input_size=3), GRUCell(2, input_size=4)])
    assert list(shapes(stack))[:3] == ["cells.0.kernel", "cells.0.bias", "cells.1.gates.kernel"]


@pytest.mark.parametrize("make", [BasicRNNCell, BasicLSTMCell, LSTMCell, GRUCell])
def test_the_first_call_finds_the_input_size(make) -> None:
    cell = make(4)
    cell(torch.randn(2, 3), cell.initial_state(2))
    assert shapes(cell) == shapes(make(4, input_size=3))


def test_initial_values_are_tensorflows() -> None:
    gru, lstm = GRUCell(64, input_size=32), LSTMCell(64, True, num_proj=48, input_size=32)
    assert torch.equal(gru.gates.bias, torch.ones(128))
    assert torch.equal(gru.candidate.bias, torch.zeros(64))
    assert torch.equal(lstm.bias, torch.zeros(256))
    bounds = {
        gru.gates.kernel: 6 / (96 + 128),
        gru.candidate.kernel: 6 / (96 + 64),
        lstm.kernel: 6 / (80 + 256),
        lstm.projection.kernel: 6 / (64 + 48),
        lstm.w_f_diag: 6 / (64 + 64),
    }
    for weight, square in bounds.items():
        bound = math.sqrt(square)
        assert 0.9 * bound < weight.abs().max().item() <= bound
        assert abs(weight.mean().item()) < 0.2 * bound


def test_glorot_counts_the_receptive_field() -> None:
    weight = torch.empty(3, 3, 20, 30)
    glorot_uniform(weight)
    bound = math.sqrt(6 / (9 * 50))
    assert 0.99 * bound < weight.abs().max().item() <= bound


def test_initializers_of_ones_own() -> None:
    lstm = LSTMCell(4, True, num_proj=2, initializer=lambda w: nn.init.constant_(w, 0.5), input_size=3)
    assert all(bool((lstm.get_parameter(n) == 0.5).all()) for n in ("kernel", "w_o_diag", "projection.kernel"))
    assert bool((lstm.bias == 0).all())
    gru = GRUCell(4, kernel_initializer=nn.init.zeros_, bias_initializer=lambda w: nn.init.constant_(w, 2.0))
    gru(torch.randn(2, 3), gru.initial_state(2))
    assert [weight.unique().tolist() for weight in gru.parameters()] == [[0.0], [2.0], [0.0], [2.0]]


def test_reset_parameters_draws_anew() -> None:
    cell = LSTMCell(4, input_size=3)
    before = cell.kernel.detach().clone()
    with torch.no_grad():
        cell.bias.fill_(9.0)
    cell.reset_parameters()
    assert not torch.equal(before, cell.kernel)
    assert bool((cell.bias == 0).all())
    BasicRNNCell(4).reset_parameters()  # nothing to draw yet


def test_dtype_and_device_of_the_parameters() -> None:
    for cell in (GRUCell(4, dtype=torch.float64, device="meta"), LSTMCell(4, num_proj=2, dtype=torch.float64)):
        assert {weight.data.dtype for weight in cell.parameters()} == {torch.float64}
    assert GRUCell(4, device="meta", input_size=3).gates.kernel.device.type == "meta"


@pytest.mark.parametrize("make", [BasicRNNCell, BasicLSTMCell, LSTMCell, GRUCell])
@pytest.mark.parametrize("size", [None, 3])
class TestBadInputs:
    def test_token_ids(self, make, size) -> None:
        cell = make(4, input_size=size)
        with pytest.raises(ValueError, match=r"torch\.nn\.Embedding"):
            cell(torch.zeros(2, 3, dtype=torch.int64), cell.initial_state(2))

    def test_not_a_tensor(self, make, size) -> None:
        cell = make(4, input_size=size)
        with pytest.raises(TypeError, match=r"a step's input is one tensor.*got a tuple"):
            cell((torch.zeros(2, 3),), cell.initial_state(2))

    def test_another_width(self, make, size) -> None:
        cell = make(4, input_size=size)
        cell(torch.zeros(2, 3), cell.initial_state(2))
        with pytest.raises(ValueError, match=r"inputs and state together must be 7 wide.*got 5 \+ 4"):
            cell(torch.zeros(2, 5), cell.initial_state(2))

    def test_another_dtype(self, make, size) -> None:
        cell = make(4, input_size=size)
        with pytest.raises(TypeError, match=r"must have the dtype of the parameters.*cell\.to\(torch\.float64\)"):
            cell(torch.zeros(2, 3).double(), cell.initial_state(2, torch.float64))


def test_a_module_without_a_layout_says_so() -> None:
    class Bare(SizedByInput):
        def __init__(self) -> None:
            super().__init__()
            self._declare(None, None, None)

    with pytest.raises(NotImplementedError, match="Bare must write layout"):
        Bare()
