"""Logits and a number from 0 to 1 -> a token, drawn from the distribution, its top k or its nucleus.

Source: Holtzman, Buys, Du, Forbes and Choi 2020, arXiv 1904.09751, section 3.1 (top p) and 3.2 (top k, temperature).
"""

import math

import torch
from torch import Tensor

__all__ = ["check_sampling", "draw"]


def draw(
    logits: Tensor, uniform: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """logits [B, V], uniform [B] in (0, 1) -> ids [B], by the inverse of the cumulated probabilities.

    top_k: only the k most probable; top_p: only the fewest that together reach p.
    """
    if temperature != 1.0:
        logits = logits / temperature
    if top_k is None and top_p is None:
        return _invert(torch.softmax(logits, -1), uniform)
    kept = logits.shape[-1] if top_k is None else min(top_k, logits.shape[-1])
    values, ids = logits.topk(kept, -1)
    probabilities = torch.softmax(values, -1)
    if top_p is not None:
        before = probabilities.cumsum(-1) - probabilities
        probabilities = torch.where(before < top_p, probabilities, 0)
    return ids.gather(-1, _invert(probabilities, uniform).unsqueeze(-1)).squeeze(-1)


def check_sampling(name: str, temperature: float, top_k: int | None, top_p: float | None) -> None:
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(
            f"{name}: temperature must be above 0, got {temperature}. Greedy takes the most probable token."
        )
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
        raise ValueError(f"{name}: top_k must be a whole number of at least 1, got {top_k!r}. None keeps all tokens.")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"{name}: top_p must be above 0 and at most 1, got {top_p}. None keeps all tokens.")


def _invert(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """The first place whose cumulated probability exceeds `uniform` of the total; never one of probability 0."""
    cumulated = probabilities.cumsum(-1, dtype=torch.float64)
    target = uniform.to(cumulated.dtype).unsqueeze(-1) * cumulated[..., -1:]
    return torch.searchsorted(cumulated, target, right=True).squeeze(-1)
