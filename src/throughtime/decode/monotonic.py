"""Probabilities of choosing -> weights that only move forwards; and hardmax.

Source: Raffel, Luong, Liu, Weiss and Eck 2017, arXiv 1704.00784; TensorFlow 1.15, contrib/seq2seq/attention_wrapper.py.
"""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["MONOTONIC_MODES", "hardmax", "monotonic_attention", "safe_cumprod"]

MONOTONIC_MODES = ("recursive", "parallel", "hard")


def hardmax(logits: Tensor) -> Tensor:
    """1 at the largest value of the last axis (the first of them), 0 elsewhere. It has no gradient.

    >>> import torch, throughtime
    >>> throughtime.hardmax(torch.tensor([[1.0, 3.0, 3.0]]))
    tensor([[0., 1., 0.]])
    """
    places = torch.arange(logits.shape[-1], device=logits.device)
    return (logits.argmax(-1, keepdim=True) == places).to(logits.dtype)


def safe_cumprod(x: Tensor, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> Tensor:
    """`cumprod(x)` as `exp(cumsum(log(x)))`, with x clipped to [smallest normal number, 1].

    The product and its gradient stay finite where factors are 0.

    Args:
        exclusive: the k-th result leaves the k-th factor out.
        reverse: from the end of the axis.

    >>> import torch, throughtime
    >>> throughtime.safe_cumprod(torch.tensor([0.5, 0.5, 1.0]), exclusive=True)
    tensor([1.0000, 0.5000, 0.2500])
    """
    logs = x.clamp(torch.finfo(x.dtype).tiny, 1).log()
    return _cumulate(torch.cumsum, logs, axis, exclusive, reverse, start=0.0).exp()


def monotonic_attention(p_choose_i: Tensor, previous_attention: Tensor, mode: str) -> Tensor:
    """The weights of an attention that never goes back::

        q[i] = (1 - p[i - 1]) * q[i - 1] + previous[i]        # the probability to get as far as i
        attention[i] = p[i] * q[i]

    Args:
        p_choose_i: [B, M], the probability of stopping at each step of the memory, from 0 to 1.
        previous_attention: [B, M], of the step before; at the first step 1 at the first place and 0 elsewhere.
        mode: "recursive" computes exactly that; "parallel" a closed form from cumulative sums and products, which is
            faster, and inexact where probabilities are very near 0 or 1 in a long memory; "hard" is exact for
            probabilities that are all 0 or 1.

    Returns:
        [B, M]; a row may sum to less than 1, even to 0, where the attention ran off the end of the memory.

    Source: Raffel et al. 2017, arXiv 1704.00784, equations 8 to 12 and appendix C.

    >>> import torch, throughtime
    >>> p, previous = torch.tensor([[0.0, 1.0, 1.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    >>> throughtime.monotonic_attention(p, previous, "hard")
    tensor([[0., 1., 0.]])
    """
    if mode == "recursive":
        return p_choose_i * _reach(p_choose_i, previous_attention)
    if mode == "parallel":
        passed = safe_cumprod(1 - p_choose_i, axis=1, exclusive=True)
        return p_choose_i * passed * (previous_attention / passed.clamp(1e-10, 1)).cumsum(1)
    if mode == "hard":
        allowed = p_choose_i * previous_attention.cumsum(1)
        return allowed * _cumulate(torch.cumprod, 1 - allowed, 1, exclusive=True, reverse=False, start=1.0)
    raise ValueError(f"monotonic_attention: mode must be 'recursive', 'parallel' or 'hard', got {mode!r}.")


def _reach(p: Tensor, previous: Tensor) -> Tensor:
    """q of the definition, one step of the memory at a time."""
    reached = [previous[:, 0]]
    for i in range(1, p.shape[1]):
        reached.append((1 - p[:, i - 1]) * reached[-1] + previous[:, i])
    return torch.stack(reached, 1)


def _cumulate(
    function: Callable[[Tensor, int], Tensor], x: Tensor, axis: int, exclusive: bool, reverse: bool, start: float
) -> Tensor:
    if reverse:
        x = x.flip(axis)
    if exclusive:
        first = torch.full_like(x.narrow(axis, 0, 1), start)
        x = torch.cat([first, x.narrow(axis, 0, x.shape[axis] - 1)], axis)
    result = function(x, axis)
    return result.flip(axis) if reverse else result
