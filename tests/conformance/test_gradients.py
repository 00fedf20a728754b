"""Guarantee: gradients reach inputs, initial state, parameters and closed-over tensors, and are those of the loop."""

import pytest
import torch
from torch import Tensor

from conformance.cases import assert_same, by_definition, by_library, draw_case
from conformance.descriptors import TOLERANCES, Descriptor, by_name, over
from throughtime import dynamic_rnn
from throughtime._nested import leaves
from throughtime._types import Backend

LENGTHS = [2, 5, 0, 4, 5]


@over()
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("initial", [False, True], ids=["own start", "initial_state"])
def test_every_gradient(descriptor: Descriptor, backend: str, initial: bool, dtype: torch.dtype) -> None:
    case = draw_case(descriptor, LENGTHS, 6, dtype, initial=initial)
    want = by_definition(case)
    assert any(gradient.any() for gradient in want.gradients.values()), "the case tests nothing"
    assert_same(by_library(case, backend), want, dtype)


@over()
def test_gradient_in_the_padding_is_exactly_zero(descriptor: Descriptor, backend: str) -> None:
    case = draw_case(descriptor, LENGTHS, 6, initial=True)
    gradients = by_library(case, backend).gradients
    padding = ~case.real_steps
    for name in [name for name in gradients if name.startswith("inputs")]:
        assert (gradients[name][padding] == 0).all(), name
        assert (gradients[name][~padding] != 0).any(), name


@over(by_name("nn.LSTMCell", "nested dict state", "MultiRNNCell"))
def test_gradient_of_the_final_state_alone(descriptor: Descriptor, backend: str) -> None:
    """A row of length 0 hands its gradient through: its final state is its initial state."""
    case = draw_case(descriptor, [3, 0], initial=True)
    _, state = dynamic_rnn(case.subject.cell, case.inputs, case.lengths, case.initial_state, backend=backend)
    total = sum(leaf.sum() for leaf in leaves(state))
    gradients = torch.autograd.grad(total, leaves(case.initial_state))
    for gradient in gradients:
        assert torch.equal(gradient[1], torch.ones_like(gradient[1]))


@over(by_name("closed-over tensors"))
def test_a_closed_over_tensor_is_read_again_at_every_call(descriptor: Descriptor, backend: str) -> None:
    case = draw_case(descriptor, [3, 2], fresh=True)
    first = by_library(case, backend)
    with torch.no_grad():
        case.subject.trainable["weight"].mul_(2)
    second = by_library(case, backend)
    assert_same(second, by_definition(case), case.dtype)
    assert not torch.allclose(first.outputs, second.outputs)


@over(by_name("nn.GRUCell", "layer-norm LSTM"))
def test_frozen_parameters_get_no_gradient(descriptor: Descriptor, backend: str) -> None:
    case = draw_case(descriptor, [3, 2], fresh=True)
    name, frozen = next(iter(case.subject.trainable.items()))
    frozen.requires_grad_(False)
    del case.subject.trainable[name]
    assert_same(by_library(case, backend), by_definition(case), case.dtype)


@over(by_name("nn.GRUCell"))
def test_no_grad_keeps_no_graph(descriptor: Descriptor, backend: str) -> None:
    case = draw_case(descriptor, [3, 2])
    with torch.no_grad():
        outputs, state = dynamic_rnn(case.subject.cell, case.inputs, case.lengths, backend=backend)
    assert not outputs.requires_grad
    assert not state.requires_grad


def test_an_input_that_becomes_the_state_with_few_rows() -> None:
    """Its gradient is the state's own, which the step before overwrites; with few rows inputs' gradients come late."""

    matrix = torch.randn(4, 6)
    given = [torch.randn(4, 3, 4), torch.randn(4, 3, 6), torch.randn(4, 6)]

    def keep_last(x: tuple[Tensor, Tensor], state: Tensor) -> tuple[Tensor, Tensor]:
        return x[0] @ matrix, x[1]

    def pulled(backend: Backend) -> tuple[Tensor, ...]:
        features, kept, start = tensors = [tensor.clone().requires_grad_() for tensor in given]
        outputs, state = dynamic_rnn(keep_last, (features, kept), [3, 1, 0, 3], start, backend=backend)
        return torch.autograd.grad(outputs.square().sum() + state.square().sum(), tensors)

    for got, want in zip(pulled("native"), pulled("portable")):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
