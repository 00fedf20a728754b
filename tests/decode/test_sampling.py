"""Noise by (seed, row, step), and draws from logits: distributions, top k, top p."""

import pytest
import torch

from throughtime.decode.noise import Noise
from throughtime.decode.sampling import draw

CPU = torch.device("cpu")


def test_noise_is_a_function_of_seed_row_and_step() -> None:
    few, many = Noise(5, 3, CPU), Noise(5, 100, CPU)
    later = Noise(5, 100, CPU)
    assert torch.equal(later.uniform(130)[:3], few.uniform(130))
    for t in (0, 1, 63, 64, 65, 0):
        assert torch.equal(few.uniform(t), many.uniform(t)[:3])
        rows = torch.tensor([2, 0])
        assert torch.equal(few.uniform(t, rows), few.uniform(t)[rows])
    assert not torch.equal(Noise(6, 3, CPU).uniform(0), few.uniform(0))
    numbers = torch.stack([many.uniform(t) for t in range(200)])
    assert len(numbers.unique()) == numbers.numel()
    assert numbers.min() > 0
    assert numbers.max() < 1
    assert float(numbers.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(numbers.var()) == pytest.approx(1 / 12, abs=0.002)
    for a, b in ((numbers[1:], numbers[:-1]), (numbers[:, 1:], numbers[:, :-1])):
        assert abs(float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])) < 0.02


def test_a_negative_seed_and_none() -> None:
    assert not torch.equal(Noise(-1, 4, CPU).uniform(0), Noise(1, 4, CPU).uniform(0))
    torch.manual_seed(0)
    first, second = Noise(None, 4, CPU), Noise(None, 4, CPU)
    assert first.seed != second.seed
    torch.manual_seed(0)
    assert Noise(None, 4, CPU).seed == first.seed


def shares(logits: torch.Tensor, **options) -> torch.Tensor:
    uniform = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    ids = draw(logits.expand(20_000, -1), uniform, **options)
    return torch.bincount(ids, minlength=len(logits)).double() / 20_000


LOGITS = torch.tensor([0.3, -1.0, 2.0, 0.0, 1.0])


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_the_distribution(temperature: float) -> None:
    expected = (LOGITS.double() / temperature).softmax(-1)
    torch.testing.assert_close(shares(LOGITS, temperature=temperature), expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize("k", [1, 2, 4, 5, 9])
def test_top_k(k: int) -> None:
    kept = LOGITS.sort(descending=True).values[min(k, 5) - 1] <= LOGITS
    expected = torch.where(kept, LOGITS.double(), -torch.inf).softmax(-1)
    torch.testing.assert_close(shares(LOGITS, top_k=k), expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize(("p", "count"), [(0.01, 1), (0.55, 1), (0.6, 2), (0.81, 3), (1.0, 5)])
def test_top_p(p: float, count: int) -> None:
    """Probabilities .578, .213, .106, .078, .029: the fewest that reach p."""
    kept = torch.zeros(5, dtype=torch.bool)
    kept[LOGITS.argsort(descending=True)[:count]] = True
    expected = torch.where(kept, LOGITS.double(), -torch.inf).softmax(-1)
    torch.testing.assert_close(shares(LOGITS, top_p=p), expected, atol=2e-4, rtol=0)


def test_top_p_counts_within_top_k() -> None:
    """Of the two best, .73 and .27: .7 is reached by the first alone."""
    assert shares(LOGITS, top_k=2, top_p=0.7).tolist() == [0, 0, 1, 0, 0]
    assert shares(LOGITS, top_k=2, top_p=0.75)[4] > 0


def test_what_is_forbidden_is_never_drawn() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 1.0, -torch.inf]]).expand(5, -1)
    edges = torch.tensor([2.0**-41, 0.25, 0.5, 0.75, 1 - 2.0**-41], dtype=torch.float64)
    for options in ({}, {"top_k": 4}, {"top_p": 1.0}):
        assert set(draw(logits, edges, **options).tolist()) <= {1, 3}


def test_a_large_vocabulary_loses_nothing_to_rounding() -> None:
    logits = torch.zeros(3, 50_000)
    uniform = torch.tensor([2.0**-41, 0.5, 1 - 2.0**-41], dtype=torch.float64)
    low, middle, high = draw(logits, uniform).tolist()
    assert low == 0
    assert abs(middle - 25_000) <= 1
    assert high == 49_999
