"""Logits, targets and lengths -> the loss of a batch of sequences, nothing of its padding.

Source: TensorFlow 1.15, contrib/seq2seq/python/ops/loss.py.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["sequence_loss", "sequence_mask"]

SoftmaxLoss = Callable[[Tensor, Tensor], Tensor]


def sequence_mask(lengths: Any, maxlen: int | None = None, dtype: torch.dtype = torch.bool) -> Tensor:
    """`mask[..., t] = t < lengths[...]`: lengths [...] -> [..., maxlen], by default up to the longest.

    >>> import throughtime
    >>> throughtime.sequence_mask([2, 0], 3)
    tensor([[ True,  True, False],
            [False, False, False]])
    """
    lengths = torch.as_tensor(lengths)
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise ValueError(f"sequence_mask: lengths must be whole numbers, got {lengths.dtype}. Cast them first.")
    if maxlen is None:
        maxlen = int(lengths.max()) if lengths.numel() else 0
    steps = torch.arange(maxlen, device=lengths.device)
    return (steps < lengths.unsqueeze(-1)).to(dtype)


def sequence_loss(
    logits: Tensor,
    targets: Tensor,
    weights: Tensor,
    average_across_timesteps: bool = True,
    average_across_batch: bool = True,
    sum_over_timesteps: bool = False,
    sum_over_batch: bool = False,
    softmax_loss_function: SoftmaxLoss | None = None,
    *,
    tf1_exact: bool = False,
) -> Tensor:
    """The weighted cross-entropy of sequences: `loss[b, t] = weights[b, t] * -log softmax(logits[b, t])[target]`.

    Then steps are reduced, then rows:

    | reduction | steps | rows |
    |---|---|---|
    | average_across_* | sum / sum of the row's weights | sum / number of rows |
    | sum_over_* | sum / number of the row's weights that are not 0 | sum / number of rows with such weights |
    | neither | kept | kept |

    Both averages together: the sum of all / the sum of all weights, the usual loss per token. Both sums together: the
    sum of all / the number of weights that are not 0. Nothing divided by nothing is 0.

    Where a weight is 0 logits and targets are not read (NaN there does no harm, and costs nothing), unless the weights
    require gradients.

    What differs from TensorFlow, whose numbers `tf1_exact=True` gives: there average_across_batch alone divides each
    step by the sum of its weights, though its documentation says the number of rows (so does sum_over_batch, by the
    number of weights that are not 0); and of an average and a sum together only the average is done.

    Args:
        logits: [B, T, classes].
        targets: [B, T], whole numbers from 0 to classes - 1.
        weights: [B, T]; `sequence_mask(lengths, T, logits.dtype)` for sequences of different lengths.
        softmax_loss_function: (labels, logits) -> losses, on the flattened batch.

    Returns:
        A scalar, [B], [T] or [B, T], by what is reduced.

    Raises:
        ValueError: shapes that do not fit, an average and a sum of the same axis, targets out of range.

    >>> import torch, throughtime
    >>> logits, targets = torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.long)
    >>> throughtime.sequence_loss(logits, targets, throughtime.sequence_mask([3, 1], 3, torch.float32))
    tensor(1.3863)
    """
    _check_options(average_across_timesteps, average_across_batch, sum_over_timesteps, sum_over_batch)
    _check_shapes(logits, targets, weights)
    weights = weights.to(logits.dtype)
    losses = _losses(logits, targets, weights, softmax_loss_function)
    if average_across_timesteps and average_across_batch:
        return _divide(losses.sum(), weights.sum())
    if sum_over_timesteps and sum_over_batch:
        return _divide(losses.sum(), _count(weights))
    if tf1_exact:
        return _reduce_as_tensorflow(
            losses, weights, average_across_timesteps, average_across_batch, sum_over_timesteps, sum_over_batch
        )
    real_rows = (weights != 0).any(1)
    if average_across_timesteps:
        losses = _divide(losses.sum(1), weights.sum(1))
    elif sum_over_timesteps:
        losses = _divide(losses.sum(1), _count(weights, 1))
    if average_across_batch:
        return losses.sum(0) / max(losses.shape[0], 1)
    if sum_over_batch:
        return _divide(losses.sum(0), real_rows.sum().to(losses.dtype))
    return losses


def _losses(logits: Tensor, targets: Tensor, weights: Tensor, function: SoftmaxLoss | None) -> Tensor:
    """The weighted losses [B, T]; of the real pairs only, where the weights are constants."""
    if function is None:
        function = _cross_entropy
    if weights.requires_grad:
        return function(targets.reshape(-1), logits.flatten(0, 1)).reshape(weights.shape) * weights
    real = weights != 0
    some = function(targets[real], logits[real]) * weights[real]
    return torch.zeros_like(weights, dtype=some.dtype).masked_scatter(real, some)


def _cross_entropy(targets: Tensor, logits: Tensor) -> Tensor:
    classes = logits.shape[-1]
    wrong = (targets < 0) | (targets >= classes)
    if wrong.any():
        raise ValueError(
            f"sequence_loss: targets must lie between 0 and the number of classes, {classes}; got "
            f"{int(targets[wrong][0])}. Padding may hold any number where its weight is 0."
        )
    return F.cross_entropy(logits, targets.long(), reduction="none")


def _reduce_as_tensorflow(
    losses: Tensor, weights: Tensor, average_t: bool, average_b: bool, sum_t: bool, sum_b: bool
) -> Tensor:
    if average_t or average_b:
        axis = 0 if average_b else 1
        return _divide(losses.sum(axis), weights.sum(axis))
    if sum_t or sum_b:
        axis = 0 if sum_b else 1
        return _divide(losses.sum(axis), _count(weights, axis))
    return losses


def _count(weights: Tensor, axis: int | None = None) -> Tensor:
    return torch.count_nonzero(weights, dim=axis).to(weights.dtype)


def _divide(total: Tensor, by: Tensor) -> Tensor:
    """total / by, and 0 where `by` is 0."""
    zero = by == 0
    return torch.where(zero, 0, total / torch.where(zero, 1, by))


def _check_options(average_t: bool, average_b: bool, sum_t: bool, sum_b: bool) -> None:
    for axis, average, total in (("timesteps", average_t, sum_t), ("batch", average_b, sum_b)):
        if average and total:
            raise ValueError(
                f"sequence_loss: average_across_{axis} and sum_over_{axis} exclude each other. Set one to False."
            )


def _check_shapes(logits: Tensor, targets: Tensor, weights: Tensor) -> None:
    if logits.dim() != 3:
        raise ValueError(f"sequence_loss: logits must be [batch, steps, classes], got {list(logits.shape)}.")
    if targets.is_floating_point() or targets.shape != logits.shape[:2]:
        raise ValueError(
            f"sequence_loss: targets must be whole numbers {list(logits.shape[:2])}, one for each step of the logits; "
            f"got {targets.dtype} {list(targets.shape)}."
        )
    if weights.shape != logits.shape[:2]:
        raise ValueError(
            f"sequence_loss: weights must be {list(logits.shape[:2])}, one for each step of the logits; got "
            f"{list(weights.shape)}. Make them with sequence_mask(lengths, {logits.shape[1]})."
        )
