"""Guarantee: lengths of any kind mean the same; wrong ones are refused before any work, naming the first bad row."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from conformance.cases import Case, by_library, draw_case
from conformance.descriptors import BACKENDS, DESCRIPTORS, Descriptor, by_name, over
from throughtime import SequenceError, dynamic_rnn
from throughtime._nested import map_leaves

LENGTHS = [2, 5, 0, 4]
KINDS = {
    "list": LENGTHS,
    "tuple": tuple(LENGTHS),
    "list of 0-d tensors": list(torch.tensor(LENGTHS)),
    "strided array": np.array([2, 9, 5, 9, 0, 9, 4, 9])[::2],
    "strided tensor": torch.tensor([2, 9, 5, 9, 0, 9, 4, 9])[::2],
    "tensor with a graph behind it": torch.tensor(LENGTHS).add(0),
    **{f"numpy {name}": np.array(LENGTHS, name) for name in ("int8", "int16", "int32", "int64", "uint8", "uint64")},
    **{
        f"{dtype}": torch.tensor(LENGTHS).to(dtype)
        for dtype in (torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32, torch.uint64)
    },
}
BAD = {
    "above T": ([3, 7, 9], "row 1 has length 7, and the inputs have 5 steps"),
    "negative": ([3, 5, -1], "row 2 has length -1, and the inputs have 5 steps"),
    "negative int8": (torch.tensor([3, 5, -1], dtype=torch.int8), "row 2 has length -1"),
    "above T, uint8": (torch.tensor([3, 5, 255], dtype=torch.uint8), "row 2 has length 255"),
    "too few": ([3, 5], "expected shape [3], got [2]"),
    "too many": ([3, 5, 1, 1], "expected shape [3], got [4]"),
    "one number": (3, "expected shape [3], got []"),
    "a column": ([[3], [5], [1]], "expected shape [3], got [3, 1]"),
    "none": ([], "expected shape [3], got [0]"),
    "a ragged list": ([[3], [5, 1], 1], "must be one flat list of lengths"),
    "floats": ([3.0, 5.0, 1.0], "must hold whole numbers, got float64"),
    "a float tensor": (torch.tensor([3.0, 5.0, 1.0]), "must hold whole numbers, got float32"),
    "a bfloat16 tensor": (torch.tensor([3.0, 5.0, 1.0]).bfloat16(), "must hold whole numbers, got bfloat16"),
    "a mask": (torch.tensor([True, False, True]), "must hold whole numbers, got bool"),
    "words": (["3", "5", "1"], "must hold whole numbers"),
    "None in a list": ([3, None, 1], "must hold whole numbers, got object"),
}


@over(by_name("nn.LSTMCell"))
@pytest.mark.parametrize("lengths", KINDS.values(), ids=KINDS)
def test_kinds(descriptor: Descriptor, backend: str, lengths: Any) -> None:
    case = draw_case(descriptor, LENGTHS, 5)
    want = by_library(case, backend)
    outputs, state = dynamic_rnn(case.subject.cell, case.inputs, sequence_length=lengths, backend=backend)
    assert torch.equal(outputs, want.outputs)
    assert torch.equal(state[1], want.state[1])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("lengths", "message"), BAD.values(), ids=BAD)
def test_wrong_lengths_are_refused_before_any_work(backend: str, lengths: Any, message: str) -> None:
    def untouched(x: torch.Tensor, state: Any) -> Any:
        raise AssertionError("the cell was called")

    with pytest.raises(SequenceError, match="sequence_length must") as caught:
        dynamic_rnn(untouched, torch.randn(3, 5, 2), lengths, torch.zeros(3, 2), backend=backend)
    assert message in str(caught.value)
    assert isinstance(caught.value, ValueError)


# The memory of "row constants" belongs to places in the batch, not to the rows that stand there.
@over(descriptor for descriptor in DESCRIPTORS if descriptor.name != "row constants")
def test_the_order_of_rows_is_the_users(descriptor: Descriptor, backend: str) -> None:
    """Shuffling the rows shuffles outputs, states and gradients, and changes nothing else."""
    case = draw_case(descriptor, [1, 4, 0, 3, 4], 5, initial=True)
    straight = by_library(case, backend)
    order = torch.tensor([3, 0, 4, 2, 1])
    shuffled = by_library(shuffle(case, order), backend)
    for name, tensor in straight.named().items():
        if name.startswith("gradient of cell"):
            torch.testing.assert_close(shuffled.named()[name], tensor)
        else:
            torch.testing.assert_close(shuffled.named()[name], tensor[order])


def shuffle(case: Case, order: torch.Tensor) -> Case:
    def rows(value: Any) -> Any:
        return map_leaves(lambda x: x.detach()[order].requires_grad_(x.requires_grad), value)

    return replace(
        case,
        inputs=rows(case.inputs),
        initial_state=rows(case.initial_state),
        lengths=[case.lengths[i] for i in order],
        cotangents={name: tensor[order] for name, tensor in case.cotangents.items()},
    )


@over(by_name("nn.LSTMCell", "nested dict state"))
def test_the_state_is_frozen_at_each_rows_last_step(descriptor: Descriptor, backend: str) -> None:
    """A row's final state is what the same row gives when the batch ends there."""
    case = draw_case(descriptor, [2, 5, 3], 5)
    result = by_library(case, backend)
    for row, length in enumerate(case.lengths):
        shorter = replace(case, lengths=[min(length, other) for other in case.lengths])
        state = by_library(shorter, backend).named()
        for name, tensor in result.named().items():
            if name.startswith("state"):
                torch.testing.assert_close(state[name][row], tensor[row])


@pytest.mark.parametrize("backend", BACKENDS)
def test_book_example(backend: str) -> None:
    """Géron, Hands-On Machine Learning (2017), chapter 14: batch 4 x 2 x 3, the second instance has one step."""
    torch.manual_seed(0)
    batch = torch.tensor(
        [
            [[0, 1, 2], [9, 8, 7]],
            [[3, 4, 5], [0, 0, 0]],
            [[6, 7, 8], [6, 5, 4]],
            [[9, 0, 1], [3, 2, 1]],
        ]
    ).float()
    outputs, state = dynamic_rnn(nn.RNNCell(3, 5), batch, sequence_length=[2, 1, 2, 2], backend=backend)
    assert torch.equal(outputs[1, 1], torch.zeros(5))
    assert torch.equal(state[1], outputs[1, 0])
    assert torch.equal(state[[0, 2, 3]], outputs[[0, 2, 3], 1])
    assert (outputs[[0, 2, 3]] != 0).all()
