"""Hypotheses and the log-probabilities of their next tokens -> the best hypotheses one token longer.

A row keeps K beams, the finished ones among them. What differs from TensorFlow (whose arithmetic is in
`beams_tf1.py`): a length counts the end token, in a score as in the state; the coverage penalty falls due when a beam
ends, not a step later; a hypothesis that cannot be (of probability 0, or more beams than there are continuations) is
finished with a score of minus infinity. So a finished beam's score never moves.

Source: TensorFlow 1.15, contrib/seq2seq/python/ops/beam_search_decoder.py; Wu et al. 2016, arXiv 1609.08144, section 7.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from throughtime._nested import Nested

__all__ = [
    "BeamRules",
    "Beams",
    "Extension",
    "accumulate",
    "candidates",
    "coverage_of",
    "extend",
    "length_penalty",
    "of_parents",
    "start_beams",
]


@dataclass(frozen=True)
class BeamRules:
    """width: beams per row. A score is `log p / ((5 + length) / 6) ** length_weight` and, once a beam has ended, plus
    `coverage_weight * sum(log(min(attention, 1)))` over the memory, attention summed over the steps."""

    width: int
    end_token: int | None
    length_weight: float = 0.0
    coverage_weight: float = 0.0


class Beams(NamedTuple):
    """The hypotheses of R rows; [R, K] each, best first.

    coverage: [R, K, M], attention summed over a beam's steps; () without a coverage penalty.
    """

    log_probs: Tensor
    finished: Tensor
    lengths: Tensor
    coverage: Tensor | tuple[()] = ()


class Extension(NamedTuple):
    """One step of the search, [R, K] each: new beam k is beam `parents[k]` with `tokens[k]` appended."""

    beams: Beams
    scores: Tensor
    tokens: Tensor
    parents: Tensor


def start_beams(rows: int, width: int, dtype: torch.dtype, device: torch.device) -> Beams:
    """One real beam per row; the others are finished and impossible, and give way to its continuations."""
    log_probs = torch.full((rows, width), -math.inf, dtype=dtype, device=device)
    log_probs[:, 0] = 0
    finished = torch.ones(rows, width, dtype=torch.bool, device=device)
    finished[:, 0] = False
    return Beams(log_probs, finished, torch.zeros(rows, width, dtype=torch.long, device=device))


def candidates(logits: Tensor, rules: BeamRules) -> tuple[Tensor, Tensor]:
    """logits [..., V] -> (log-probabilities, tokens) [..., C]: the tokens that can be among the next beams.

    Only the K best of one beam can be among the K best of all, and the end token, whose score may have a penalty of
    its own. The end token stands last.
    """
    total = logits.logsumexp(-1, keepdim=True)
    end = rules.end_token
    kept = min(rules.width + (end is not None), logits.shape[-1])
    values, tokens = logits.topk(kept, -1)
    log_probs = values - total
    if end is None:
        return log_probs, tokens
    log_probs = log_probs.masked_fill(tokens == end, -math.inf)
    ending = logits[..., end : end + 1] - total
    return torch.cat([log_probs, ending], -1), torch.cat([tokens, torch.full_like(tokens[..., :1], end)], -1)


def extend(beams: Beams, log_probs: Tensor, tokens: Tensor, attention: Tensor | None, rules: BeamRules) -> Extension:
    """Candidates [R, K, C] of each beam, and its attention [R, K, M] at this step -> the next K beams of each row."""
    finished = beams.finished.unsqueeze(-1)
    stays = torch.zeros_like(log_probs, dtype=torch.bool)
    stays[..., -1] = rules.end_token is not None
    log_probs = torch.where(finished, torch.where(stays, 0.0, -math.inf), log_probs)
    total = beams.log_probs.unsqueeze(-1) + log_probs
    lengths = beams.lengths + (~beams.finished).long()
    scores = total / length_penalty(lengths, rules.length_weight, total.dtype).unsqueeze(-1)
    coverage = accumulate(beams, attention)
    if isinstance(coverage, Tensor):
        penalty = rules.coverage_weight * coverage_of(coverage)
        scores = torch.where(stays, scores + penalty.unsqueeze(-1), scores)
    return _pick(Beams(total, beams.finished, lengths, coverage), scores, tokens, rules)


def length_penalty(lengths: Tensor, weight: float, dtype: torch.dtype) -> Tensor:
    """((5 + length) / 6) ** weight."""
    if weight == 0:
        return torch.ones((), dtype=dtype, device=lengths.device).expand(lengths.shape)
    return ((5.0 + lengths.to(dtype)) / 6.0) ** weight


def _pick(extended: Beams, scores: Tensor, tokens: Tensor, rules: BeamRules) -> Extension:
    """The K best of all candidates of a row; of equal ones the first beam's, the more probable token's."""
    count = scores.shape[-1]
    best, places = scores.flatten(1).sort(dim=-1, descending=True, stable=True)
    best, places = best[:, : rules.width], places[:, : rules.width]
    parents = places // count
    log_probs = extended.log_probs.flatten(1).gather(1, places)
    tokens = tokens.flatten(1).gather(1, places)
    finished = extended.finished.gather(1, parents) | (log_probs == -math.inf)
    if rules.end_token is not None:
        tokens = torch.where(finished, rules.end_token, tokens)
        finished = finished | (tokens == rules.end_token)
    coverage = of_parents(extended.coverage, parents)
    beams = Beams(log_probs, finished, extended.lengths.gather(1, parents), coverage)
    return Extension(beams, best, tokens, parents)


def accumulate(beams: Beams, attention: Tensor | None) -> Tensor | tuple[()]:
    if attention is None or not isinstance(beams.coverage, Tensor):
        return ()
    return beams.coverage + torch.where(beams.finished.unsqueeze(-1), 0, attention)


def coverage_of(accumulated: Tensor) -> Tensor:
    """sum(log(min(attention, 1))): 0 where every place was attended to. Exactly 0 is a place past the memory's end."""
    accumulated = torch.where(accumulated == 0, 1, accumulated)
    return accumulated.clamp(max=1).log().sum(-1)


def of_parents(value: Nested, parents: Tensor) -> Nested:
    """[R, K, ...] -> the entries of each beam's parent."""
    if not isinstance(value, Tensor):
        return value
    places = parents.reshape(*parents.shape, *[1] * (value.dim() - 2)).expand(-1, -1, *value.shape[2:])
    return value.gather(1, places)
