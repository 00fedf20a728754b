"""Every cell of three packages: torchrecurrent, snntorch, ncps. Each is captured and agrees, or says why not."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import snntorch
import torch
import torchrecurrent
from ncps.torch import CfCCell, LTCCell, WiredCfCCell
from ncps.torch.lstm import LSTMCell as NcpsLSTMCell
from ncps.wirings import AutoNCP, FullyConnected
from snntorch import surrogate
from torch import Tensor, nn

from capture.agreement import assert_agrees, row
from throughtime import CaptureError
from throughtime.capture import trace_step

H = 7
TORCHRECURRENT = [name for name in dir(torchrecurrent) if name.endswith("Cell")]


def test_none_of_torchrecurrent_is_forgotten() -> None:
    assert len(TORCHRECURRENT) == 41


@pytest.mark.parametrize("name", TORCHRECURRENT)
def test_torchrecurrent(name: str) -> None:
    inputs = H if name == "IntersectionRNNCell" else 5
    cell = getattr(torchrecurrent, name)(inputs, H)
    assert_agrees(cell, row(inputs), _state_of(name, cell(torch.zeros(1, inputs))))


def _state_of(name: str, result: Any) -> Any:
    if name == "IntersectionRNNCell":  # (output, state), the state a single tensor
        return row(H)
    if isinstance(result, tuple) and isinstance(result[1], tuple):
        result = result[1]
    return tuple(map(torch.zeros_like, result)) if isinstance(result, tuple) else torch.zeros_like(result)


class AtRegularTimes(nn.Module):
    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor, h: Tensor) -> Any:
        return self.cell(x, h, 1.0)


@pytest.mark.parametrize("mode", ["default", "pure", "no_gate"])
@pytest.mark.parametrize("activation", ["lecun_tanh", "silu", "relu", "tanh", "gelu"])
def test_ncps_closed_form(mode: str, activation: str) -> None:
    cell = CfCCell(5, H, mode=mode, backbone_activation=activation, backbone_units=9, backbone_layers=2)
    assert_agrees(AtRegularTimes(cell), row(5), row(H), rows=(1, 7))


def test_ncps_closed_form_of_wirings() -> None:
    mask = (np.random.RandomState(0).rand(5 + H, H) > 0.5).astype(np.float32)
    assert_agrees(AtRegularTimes(CfCCell(5, H, backbone_layers=0, sparsity_mask=mask)), row(5), row(H), rows=(1, 7))
    assert_agrees(AtRegularTimes(WiredCfCCell(5, AutoNCP(12, 3))), row(5), row(12), rows=(1, 7))


@pytest.mark.parametrize("wiring", [AutoNCP(12, 3), FullyConnected(9, 3)], ids=["AutoNCP", "FullyConnected"])
@pytest.mark.parametrize("constrained", [False, True])
def test_ncps_liquid(wiring: Any, constrained: bool) -> None:
    cell = LTCCell(wiring, 5, implicit_param_constraints=constrained)
    assert_agrees(cell, row(5), row(cell.state_size), rows=(1, 7), scale=50)


def test_ncps_lstm() -> None:
    cell = NcpsLSTMCell(5, H)
    assert_agrees(lambda x, state: cell(x, state), row(5), (row(H), row(H)))


class Spiking(nn.Module):
    """snntorch's neurons return (spikes, *state)."""

    def __init__(self, neuron: nn.Module) -> None:
        super().__init__()
        self.neuron = neuron

    def forward(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        result = self.neuron(x, *state)
        return result[0], tuple(result[-len(state) :])


NEURONS: dict[str, tuple[Callable[..., nn.Module], int, int]] = {
    "Leaky": (lambda **k: snntorch.Leaky(0.9, learn_beta=True, learn_threshold=True, **k), H, 1),
    "RLeaky": (lambda **k: snntorch.RLeaky(0.9, linear_features=H, **k), H, 2),
    "RLeaky one to one": (lambda **k: snntorch.RLeaky(0.9, V=0.5, all_to_all=False, **k), H, 2),
    "Synaptic": (lambda **k: snntorch.Synaptic(0.8, 0.9, learn_alpha=True, **k), H, 2),
    "RSynaptic": (lambda **k: snntorch.RSynaptic(0.8, 0.9, linear_features=H, **k), H, 3),
    "Lapicque": (lambda **k: snntorch.Lapicque(beta=0.9, **k), H, 1),
    "Alpha": (lambda **k: snntorch.Alpha(0.9, 0.8, **k), H, 3),
    "SLSTM": (lambda **k: snntorch.SLSTM(5, H, **k), 5, 2),
}


@pytest.mark.parametrize("name", NEURONS)
@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
def test_snntorch(name: str, reset: str) -> None:
    make, inputs, states = NEURONS[name]
    trace = assert_agrees(Spiking(make(reset_mechanism=reset)), row(inputs), (row(H),) * states, rows=(1, 7))
    assert all("cell.neuron" in path for path in trace.dropped)


@pytest.mark.parametrize("options", [{}, {"max_pool": 2}, {"avg_pool": 2}], ids=str)
def test_snntorch_on_images(options: dict[str, int]) -> None:
    neuron = snntorch.SConv2dLSTM(3, 4, 3, **options)
    assert_agrees(Spiking(neuron), row(3, 6, 4), (row(4, 6, 4),) * 2, rows=(1, 7))
    neuron = snntorch.RLeaky(0.9, conv2d_channels=3, kernel_size=3)
    assert_agrees(Spiking(neuron), row(3, 6, 4), (row(3, 6, 4),) * 2, rows=(1,))


def test_snntorch_with_inhibition() -> None:
    """It writes one entry of each row, found by argmax."""
    assert_agrees(Spiking(snntorch.Leaky(0.9, inhibition=True)), row(H), (row(H),))


SURROGATES = ["fast_sigmoid", "atan", "sigmoid", "straight_through_estimator", "spike_rate_escape", "SFS"]


@pytest.mark.parametrize("name", SURROGATES)
def test_snntorch_surrogate_gradients(name: str) -> None:
    neuron = snntorch.Leaky(0.9, spike_grad=getattr(surrogate, name)())
    assert_agrees(Spiking(neuron), row(H), (row(H),), rows=(1, 7))


def test_snntorch_other_surrogate_gradients() -> None:
    own = surrogate.custom_surrogate(lambda x, d_y, spikes: d_y * 2 * spikes)
    assert_agrees(Spiking(snntorch.Leaky(0.9, spike_grad=own)), row(H), (row(H),), rows=(1, 7))
    noisy = trace_step(Spiking(snntorch.Leaky(0.9, spike_grad=surrogate.SSO())), row(H), (row(H),))
    assert [i.distribution for i in noisy.pair.forward.of_kind("noise")] == ["uniform"]


def test_snntorch_of_changes() -> None:
    assert_agrees(snntorch.DeltaLeaky(beta=0.9), row(H), (row(H), row(H)), rows=(1, 7))


def test_snntorch_layer_of_whole_sequences() -> None:
    """LeakyParallel, StateLeaky, LinearLeaky and AssociativeLeaky are layers over time, not cells."""
    layer = snntorch.LeakyParallel(H, H)
    assert_agrees(lambda x, h: (layer(x[None])[0], h), row(H), row(H), rows=(1, 7))


class Hidden(nn.Module):
    def __init__(self, neuron: nn.Module) -> None:
        super().__init__()
        self.neuron = neuron

    def forward(self, x: Tensor, state: Any) -> Any:
        return self.neuron(x), state


REFUSED = {
    "a triangular surrogate: indexes by a mask": (
        lambda: Spiking(snntorch.Leaky(0.9, spike_grad=surrogate.triangular())),
        "makes a tensor whose size depends on numbers",
    ),
    "no delay of the reset: branches on a buffer": (
        lambda: Spiking(snntorch.Leaky(0.9, reset_delay=False)),
        "reads a number out of a tensor",
    ),
    "hidden state on the neuron": (
        lambda: Hidden(snntorch.Leaky(0.9, init_hidden=True)),
        "reads cell.neuron.mem, which the step before wrote",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_snntorch_does_that_is_refused(name: str) -> None:
    make, said = REFUSED[name]
    with pytest.raises(CaptureError, match=said):
        trace_step(make(), row(H), (row(H),))
