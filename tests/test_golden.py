"""Every case of real TensorFlow 1.15 -> outputs, final states and all gradients, compared by name."""

import pytest
import torch

from golden.cases import RUNNERS, Case, find_cases, play, tolerance

BACKENDS = ["portable"]
CASES = find_cases(*RUNNERS)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_agrees_with_tensorflow(case: Case, backend: str) -> None:
    got = play(case, backend)
    expected = case.expected()
    assert len(expected) >= 2
    for name, want in expected.items():
        assert name in got, f"{name} has no gradient, or was not returned"
        assert got[name].shape == want.shape, name
        assert got[name].dtype == want.dtype, name
        largest = want.abs().max().item() if want.numel() else 0.0
        difference = (got[name].detach() - want).abs()
        worst = difference.max().item() if difference.numel() else 0.0
        assert worst <= tolerance(case.dtype) * largest, f"{name}: off by {worst:.3g}, largest value {largest:.3g}"


def test_the_books_example() -> None:
    """Batch 4 x 2 x 3, lengths [2, 1, 2, 2]: row 1's second step is 0, its state kept."""
    case = next(case for case in CASES if case.name == "book_basic_rnn")
    got = play(case, "portable")
    assert torch.equal(got["outputs"][1, 1], torch.zeros(5))
    assert torch.equal(got["final_state"][1], got["outputs"][1, 0])
    assert bool((got["outputs"][0] != 0).all())
