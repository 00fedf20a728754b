"""Every case of real TensorFlow 1.15 -> outputs, final states and all gradients, compared by name."""

import pytest
import torch
from torch import Tensor

from golden.cases import RUNNERS, Case, find_cases, play, tolerance

BACKENDS = ["portable", "native"]
CASES = find_cases(*RUNNERS)
ALWAYS_PORTABLE = {"static_rnn", "static_state_saving_rnn"}
RUNS = [
    (case, backend)
    for case in CASES
    for backend in BACKENDS
    if not (backend == "native" and case.function in ALWAYS_PORTABLE)
]


@pytest.mark.parametrize(("case", "backend"), RUNS, ids=lambda value: getattr(value, "name", value))
def test_agrees_with_tensorflow(case: Case, backend: str) -> None:
    got = play(case, backend)
    expected = case.expected()
    assert len(expected) >= 2
    for name, want in expected.items():
        assert name in got, f"{name} has no gradient, or was not returned"
        assert_close(name, got[name].detach(), want, tolerance(case.dtype))


def assert_close(name: str, got: Tensor, want: Tensor, relative: float) -> None:
    assert (got.shape, got.dtype) == (want.shape, want.dtype), name
    largest = want.abs().max().item() if want.numel() else 0.0
    worst = (got - want).abs().max().item() if want.numel() else 0.0
    assert worst <= relative * largest, f"{name}: off by {worst:.3g}, largest value {largest:.3g}"


def test_the_books_example() -> None:
    """Batch 4 x 2 x 3, lengths [2, 1, 2, 2]: row 1's second step is 0, its state kept."""
    case = next(case for case in CASES if case.name == "book_basic_rnn")
    got = play(case, "portable")
    assert torch.equal(got["outputs"][1, 1], torch.zeros(5))
    assert torch.equal(got["final_state"][1], got["outputs"][1, 0])
    assert bool((got["outputs"][0] != 0).all())
