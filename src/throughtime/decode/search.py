"""A request -> the best hypotheses of each row. Only the beams that have not ended are run.

The grid [R, K] holds what is known of every beam of the rows that still search; the state holds the live beams of all
these rows, one after the other.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from throughtime._nested import Nested, leaves, map_leaves
from throughtime.decode.beam_decoder import attention_of
from throughtime.decode.beams import BeamRules, Beams, Extension, candidates, extend, start_beams
from throughtime.decode.decoder import float_dtype
from throughtime.decode.feedback import Request, SoFar
from throughtime.decode.tree import gather_paths, walk_back

__all__ = ["Hypotheses", "search"]


@dataclass(frozen=True)
class Hypotheses:
    """The K hypotheses of each row, best first. A score of minus infinity is none: there are fewer than K.

    ids: [B, K, T], filled up with the end token.
    lengths: [B, K], the end token counted.
    scores: [B, K], after the penalties; log_probs: [B, K], before.
    finished: bool [B, K], whether the hypothesis has said its end token.
    alignments: [B, K, T, M], 0 past the end; None where they are not wanted.
    """

    ids: Tensor
    lengths: Tensor
    scores: Tensor
    log_probs: Tensor
    finished: Tensor
    alignments: Nested = None


class _Grid(NamedTuple):
    """The rows that still search. rows: [R], their numbers in the batch; scores: [R, K]."""

    rows: Tensor
    beams: Beams
    scores: Tensor

    def select(self, index: Tensor) -> "_Grid":
        return map_leaves(lambda leaf: leaf.index_select(0, index), self)


class _Live(NamedTuple):
    """The live beams. rows: [A], each one's row in the batch; places: [A], where in the grid, row by row, it stands."""

    rows: Tensor
    places: Tensor
    ids: Tensor
    state: Nested


class _Record(NamedTuple):
    """What a step leaves behind, for the rows [R] that searched."""

    rows: Tensor
    tokens: Tensor
    parents: Tensor
    alignments: Nested


@torch.no_grad()
def search(request: Request, rules: BeamRules) -> Hypotheses:
    grid = _start(request, rules)
    live = _Live(grid.rows, grid.rows * rules.width, request.ids, request.state)
    consts = _Consts(request.row_consts, grid.rows)
    so_far = SoFar(request.constraint is not None, len(grid.rows), request.ids.device)
    records: list[_Record] = []
    ended = [grid.select(grid.rows[:0])]
    while len(grid.rows):
        logits, state = request.logits(live.ids, live.state, consts.of(live.rows), so_far, live.rows)
        extension = _extend(grid.beams, live, logits, state, rules)
        sources = _sources(grid.beams, live, extension.parents)
        weights = map_leaves(lambda leaf: _spread(leaf, sources), request.weights(state))  # noqa: B023
        records.append(_Record(grid.rows, extension.tokens, extension.parents, weights))
        grid = _Grid(grid.rows, extension.beams, extension.scores)
        over = grid.beams.finished.all(1)
        if len(records) == request.max_steps:
            over = torch.ones_like(over)
        tokens = extension.tokens
        if bool(over.any()):
            ended.append(grid.select(over.nonzero()[:, 0]))
            kept = (~over).nonzero()[:, 0]
            grid, sources, tokens = grid.select(kept), sources[kept], tokens[kept]
        live, index = _advance(grid, tokens, sources, state)
        so_far.select(index)
        so_far.append(live.ids)
    return _collect(rules, records, map_leaves(lambda *parts: torch.cat(parts), *ended))


class _Consts:
    """The constants of the live beams' rows, gathered again only when other beams live than at the step before."""

    def __init__(self, value: Nested, rows: Tensor) -> None:
        self._value, self._rows, self._current = value, rows, value

    def of(self, rows: Tensor) -> Nested:
        if leaves(self._value) and not torch.equal(rows, self._rows):
            self._rows = rows
            self._current = map_leaves(lambda leaf: leaf.index_select(0, rows), self._value)
        return self._current


def _start(request: Request, rules: BeamRules) -> _Grid:
    rows, device = request.batch_size, request.ids.device
    beams = start_beams(rows, rules.width, float_dtype(request.step.cell, request.state), device)
    if rules.coverage_weight:
        attention = attention_of(request.state, "generate")
        beams = beams._replace(coverage=attention.new_zeros(rows, rules.width, attention.shape[-1]))
    return _Grid(torch.arange(rows, device=device), beams, beams.log_probs)


def _extend(beams: Beams, live: _Live, logits: Tensor, state: Nested, rules: BeamRules) -> Extension:
    """The candidates of the live beams, put into the grid -> the next beams."""

    def to_grid(values: Tensor, fill: float) -> Tensor:
        grid = values.new_full((beams.finished.numel(), values.shape[1]), fill)
        return grid.index_copy_(0, live.places, values).unflatten(0, beams.finished.shape)

    log_probs, tokens = candidates(logits, rules)
    attention = to_grid(attention_of(state, "generate"), 0.0) if rules.coverage_weight else None
    return extend(beams, to_grid(log_probs, -torch.inf), to_grid(tokens, rules.end_token or 0), attention, rules)


def _sources(beams: Beams, live: _Live, parents: Tensor) -> Tensor:
    """[R, K]: the number of the live beam that each new beam continues; -1 where it stays as it was."""
    number = torch.full((beams.finished.numel(),), -1, device=parents.device)
    number[live.places] = torch.arange(len(live.places), device=parents.device)
    return number.view_as(parents).gather(1, parents)


def _advance(grid: _Grid, tokens: Tensor, sources: Tensor, state: Nested) -> tuple[_Live, Tensor]:
    """The live beams of the next step, and for each the live beam of this one that it continues."""
    places = (~grid.beams.finished).flatten().nonzero()[:, 0]
    index = sources.flatten()[places]
    next_state = map_leaves(lambda leaf: leaf.index_select(0, index), state)
    return _Live(grid.rows[places // sources.shape[1]], places, tokens.flatten()[places], next_state), index


def _spread(weights: Tensor, sources: Tensor) -> Tensor:
    """[A, M] -> [R, K, M]: the weights with which each new beam's token was made, 0 for one that had ended."""
    return torch.where((sources >= 0).unsqueeze(-1), weights[sources.clamp(min=0)], 0)


def _collect(rules: BeamRules, records: list[_Record], ended: _Grid) -> Hypotheses:
    """Walk back from the last step. A row whose search was over earlier has kept its beams where they were."""
    device, count, width, steps = ended.rows.device, len(ended.rows), rules.width, len(records)
    end = rules.end_token or 0
    ended = ended.select(ended.rows.argsort())
    tokens = torch.full((steps, count, width), end, device=device)
    parents = torch.arange(width, device=device).expand(steps, count, width).clone()
    for t, record in enumerate(records):
        tokens[t, record.rows], parents[t, record.rows] = record.tokens, record.parents
    paths = walk_back(parents, torch.full((count,), steps, device=device), width)
    real = ended.beams.log_probs != -torch.inf
    lengths = torch.where(real, ended.beams.lengths, 0)
    within = torch.arange(steps, device=device) < lengths.unsqueeze(-1)
    ids = torch.where(within, tokens.gather(2, paths).permute(1, 2, 0), end)
    alignments = _alignments(records, paths, within) if records and leaves(records[0].alignments) else None
    return Hypotheses(ids, lengths, ended.scores, ended.beams.log_probs, ended.beams.finished & real, alignments)


def _alignments(records: list[_Record], paths: Tensor, within: Tensor) -> Nested:
    """The weights along each path, [B, K, T, M]."""

    def gather(*steps: Tensor) -> Tensor:
        array = steps[0].new_zeros(*paths.shape, steps[0].shape[-1])
        for t, record in enumerate(records):
            array[t, record.rows] = steps[t]
        along = gather_paths(array, paths).permute(1, 2, 0, 3)
        return torch.where(within.unsqueeze(-1), along, 0)

    return map_leaves(gather, *(record.alignments for record in records))
