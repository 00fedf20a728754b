"""A request -> tokens step by step, one hypothesis a row. A row that has said its end token costs nothing more."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from throughtime._nested import Nested, map_leaves
from throughtime.decode.feedback import Request, SoFar
from throughtime.decode.noise import Noise
from throughtime.decode.sampling import draw
from throughtime.decode.strategies import Greedy, Sample

__all__ = ["Choose", "Steps", "choose_by", "steps_of"]

Choose = Callable[[Tensor, int, Tensor], Tensor]


class Steps(NamedTuple):
    """Steps of the rows that run at the first of them.

    rows: [A], their numbers in the batch. (Not in order, once a row has ended.)
    ids: [n, A], the tokens taken.
    scores: [n, A], the log-probabilities of their tokens so far, summed.
    alignments: [n, A, M], () where they are not wanted.
    running: [n, A], false once a row has ended; None where all run to the last step.
    """

    rows: Tensor
    ids: Tensor
    scores: Tensor
    alignments: Nested = ()
    running: Tensor | None = None

    def real(self, value: Tensor) -> Tensor:
        """What belongs to a row that runs, step by step: [n, A, ...] -> [N, ...]."""
        return value.flatten(0, 1) if self.running is None else value[self.running]

    def counts(self) -> list[int]:
        """The rows of each step that has any."""
        if self.running is None:
            return [len(self.rows)] * len(self.ids)
        return [count for count in self.running.sum(1).tolist() if count]


def choose_by(strategy: Greedy | Sample, batch_size: int, device: torch.device) -> Choose:
    """(logits [A, V], time, rows [A]) -> ids [A]."""
    if isinstance(strategy, Greedy):
        return lambda logits, time, rows: logits.argmax(-1)
    noise = Noise(strategy.seed, batch_size, device)
    options = (strategy.temperature, strategy.top_k, strategy.top_p)
    return lambda logits, time, rows: draw(logits, noise.uniform(time, rows), *options)


@torch.no_grad()
def steps_of(request: Request, choose: Choose) -> Iterator[Steps]:
    ids, state = request.ids, request.state
    rows = torch.arange(request.batch_size, device=ids.device)
    consts = _Consts(request.row_consts)
    so_far = SoFar(request.constraint is not None, len(rows), ids.device)
    scores: Tensor | None = None
    time = 0
    while len(rows) and time != request.max_steps:
        logits, state = request.logits(ids, state, consts.value, so_far, rows)
        ids = choose(logits, time, rows)
        surprise = F.cross_entropy(logits, ids, reduction="none")
        scores = -surprise if scores is None else scores - surprise
        so_far.append(ids)
        weights = map_leaves(lambda leaf: leaf.unsqueeze(0), request.weights(state))
        yield Steps(rows, ids.unsqueeze(0), scores.unsqueeze(0), weights)
        time += 1
        running = None if request.end_token is None else ids != request.end_token
        if running is None or bool(running.all()):
            continue
        moves = _close_ranks(running)
        rows, ids, scores, state = _select((rows, ids, scores, state), moves.index)
        so_far.select(moves.index)
        consts.apply(moves)


class _Moves(NamedTuple):
    """index: where the row at each place comes from. holes, movers: the places that change, and from where."""

    index: Tensor
    holes: Tensor
    movers: Tensor


def _close_ranks(running: Tensor) -> _Moves:
    """The running rows to the front: the last ones into the holes, so that as few rows move as have ended."""
    left = int(running.sum())
    holes = (~running[:left]).nonzero()[:, 0]
    movers = running[left:].nonzero()[:, 0] + left
    index = torch.arange(left, device=running.device)
    index[holes] = movers
    return _Moves(index, holes, movers)


class _Consts:
    """The constants of the rows that still run. They may be large (a memory), so only the rows that move are copied."""

    def __init__(self, value: Nested) -> None:
        self.value = value
        self._owned = False

    def apply(self, moves: _Moves) -> None:
        if not self._owned:
            self._owned, self.value = True, _select(self.value, moves.index)
        else:
            self.value = map_leaves(lambda leaf: _move(leaf, moves), self.value)


def _move(leaf: Tensor, moves: _Moves) -> Tensor:
    leaf[moves.holes] = leaf[moves.movers]
    return leaf[: len(moves.index)]


def _select(value: Nested, index: Tensor) -> Nested:
    return map_leaves(lambda leaf: leaf.index_select(0, index), value)
