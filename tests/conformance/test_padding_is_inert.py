"""Guarantee: padding reaches nothing. Whatever it holds, NaN included, results are the same bits, and its own are zero.

0 x NaN is NaN, so a loop that masks fails here; so does a weight gradient that sums over the padded rectangle.
"""

import math
from dataclasses import replace

import pytest
import torch

from conformance.cases import Case, Result, assert_same, by_definition, by_library, draw_case, poisoned
from conformance.descriptors import Descriptor, by_name, over

LENGTHS = [2, 5, 0, 4]
POISONS = [math.nan, -math.inf]


def poison_cotangents(case: Case, value: float) -> Case:
    """Incoming gradients in the padding, as a loss without a mask makes them."""
    padding = ~case.real_steps
    poisoned_too = {name: tensor.clone() for name, tensor in case.cotangents.items()}
    for name, tensor in poisoned_too.items():
        if name.startswith("outputs"):
            tensor[padding] = value
    return replace(case, cotangents=poisoned_too)


def assert_same_bits(got: Result, want: Result) -> None:
    for (name, a), b in zip(got.named().items(), want.named().values(), strict=True):
        assert torch.equal(a, b), name


@over()
@pytest.mark.parametrize("poison", POISONS)
def test_inputs(descriptor: Descriptor, backend: str, poison: float) -> None:
    case = draw_case(descriptor, LENGTHS, 6)
    assert_same_bits(by_library(poisoned(case, poison), backend), by_library(case, backend))


@over()
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_incoming_gradients(descriptor: Descriptor, backend: str, poison: float) -> None:
    case = draw_case(descriptor, LENGTHS, 6)
    assert_same_bits(by_library(poison_cotangents(case, poison), backend), by_library(case, backend))


@over(by_name("nn.LSTMCell", "nested inputs", "MultiRNNCell"))
@pytest.mark.parametrize("layout", ["padded", "time-major"])
def test_both_in_every_padded_layout(descriptor: Descriptor, backend: str, layout: str) -> None:
    case = draw_case(descriptor, LENGTHS, 6, resets=0.3)
    poisoned_case = poison_cotangents(poisoned(case, math.nan), math.nan)
    assert_same(by_library(poisoned_case, backend, layout), by_definition(case), case.dtype)


@over(by_name("nn.LSTMCell"))
def test_a_reset_in_the_padding_does_nothing(descriptor: Descriptor, backend: str) -> None:
    case = draw_case(descriptor, LENGTHS, 6, resets=0.3, reset_state=True)
    assert case.reset is not None
    everywhere = replace(case, reset=case.reset | ~case.real_steps)
    assert_same_bits(by_library(everywhere, backend), by_library(case, backend))


@over()
def test_outputs_are_exactly_zero(descriptor: Descriptor, backend: str) -> None:
    case = poisoned(draw_case(descriptor, LENGTHS, 6), math.nan)
    padding = ~case.real_steps
    result = by_library(case, backend)
    for name, tensor in result.named().items():
        if name.startswith("outputs"):
            assert (tensor[padding] == 0).all(), name


@over(by_name("nn.LSTMCell", "nn.GRUCell"))
def test_nan_in_a_real_step_stays_in_its_row(descriptor: Descriptor, backend: str) -> None:
    case = draw_case(descriptor, [3, 3])
    spoilt = case.inputs.detach().clone()
    spoilt[0, 1] = math.nan
    result = by_library(replace(case, inputs=spoilt.requires_grad_()), backend)
    assert result.outputs[0, 1:].isnan().all()
    assert result.outputs[0, 0].isfinite().all()
    assert result.outputs[1].isfinite().all()
    assert result.gradients["inputs"][1].isfinite().all()
