"""sequence_loss by its table, and masks."""

import pytest
import torch
from torch import Tensor

from throughtime.decode import sequence_loss, sequence_mask


def batch() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    weights = torch.rand(4, 5, dtype=torch.float64) * sequence_mask([5, 2, 0, 3], 5)
    return torch.randn(4, 5, 6, dtype=torch.float64), torch.randint(6, (4, 5)), weights


def each(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    return -logits.log_softmax(-1).gather(2, targets[:, :, None])[:, :, 0] * weights


def reduce_steps(how: str, losses: Tensor, weights: Tensor) -> Tensor:
    if how == "none":
        return losses
    by = weights.sum(1) if how == "avg" else (weights != 0).sum(1)
    return torch.where(by == 0, 0, losses.sum(1) / by.clamp(min=1e-30))


@pytest.mark.parametrize("steps", ["none", "avg", "sum"])
@pytest.mark.parametrize("rows", ["none", "avg", "sum"])
def test_reductions(steps: str, rows: str) -> None:
    logits, targets, weights = batch()
    got = sequence_loss(logits, targets, weights, steps == "avg", rows == "avg", steps == "sum", rows == "sum")
    losses = each(logits, targets, weights)
    if steps == rows == "avg":
        expected = losses.sum() / weights.sum()
    elif steps == rows == "sum":
        expected = losses.sum() / (weights != 0).sum()
    else:
        expected = reduce_steps(steps, losses, weights)
        if rows != "none":
            expected = expected.sum(0) / (4 if rows == "avg" else 3)
    torch.testing.assert_close(got, expected)


def test_nothing_of_the_padding_is_read() -> None:
    logits, targets, weights = batch()
    clean = logits.clone().requires_grad_()
    sequence_loss(clean, targets, weights).backward()
    padding = weights == 0
    poisoned = torch.where(padding[:, :, None], torch.nan, logits).requires_grad_()
    loss = sequence_loss(poisoned, torch.where(padding, -99, targets), weights)
    loss.backward()
    torch.testing.assert_close(poisoned.grad, clean.grad)
    assert (poisoned.grad[padding] == 0).all()


def test_no_weight_at_all_is_a_loss_of_zero() -> None:
    logits, targets, weights = batch()
    for options in ((True, True), (True, False), (False, True)):
        assert (sequence_loss(logits, targets, weights * 0, *options) == 0).all()


def test_a_loss_function_of_ones_own() -> None:
    logits, targets, weights = batch()
    got = sequence_loss(logits, targets, weights, softmax_loss_function=lambda labels, logits: logits[:, 0] + labels)
    torch.testing.assert_close(got, ((logits[:, :, 0] + targets) * weights).sum() / weights.sum())


def test_masks() -> None:
    assert sequence_mask(torch.tensor([2, 0, 3])).tolist() == [[True, True, False], [False] * 3, [True] * 3]
    assert sequence_mask([[1], [2]], 2, torch.float32).tolist() == [[[1, 0]], [[1, 1]]]
    assert sequence_mask(torch.zeros(0, dtype=torch.int32)).shape == (0, 0)
    assert sequence_mask([4], 2).tolist() == [[True, True]]


def test_under_autocast_the_loss_is_float32() -> None:
    logits, targets, weights = batch()
    low, whole = logits.bfloat16(), (weights != 0).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = sequence_loss(low, targets, whole, False, False)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, each(low.float(), targets, whole.float()))
