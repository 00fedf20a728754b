"""Guarantee: a row's results do not depend on the other rows or on the padding.

The same bits on the backends that promise it; up to rounding on the others, where a library's matrix product changes
its order of summation with the number of rows.
"""

from dataclasses import replace

import pytest
import torch

from conformance.cases import Case, assert_close, by_library, draw_case
from conformance.descriptors import BACKENDS, BITWISE, DESCRIPTORS, Descriptor, by_name, over
from throughtime import Recompute, Spill
from throughtime._nested import map_leaves
from throughtime.plan.memory import MemoryPolicy

LENGTHS = [3, 5, 1, 4, 5]
# The memory of "row constants" belongs to places in the batch, not to the rows that stand there.
ROWS_APART = [descriptor for descriptor in DESCRIPTORS if descriptor.name != "row constants"]


def alone(case: Case, row: int) -> Case:
    def take(value: object) -> object:
        return map_leaves(lambda x: x.detach()[row : row + 1].requires_grad_(x.requires_grad), value)

    return replace(
        case,
        inputs=take(case.inputs),
        initial_state=take(case.initial_state),
        lengths=[case.lengths[row]],
        cotangents={name: tensor[row : row + 1] for name, tensor in case.cotangents.items()},
    )


@over(ROWS_APART)
def test_a_row_by_itself(descriptor: Descriptor, backend: str) -> None:
    case = draw_case(descriptor, LENGTHS, dtype=torch.float32, initial=True)
    together = by_library(case, backend).named()
    for row in range(case.batch):
        for name, tensor in by_library(alone(case, row), backend).named().items():
            if name.startswith("gradient of cell"):
                continue
            if backend in BITWISE:
                assert torch.equal(tensor[0], together[name][row]), name
            else:
                assert_close(name, tensor[0], together[name][row], case.dtype)


@over()
def test_more_padding_changes_no_bit(descriptor: Descriptor, backend: str) -> None:
    case = draw_case(descriptor, LENGTHS, dtype=torch.float32)

    def lengthen(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x.detach(), x.detach()[:, :1].expand(-1, 3, *x.shape[2:])], 1).requires_grad_(x.requires_grad)

    longer_cotangents = {
        name: lengthen(tensor) if name.startswith("outputs") else tensor for name, tensor in case.cotangents.items()
    }
    longer = replace(case, inputs=map_leaves(lengthen, case.inputs), steps=case.steps + 3, cotangents=longer_cotangents)
    want = by_library(case, backend).named()
    for name, tensor in by_library(longer, backend).named().items():
        inside = tensor[:, : case.steps] if tensor.shape != want[name].shape else tensor
        assert torch.equal(inside, want[name]), name


@over()
def test_the_same_call_twice_gives_the_same_bits(descriptor: Descriptor, backend: str) -> None:
    case = draw_case(descriptor, LENGTHS, dtype=torch.float32)
    first, second = by_library(case, backend).named(), by_library(case, backend).named()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@over(ROWS_APART)
@pytest.mark.parametrize("chunk", [1, 2, 1000])
def test_the_chunk_size_changes_nothing(descriptor: Descriptor, backend: str, chunk: int) -> None:
    case = draw_case(descriptor, LENGTHS, dtype=torch.float32)
    want = by_library(case, backend).named()
    for name, tensor in by_library(case, backend, parallel_iterations=chunk).named().items():
        assert torch.equal(tensor, want[name]), name


@over(backends=[backend for backend in BACKENDS if backend in BITWISE])
def test_the_number_of_threads_changes_no_bit(descriptor: Descriptor, backend: str) -> None:
    """Weight gradients included."""
    case = draw_case(descriptor, [3, 40, 1, 4, 5, 0, 33], dtype=torch.float32)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(by_library(case, backend).named())
    finally:
        torch.set_num_threads(threads)
    for name, tensor in results[0].items():
        assert all(torch.equal(tensor, other[name]) for other in results[1:]), name


@over(
    by_name("nn.LSTMCell", "closed-over tensors", "nested dict state", "learned start", "row constants", "MultiRNNCell")
)
@pytest.mark.parametrize("memory", [Recompute(), Recompute(every=32), Spill()], ids=str)
def test_the_memory_policy_changes_no_bit(descriptor: Descriptor, backend: str, memory: MemoryPolicy) -> None:
    case = draw_case(descriptor, [3, 40, 1, 4, 5, 0, 33], dtype=torch.float32)
    want = by_library(case, backend).named()
    for name, tensor in by_library(case, backend, memory=memory).named().items():
        if backend in BITWISE:
            assert torch.equal(tensor, want[name]), name
        else:
            assert_close(name, tensor, want[name], case.dtype)
