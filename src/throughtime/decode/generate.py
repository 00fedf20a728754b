"""A cell that is fed with its own outputs -> token ids until each row has said its end token. The front door."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from throughtime._nested import Nested, flatten, leaves, unflatten
from throughtime._types import Backend
from throughtime.decode.beams import BeamRules
from throughtime.decode.compiled import greedy_steps, natively
from throughtime.decode.feedback import Constraint, Feedback, Request, prepare
from throughtime.decode.prompt import read_prompts
from throughtime.decode.search import Hypotheses, search
from throughtime.decode.single import Steps, choose_by, steps_of
from throughtime.decode.strategies import Beam, Greedy, Sample, Strategy
from throughtime.decode.tokens import check_callable, check_end_token, read_embedding, read_end_token

__all__ = ["Generation", "StreamedStep", "generate", "generate_stream"]


@dataclass(frozen=True)
class Generation:
    """What `generate` returns.

    ids: int64 [B, T], the tokens chosen, the prompt left out; filled up with the end token. Best hypothesis of a beam.
    lengths: [B], the end token counted.
    scores: [B], log p of the tokens; with `Beam` after its penalties.
    alignments: [B, T, M], 0 past the end; None where they are not wanted. A tuple for several mechanisms.
    beams: all hypotheses of a beam search, else None.
    """

    ids: Tensor
    lengths: Tensor
    scores: Tensor
    alignments: Nested = None
    beams: Hypotheses | None = None


class StreamedStep(NamedTuple):
    """One step of the rows that still run: their numbers in the batch, their tokens, log p of their tokens so far."""

    rows: Tensor
    ids: Tensor
    scores: Tensor


def generate(
    cell: Any,
    start: Any,
    eos: Any,
    *,
    embed: Any = None,
    output_layer: Callable[[Tensor], Tensor] | None = None,
    strategy: Strategy = Greedy(),  # noqa: B008 - a frozen value
    max_steps: int | None = None,
    constraint: Constraint | None = None,
    initial_state: Nested = None,
    start_length: Any = None,
    alignments: bool = False,
    backend: Backend = "auto",
) -> Generation:
    """Feed a cell with its own outputs, until each row has said `eos`.

    Means, for each row of the batch::

        for token in prompt[:-1]:
            _, state = cell(embed(token), state)
        token = prompt[-1]
        while token != eos and steps < max_steps:
            output, state = cell(embed(token), state)
            token = strategy(constraint(ids_so_far, output_layer(output)))

    A row that has said `eos` costs nothing more, nor does a beam. A row's result depends on no other row. Gradients are
    not kept: to differentiate, score the ids that came out by teacher forcing (`dynamic_rnn` and `sequence_loss`).

    Args:
        cell: any cell.
        start: what is fed before the first choice: a token per row [B]; one token for all rows of `initial_state`;
            prompts of any lengths, a list of lists of tokens or [B, P] with `start_length`. They run through the cell
            as in `dynamic_rnn`.
        eos: the token that ends a row; None for none, `max_steps` ends all rows then.
        embed: a table [V, E], an nn.Embedding, or a function of ids [...]; by default the cell is given the ids.
        output_layer: a function of the cell's output to logits; by default the output is logits.
        strategy: `Greedy()`, `Sample(...)` or `Beam(...)`.
        max_steps: of each row, the end token counted; by default no limit.
        constraint: (ids_so_far [A, t], logits [A, V]) -> logits, minus infinity where a token is forbidden, for rows or
            beams that run; ids_so_far are the tokens chosen, the prompt left out. Scores are those of what is left.
        initial_state: of the cell, before the prompt; by default its own.
        start_length: the length of each prompt [B, P], by default P.
        alignments: whether to return the weights of an attention cell.
        backend: what runs the prompts, as in `dynamic_rnn`, and greedy decoding, which is compiled as a whole.

    Returns:
        a `Generation`.

    Raises:
        ValueError: a prompt that is empty, ids out of range, an end token outside the vocabulary, neither an end token
            nor a limit, a constraint that forbids everything.

    >>> import torch, throughtime
    >>> cell, table, layer = throughtime.GRUCell(8), torch.randn(10, 4), torch.nn.Linear(8, 10)
    >>> result = throughtime.generate(cell, [1, 1], 0, embed=table, output_layer=layer, max_steps=5)
    >>> result.ids.shape[0], result.lengths.shape
    (2, torch.Size([2]))
    """
    request = _request(
        cell, start, eos, embed, output_layer, max_steps, constraint, initial_state, start_length, alignments, backend
    )
    if isinstance(strategy, Beam):
        rules = BeamRules(strategy.width, request.end_token, strategy.length_penalty, strategy.coverage_penalty)
        return _best(search(natively(request, backend), rules))
    return _collect(request, list(_steps(request, strategy, backend)))


def generate_stream(
    cell: Any,
    start: Any,
    eos: Any,
    *,
    embed: Any = None,
    output_layer: Callable[[Tensor], Tensor] | None = None,
    strategy: Greedy | Sample = Greedy(),  # noqa: B008 - a frozen value
    max_steps: int | None = None,
    constraint: Constraint | None = None,
    initial_state: Nested = None,
    start_length: Any = None,
    backend: Backend = "auto",
) -> Iterator[StreamedStep]:
    """The tokens of `generate` as they are chosen, one step after the other.

    Arguments and errors are those of `generate`, and what is wrong is said at the call. A beam search has no tokens
    before its end, so it cannot be streamed.

    >>> import torch, throughtime
    >>> cell, table, layer = throughtime.GRUCell(8), torch.randn(10, 4), torch.nn.Linear(8, 10)
    >>> steps = throughtime.generate_stream(cell, [1], None, embed=table, output_layer=layer, max_steps=3)
    >>> len([int(ids[0]) for rows, ids, scores in steps])
    3
    """
    if isinstance(strategy, Beam):
        raise ValueError("generate_stream: a beam search has no tokens before its end. Use Greedy() or Sample().")
    request = _request(
        cell, start, eos, embed, output_layer, max_steps, constraint, initial_state, start_length, False, backend
    )
    steps = _steps(request, strategy, backend)
    return (step for some in steps for step in _one_by_one(some))


def _one_by_one(steps: Steps) -> Iterator[StreamedStep]:
    for t, (ids, scores) in enumerate(zip(steps.ids, steps.scores)):
        if steps.running is None:
            yield StreamedStep(steps.rows, ids, scores)
        elif bool(steps.running[t].any()):
            running = steps.running[t]
            yield StreamedStep(steps.rows[running], ids[running], scores[running])


@torch.no_grad()
def _steps(request: Request, strategy: Any, backend: Backend) -> Iterator[Steps]:
    """Compiled where that can be, else step by step."""
    compiled = greedy_steps(request, backend) if isinstance(_checked(strategy), Greedy) else None
    if compiled is not None:
        return compiled
    return steps_of(natively(request, backend), choose_by(strategy, request.batch_size, request.ids.device))


@torch.no_grad()
def _request(
    cell: Any,
    start: Any,
    eos: Any,
    embed: Any,
    output_layer: Any,
    max_steps: int | None,
    constraint: Any,
    initial_state: Nested,
    start_length: Any,
    alignments: bool,
    backend: Backend,
) -> Request:
    check_callable("generate", cell=cell, optional={"output_layer": output_layer, "constraint": constraint})
    end_token = None if eos is None else read_end_token("generate", eos)
    _check_limit(end_token, max_steps)
    check_end_token("generate", end_token, output_layer)
    embedding = read_embedding("generate", embed)
    prompts = read_prompts(start, start_length, _rows_of(initial_state), embedding)
    step = Feedback(cell, embedding, output_layer)
    return prepare(step, prompts, initial_state, end_token, max_steps, constraint, alignments, backend)


def _rows_of(state: Nested) -> int | None:
    first = next(iter(leaves(state)), None)
    return first.shape[0] if isinstance(first, Tensor) and first.dim() else None


def _check_limit(end_token: int | None, max_steps: Any) -> None:
    if max_steps is None:
        if end_token is None:
            raise ValueError("generate: without an end token it never ends. Pass eos=, or max_steps=.")
    elif isinstance(max_steps, bool) or not isinstance(max_steps, int) or max_steps < 1:
        raise ValueError(f"generate: max_steps must be a whole number of at least 1, got {max_steps!r}.")


def _checked(strategy: Any) -> Greedy | Sample:
    if not isinstance(strategy, (Greedy, Sample)):
        raise TypeError(
            f"generate: strategy must be Greedy(), Sample(...) or Beam(...), got {strategy!r}. "
            f"Pass a value, not the class."
        )
    return strategy


def _collect(request: Request, found: list[Steps]) -> Generation:
    """The steps of the rows that ran -> one rectangle."""
    rows, device = request.batch_size, request.ids.device
    counts = [count for steps in found for count in steps.counts()]
    if not counts:
        ids, lengths, scores = torch.zeros(rows, 0, dtype=torch.long, device=device), request.ids, request.ids.double()
        return Generation(ids, lengths, scores)
    of_rows = torch.cat([steps.real(steps.rows.expand(len(steps.ids), -1)) for steps in found])
    times = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).to(device)

    def rectangle(parts: Iterable[Tensor], fill: float) -> Tensor:
        real = torch.cat([steps.real(part) for steps, part in zip(found, parts)])
        return real.new_full((rows, len(counts), *real.shape[1:]), fill).index_put_((of_rows, times), real)

    ids = rectangle([steps.ids for steps in found], request.end_token or 0)
    lengths = torch.bincount(of_rows, minlength=rows)
    scores = rectangle([steps.scores for steps in found], 0.0).gather(1, lengths[:, None] - 1)[:, 0]
    structure = flatten(found[0].alignments)[1]
    columns = zip(*(leaves(steps.alignments) for steps in found))
    weights = [rectangle(column, 0.0) for column in columns]
    return Generation(ids, lengths, scores, unflatten(structure, weights) if weights else None)


def _best(found: Hypotheses) -> Generation:
    alignments = None
    if found.alignments is not None:
        flat, structure = flatten(found.alignments)
        alignments = unflatten(structure, [leaf[:, 0] for leaf in flat])
    return Generation(found.ids[:, 0], found.lengths[:, 0], found.scores[:, 0], alignments, found)
