"""A step of beam search with TensorFlow 1's arithmetic, score for score.

The length in a score leaves out an end token that is being appended, the stored length counts it; coverage is paid by
beams that had finished before the step. So a score moves once more after its beam has finished.

Source: TensorFlow 1.15, contrib/seq2seq/python/ops/beam_search_decoder.py (_beam_search_step).
"""

import torch
from torch import Tensor

from throughtime.decode.beams import BeamRules, Beams, Extension, accumulate, coverage_of, length_penalty, of_parents

__all__ = ["extend_as_tensorflow"]


def extend_as_tensorflow(beams: Beams, logits: Tensor, attention: Tensor | None, rules: BeamRules) -> Extension:
    """Logits [R, K, V] of each beam -> the next K beams of each row."""
    end, vocabulary = rules.end_token, logits.shape[-1]
    is_end = torch.arange(vocabulary, device=logits.device) == end
    frozen = torch.zeros_like(logits[0, 0]).masked_fill(~is_end, torch.finfo(logits.dtype).min)
    finished = beams.finished.unsqueeze(-1)
    total = beams.log_probs.unsqueeze(-1) + torch.where(finished, frozen, logits.log_softmax(-1))
    lengths = beams.lengths.unsqueeze(-1) + (~finished & ~is_end).long()
    scores = total / length_penalty(lengths, rules.length_weight, total.dtype)
    coverage = accumulate(beams, attention)
    if isinstance(coverage, Tensor):
        penalty = rules.coverage_weight * coverage_of(coverage) * beams.finished
        scores = scores + penalty.unsqueeze(-1)
    best, places = scores.flatten(1).sort(dim=-1, descending=True, stable=True)
    best, places = best[:, : rules.width], places[:, : rules.width]
    parents, tokens = places // vocabulary, places % vocabulary
    was_finished = beams.finished.gather(1, parents)
    next_beams = Beams(
        total.flatten(1).gather(1, places),
        was_finished | (tokens == end),
        beams.lengths.gather(1, parents) + (~was_finished).long(),
        of_parents(coverage, parents),
    )
    return Extension(next_beams, best, tokens, parents)
