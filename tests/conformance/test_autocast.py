"""Guarantee: under `torch.autocast("cpu", dtype=torch.bfloat16)` state and outputs stay float32, and are no worse.

Judged against a float64 loop: the error is at most that of the eager loop under the same autocast.
"""

from dataclasses import replace

import pytest
import torch
from torch import nn

from conformance.cases import Case, Result, by_definition, by_library, draw_case
from conformance.descriptors import BACKENDS, Descriptor, by_name, over
from throughtime import dynamic_rnn
from throughtime._nested import Nested, leaves, map_leaves

CELLS = by_name(
    "nn.RNNCell", "nn.GRUCell", "nn.LSTMCell", "layer-norm LSTM", "BasicLSTMCell", "GRUCell", "MultiRNNCell"
)
LENGTHS = [6, 20, 0, 13]


SEEDS = range(6)


def square_error(got: Result, exact: Result) -> dict[str, float]:
    want = exact.named()
    return {name: float((tensor.double() - want[name]).square().sum().detach()) for name, tensor in got.named().items()}


@over(CELLS)
def test_no_worse_than_the_eager_loop(descriptor: Descriptor, backend: str) -> None:
    """In the mean over seeds and results: a single one may be luckier in either loop."""
    ours_error, eager_error = 0.0, 0.0
    for seed in SEEDS:
        single = draw_case(descriptor, LENGTHS, dtype=torch.float32, initial=True, seed=seed)
        exact = by_definition(in_double(single))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            ours, eager = by_library(single, backend), by_definition(single)
        ours_error += sum(square_error(ours, exact).values())
        eager_error += sum(square_error(eager, exact).values())
    assert eager_error > 1e-3, "nothing was rounded"
    assert ours_error <= 1.1 * eager_error


def in_double(case: Case) -> Case:
    torch.manual_seed(0)
    subject = case.descriptor.make(torch.float64)
    with torch.no_grad():
        for name, tensor in subject.trainable.items():
            tensor.copy_(case.subject.trainable[name])

    def double(value: Nested) -> Nested:
        return None if value is None else map_leaves(lambda x: x.detach().double().requires_grad_(), value)

    return replace(
        case,
        dtype=torch.float64,
        subject=subject,
        inputs=double(case.inputs),
        initial_state=double(case.initial_state),
        cotangents={name: tensor.double() for name, tensor in case.cotangents.items()},
    )


@over(CELLS)
def test_state_and_outputs_stay_in_full_precision(descriptor: Descriptor, backend: str) -> None:
    case = draw_case(descriptor, LENGTHS, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs, state = dynamic_rnn(case.subject.cell, case.inputs, case.lengths, backend=backend)
    assert {leaf.dtype for leaf in [*leaves(outputs), *leaves(state)]} == {torch.float32}


@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_that_a_layer_before_has_rounded(backend: str) -> None:
    layer, cell = nn.Linear(5, 3), nn.GRUCell(3, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = layer(torch.randn(2, 6, 5))
        assert x.dtype == torch.bfloat16
        outputs, state = dynamic_rnn(cell, x, [6, 3], backend=backend)
    assert outputs.dtype == state.dtype == torch.float32
    outputs.sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32


@over(by_name("whole-number state"))
def test_whole_numbers_in_the_state_are_left_alone(descriptor: Descriptor, backend: str) -> None:
    case = draw_case(descriptor, [3, 2], dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, state = dynamic_rnn(case.subject.cell, case.inputs, case.lengths, backend=backend)
    assert state["step"].squeeze(1).tolist() == [3, 2]
