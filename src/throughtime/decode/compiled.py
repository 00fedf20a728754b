"""A request -> its steps in machine code: greedy decoding as a whole, every other strategy's step one by one.

Greedy decoding has the feedback inside the loop. The step that is compiled takes its own choice as part of its state:
look up, cell, output layer, argmax, log p. It runs a few steps at a time; then rows that have said their end token go.
Token ids travel as floating-point numbers, which hold them exactly (a vocabulary has fewer than 2^24 tokens).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from throughtime._nested import Nested, map_leaves
from throughtime._pipeline import Compiled, Held, Progress, Run, find_loop
from throughtime._sequence import read_sequence
from throughtime._types import Backend
from throughtime.decode.feedback import CHUNK, Feedback, Request
from throughtime.decode.single import Steps
from throughtime.decode.tokens import check_logits

__all__ = ["greedy_steps", "natively"]

FIRST_STEPS, MOST_STEPS = 8, 64
LONGEST_RUN = 256


class _Step(nn.Module):
    """A step of decoding as a cell. It is known by its parts, so it may be made anew at each call."""

    def __init__(self, step: Feedback) -> None:
        super().__init__()
        self.step = step
        parts = (step.cell, step.output_layer, step.embedding.look_up)
        self.parts = nn.ModuleList([part for part in parts if isinstance(part, nn.Module)])

    def made_of(self) -> tuple[Any, ...]:
        return self.step.cell, self.step.output_layer, self.step.embedding.given


class LogitStep(_Step):
    """(ids, state) -> (logits, state)."""

    def forward(self, x: Tensor, state: Nested, row_consts: Nested = ()) -> tuple[Tensor, Nested]:
        return self.step(x, state, row_consts)


class GreedyStep(_Step):
    """(nothing, (token, state)) -> ((token, log p), (token, state))."""

    def forward(self, x: Tensor, state: Nested, row_consts: Nested = ()) -> Any:
        token, inner = state
        logits, next_inner = self.step(token.squeeze(-1).to(torch.long), inner, row_consts)
        best = logits.amax(-1, keepdim=True)
        log_p = -torch.log(torch.exp(logits - best).sum(-1, keepdim=True))
        choice = logits.argmax(-1, keepdim=True).to(token.dtype)
        return (choice, log_p), (choice, next_inner)


@dataclass(frozen=True)
class _NativeFeedback(Feedback):
    """The same step in machine code, so that the bits of a row do not depend on how many rows there are."""

    held: Held
    traced: LogitStep

    def __call__(self, ids: Tensor, state: Nested, row_consts: Nested) -> tuple[Tensor, Nested]:
        progress = Progress(_run_of(self.traced, ids.unsqueeze(1), state, row_consts), self.held)
        return progress.advance(1), progress.state


@torch.no_grad()
def natively(request: Request, backend: Backend) -> Request:
    """The request with its step in machine code, if it can be."""
    if backend == "portable" or not request.batch_size:
        return request
    _check_first_logits(request)
    traced = LogitStep(request.step)
    loop, consts = find_loop(_run_of(traced, request.ids.unsqueeze(1), request.state, request.row_consts))
    if not isinstance(loop, Compiled):
        return request
    given = request.step
    step = _NativeFeedback(given.cell, given.embedding, given.output_layer, Held(loop, consts), traced)
    return replace(request, step=step)


@torch.no_grad()
def greedy_steps(request: Request, backend: Backend) -> Iterator[Steps] | None:
    """None where the compiled loop cannot run it: a constraint, alignments, or a step that is refused."""
    if backend == "portable" or request.constraint is not None or request.alignments or not request.batch_size:
        return None
    first = _check_first_logits(request)
    if first.shape[1] >= 2**24 or not first.is_floating_point():
        return None
    step = GreedyStep(request.step)
    tokens = request.ids.to(first.dtype).unsqueeze(-1)
    found, consts = find_loop(_run_of(step, tokens.unsqueeze(1), (tokens, request.state), request.row_consts))
    return _steps(request, tokens, step, Held(found, consts)) if isinstance(found, Compiled) else None


def _check_first_logits(request: Request) -> Tensor:
    """One step in PyTorch, for the checks of what the layer gives."""
    logits, _ = request.step(request.ids, request.state, request.row_consts)
    check_logits("generate", logits, request.batch_size, request.end_token, request.step.embedding)
    return logits


def _run_of(step: _Step, inputs: Tensor, state: Nested, row_consts: Nested) -> Run:
    ragged = read_sequence(inputs)
    return Run(step, ragged, state, row_consts, reset=None, reset_state=None, backend="native", chunk=CHUNK)


@torch.no_grad()
def _steps(request: Request, tokens: Tensor, step: GreedyStep, held: Held) -> Iterator[Steps]:
    rows = torch.arange(request.batch_size)
    state, row_consts = (tokens, request.state), request.row_consts
    scores = tokens.new_zeros(len(rows))
    left = request.max_steps
    while len(rows) and left != 0:
        longest = LONGEST_RUN if left is None else min(left, LONGEST_RUN)
        nothing = tokens.new_zeros(len(rows), longest, 1)
        progress = Progress(_run_of(step, nothing, state, row_consts), held)
        count, all_run = FIRST_STEPS, True
        while all_run and progress.steps_left:
            count = min(count, progress.steps_left)
            ids, log_p = (y.view(count, len(rows)) for y in progress.advance(count))
            sums = scores + log_p.cumsum(0)
            ended = _ended(ids, request.end_token)
            all_run = ended is None or not bool(ended[-1].any())
            yield Steps(rows, ids.long(), sums, running=None if ended is None or all_run else ~_before(ended))
            scores, count = sums[-1], min(2 * count, MOST_STEPS)
        left = None if left is None else left - (longest - progress.steps_left)
        state = progress.state
        if ended is not None and not all_run:
            keep = (~ended[-1]).nonzero()[:, 0]
            rows, scores = rows[keep], scores[keep]
            state, row_consts = map_leaves(lambda leaf: leaf.index_select(0, keep), (state, row_consts))  # noqa: B023


def _ended(ids: Tensor, end_token: int | None) -> Tensor | None:
    """[n, A]: whether a row has said its end token at step t or before."""
    return None if end_token is None else (ids == end_token).cummax(0).values


def _before(ended: Tensor) -> Tensor:
    """The same before each step."""
    return torch.cat([torch.zeros_like(ended[:1]), ended[:-1]])
