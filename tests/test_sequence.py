"""Layouts -> the ragged form: what it holds, and every input it refuses. (That results agree: tests/conformance.)"""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence

from throughtime import ResetError, SequenceError
from throughtime._sequence import read_lengths, read_reset, read_sequence


def jagged(*lengths: int, width: int = 2) -> Tensor:
    rows = [torch.arange(float(n * width)).reshape(n, width) for n in lengths]
    return torch.nested.nested_tensor(rows, layout=torch.jagged)


def test_pairs_stand_step_by_step_longest_row_first() -> None:
    x = torch.tensor([[10, 11, 12], [20, 21, 22], [30, 31, 32]])
    ragged = read_sequence(x, [1, 3, 2])
    assert ragged.xs.tolist() == [20, 30, 10, 21, 31, 22]
    assert ragged.active == [3, 2, 1]
    assert ragged.offsets == [0, 3, 5, 6]
    assert ragged.lengths.tolist() == [3, 2, 1]
    assert ragged.user_lengths.tolist() == [1, 3, 2]
    assert ragged.steps == 3
    assert ragged.batch_size == 3
    assert ragged.reversed().xs.tolist() == [22, 31, 10, 21, 30, 20]


def test_equal_lengths_keep_the_users_order_and_move_nothing() -> None:
    ragged = read_sequence(torch.zeros(3, 4, 2), [3, 3, 2])
    assert ragged.order is None


def test_it_is_pytorchs_packed_form() -> None:
    rows = [torch.randn(n, 2) for n in (2, 4, 3)]
    packed = pack_sequence(rows, enforce_sorted=False)
    ragged = read_sequence(packed)
    assert ragged.xs is packed.data
    assert ragged.active == packed.batch_sizes.tolist()
    padded = read_sequence(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), [2, 4, 3])
    assert torch.equal(padded.xs, packed.data)
    assert torch.equal(read_sequence(torch.nested.nested_tensor(rows, layout=torch.jagged)).xs, packed.data)


def test_padding_is_not_even_copied() -> None:
    ragged = read_sequence(torch.randn(2, 1000, 3), [1, 2])
    assert len(ragged.xs) == 3


def test_a_full_batch_in_time_major_is_a_view() -> None:
    x = torch.randn(5, 2, 3)
    assert read_sequence(x, time_major=True).xs.data_ptr() == x.data_ptr()


@pytest.mark.parametrize(
    "lengths", [[3, 1], (3, 1), np.array([3, 1], np.int8), torch.tensor([3, 1], dtype=torch.uint16)]
)
def test_lengths_become_int64(lengths: Any) -> None:
    read = read_lengths(lengths, 2, 3)
    assert read.dtype == np.int64
    assert read.tolist() == [3, 1]


WRONG_LENGTHS = [
    ([3, 1.5], "must hold whole numbers"),
    ([3], "must be a vector with one length per row"),
    ([3, 4], "must lie between 0 and the number of steps"),
    ([3, [1, 2]], "must be one flat list of lengths"),
]


@pytest.mark.parametrize(("lengths", "message"), WRONG_LENGTHS)
def test_wrong_lengths(lengths: Any, message: str) -> None:
    with pytest.raises(SequenceError, match=message):
        read_lengths(lengths, 2, 3)


def with_holes() -> Tensor:
    values, offsets, lengths = torch.zeros(6, 2), torch.tensor([0, 3, 6]), torch.tensor([2, 3])
    return torch.nested.nested_tensor_from_jagged(values, offsets, lengths)


WRONG_INPUTS = {
    "nothing": ({}, "must hold at least one tensor"),
    "a list of numbers": ([1, 2], "inputs are one PackedSequence, a tensor, or"),
    "an array": (np.zeros((2, 3, 4)), "inputs are one PackedSequence, a tensor, or"),
    "None": (None, "inputs are one PackedSequence, a tensor, or"),
    "two packed": ([pack_sequence([torch.zeros(1, 2)])] * 2, "inputs are one PackedSequence, a tensor, or"),
    "one axis": (torch.zeros(3), "must have a batch and a time axis"),
    "one axis in a dict": ({"a": torch.zeros(3, 4), "b": torch.zeros(3)}, "must have a batch and a time axis"),
    "other steps": ({"a": torch.zeros(3, 4), "b": torch.zeros(3, 5)}, "share their batch and time axes"),
    "other rows": ((torch.zeros(3, 4, 1), torch.zeros(2, 4)), "share their batch and time axes"),
    "strided nested": (torch.nested.nested_tensor([torch.zeros(2, 2)]), "must be jagged along axis 1"),
    "jagged and padded": ((jagged(2, 1), torch.zeros(2, 2, 2)), "must be jagged along axis 1"),
    "jagged along axis 2": (jagged(2, 1).transpose(1, 2), "must be jagged along axis 1"),
    "jagged with holes": (with_holes(), "must be jagged along axis 1"),
    "jagged of other lengths": ((jagged(2, 1), jagged(1, 2)), "all jagged inputs share their lengths"),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(("inputs", "message"), WRONG_INPUTS.values(), ids=WRONG_INPUTS)
def test_wrong_inputs(inputs: Any, message: str) -> None:
    with pytest.raises(SequenceError, match=message):
        read_sequence(inputs)


def test_messages_name_the_leaf() -> None:
    with pytest.raises(SequenceError) as caught:
        read_sequence({"seen": torch.zeros(3, 4), "done": [torch.zeros(3, 4), 5]})
    assert "inputs['done'][1] is a int" in str(caught.value)
    with pytest.raises(SequenceError) as caught:
        read_sequence({"seen": torch.zeros(3, 4), "done": torch.zeros(3, 5)})
    assert "inputs['seen'] has [3, 4], inputs['done'] has [3, 5]" in str(caught.value)


def test_a_mask_stands_in_the_order_of_the_inputs() -> None:
    mask = torch.tensor([[True, False, False], [False, True, False]])
    padded = read_sequence(torch.zeros(2, 3), [1, 3])
    assert read_reset(mask, padded).tolist() == [False, True, True, False]
    assert read_reset(mask.T, read_sequence(torch.zeros(3, 2), [1, 3], True), True).tolist() == [
        False,
        True,
        True,
        False,
    ]
    assert read_reset(mask, read_sequence(jagged(1, 3))).tolist() == [False, True, True, False]
    rows = torch.nested.nested_tensor([mask[0, :1], mask[1]], layout=torch.jagged)
    assert read_reset(rows, padded).tolist() == [False, True, True, False]


WRONG_MASKS = [
    (torch.zeros(2, 3), "must be a bool mask with one entry per row and step"),
    (torch.zeros(3, 2).bool(), "must have the batch size and the steps"),
    (jagged(3, 1, width=1).squeeze(2) > 0, "must have the lengths of the inputs, row by row"),
    (object(), "reset cannot be made a tensor"),
]


@pytest.mark.parametrize(("mask", "message"), WRONG_MASKS, ids=["dtype", "shape", "lengths", "kind"])
def test_wrong_masks_of_resets(mask: Any, message: str) -> None:
    with pytest.raises(ResetError, match=message):
        read_reset(mask, read_sequence(torch.zeros(2, 3), [1, 3]))


def test_lengths_that_a_layout_carries_must_agree() -> None:
    with pytest.raises(SequenceError, match="carries its lengths itself"):
        read_sequence(jagged(2, 1), [1, 1])
