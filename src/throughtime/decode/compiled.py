"""A request for the most probable tokens -> its steps, with the feedback inside the compiled loop.

The step that is compiled takes its own choice as part of its state: look up, cell, output layer, argmax, log p. It runs
a few steps at a time; then rows that have said their end token go. Token ids travel as floating-point numbers, which
hold them exactly (a vocabulary has fewer than 2^24 tokens).
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from throughtime._nested import Nested, leaves, map_leaves
from throughtime._pipeline import Compiled, Run, compiled_loop, run
from throughtime._sequence import read_sequence
from throughtime.decode.feedback import CHUNK, Feedback, Request
from throughtime.decode.single import Step
from throughtime.decode.tokens import check_logits

__all__ = ["greedy_steps"]

FIRST_STEPS, MOST_STEPS = 8, 32


class GreedyStep(nn.Module):
    """(nothing, (token, state)) -> ((token, log p), (token, state))."""

    def __init__(self, step: Feedback) -> None:
        super().__init__()
        self.step = step
        parts = (step.cell, step.output_layer, step.embedding.look_up)
        self.parts = nn.ModuleList([part for part in parts if isinstance(part, nn.Module)])

    def forward(self, x: Tensor, state: Nested, row_consts: Nested = ()) -> Any:
        token, inner = state
        logits, next_inner = self.step(token.squeeze(-1).to(torch.long), inner, row_consts)
        best = logits.amax(-1, keepdim=True)
        log_p = -torch.log(torch.exp(logits - best).sum(-1, keepdim=True))
        choice = logits.argmax(-1, keepdim=True).to(token.dtype)
        return (choice, log_p), (choice, next_inner)


@lru_cache(maxsize=16)
def _greedy_step(cell: Any, embed: Any, layer: Any, step: "_Once") -> GreedyStep:
    """The same object for the same parts, so that it is compiled once."""
    return GreedyStep(step.value)


class _Once:
    """Rides along a cache key without being part of it."""

    def __init__(self, value: Feedback) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Once)

    def __hash__(self) -> int:
        return 0


def greedy_steps(request: Request, backend: str) -> Iterator[Step] | None:
    """None where the compiled loop cannot run it: a constraint, alignments, or a step that is refused."""
    if backend == "portable" or request.constraint is not None or request.alignments or not request.batch_size:
        return None
    embedding, layer = request.step.embedding, request.step.output_layer
    first = _first_logits(request)
    if first.shape[1] >= 2**24 or not first.is_floating_point():
        return None
    step = _greedy_step(request.step.cell, embedding.given, layer, _Once(request.step))
    tokens = request.ids.to(first.dtype).unsqueeze(-1)
    loop = _Loop(step, backend)
    if not loop.fits((tokens, request.state), request.row_consts):
        return None
    return loop.steps(request, tokens)


def _first_logits(request: Request) -> Tensor:
    """One step in PyTorch, for the checks of what the layer gives."""
    logits, _ = request.step(request.ids, request.state, request.row_consts)
    check_logits("generate", logits, request.batch_size, request.end_token, request.step.embedding)
    return logits


class _Loop:
    def __init__(self, step: GreedyStep, backend: str) -> None:
        self.step, self.backend = step, backend

    def _request(self, state: Nested, row_consts: Nested, steps: int) -> Run:
        token = leaves(state)[0]
        ragged = read_sequence(token.new_zeros(len(token), steps, 1))
        return Run(
            cell=self.step,
            ragged=ragged,
            state=state,
            row_consts=row_consts,
            reset=None,
            reset_state=None,
            backend="native",
            chunk=CHUNK,
        )

    def fits(self, state: Nested, row_consts: Nested) -> bool:
        return isinstance(compiled_loop(self._request(state, row_consts, 1)), Compiled)

    @torch.no_grad()
    def steps(self, request: Request, tokens: Tensor) -> Iterator[Step]:
        rows = torch.arange(request.batch_size)
        state, row_consts = (tokens, request.state), request.row_consts
        scores = tokens.new_zeros(len(rows))
        time, count = 0, FIRST_STEPS
        while len(rows) and time != request.max_steps:
            if request.max_steps is not None:
                count = min(count, request.max_steps - time)
            (ids, log_p), state = run(self._request(state, row_consts, count))
            ids = ids.view(count, len(rows)).long()
            sums = scores + log_p.view(count, len(rows)).cumsum(0)
            ended = _ended(ids, request.end_token)
            yield from _running_steps(rows, ids, sums, ended)
            time += count
            if not bool(ended[-1].any()):
                scores, count = sums[-1], min(2 * count, MOST_STEPS)
                continue
            keep = (~ended[-1]).nonzero()[:, 0]
            rows, scores, count = rows[keep], sums[-1][keep], FIRST_STEPS
            state, row_consts = map_leaves(lambda leaf: leaf.index_select(0, keep), (state, row_consts))  # noqa: B023


def _ended(ids: Tensor, end_token: int | None) -> Tensor:
    """[t, A]: whether a row has said its end token at step t or before."""
    return (ids == (-1 if end_token is None else end_token)).cummax(0).values


def _running_steps(rows: Tensor, ids: Tensor, sums: Tensor, ended: Tensor) -> Iterator[Step]:
    """The steps of a chunk; a row has none after its end token."""
    before = torch.cat([torch.zeros_like(ended[:1]), ended[:-1]])
    whole = (~before).all(1).tolist()
    for t, everyone in enumerate(whole):
        running = slice(None) if everyone else ~before[t]
        if everyone or bool((~before[t]).any()):
            yield Step(rows[running], ids[t][running], sums[t][running], ())
