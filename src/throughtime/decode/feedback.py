"""A cell, an embedding and an output layer -> the step that is fed with its own choice; and all that a call needs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from throughtime._nested import Nested, leaves
from throughtime._pipeline import Run, run
from throughtime._sequence import read_sequence
from throughtime._state import declares_state, fit_state, initial_row_consts, size_parameters
from throughtime._state import initial_state as start_of
from throughtime._types import Backend
from throughtime.decode.decoder import float_dtype, run_cell
from throughtime.decode.history import alignments_of, plain_output
from throughtime.decode.prompt import Prompts
from throughtime.decode.tokens import Embedding, check_logits

__all__ = ["Constraint", "Feedback", "Request", "SoFar", "prepare"]

Constraint = Callable[[Tensor, Tensor], Tensor]
CHUNK = 32


@dataclass(frozen=True)
class Feedback:
    """One step: token ids [B] and the state -> logits [B, V] and the next state."""

    cell: Any
    embedding: Embedding
    output_layer: Callable[[Tensor], Tensor] | None

    def __call__(self, ids: Tensor, state: Nested, row_consts: Nested) -> tuple[Tensor, Nested]:
        output, next_state = run_cell(self.cell, self.embedding(ids), state, row_consts)
        output = plain_output(output)
        return (output if self.output_layer is None else self.output_layer(output)), next_state


@dataclass(frozen=True)
class Request:
    """A call of `generate`, checked: the token to feed first, the state after the prompt, when to stop."""

    step: Feedback
    ids: Tensor
    state: Nested
    row_consts: Nested
    end_token: int | None
    max_steps: int | None
    constraint: Constraint | None
    alignments: bool

    @property
    def batch_size(self) -> int:
        return self.ids.shape[0]

    def logits(
        self, ids: Tensor, state: Nested, row_consts: Nested, so_far: "SoFar", rows: Tensor
    ) -> tuple[Tensor, Nested]:
        """One step, and the user's constraint on it."""
        logits, next_state = self.step(ids, state, row_consts)
        check_logits("generate", logits, ids.shape[0], self.end_token, self.step.embedding)
        if self.constraint is not None:
            logits = _constrain(self.constraint, so_far.ids, logits, rows)
        return logits, next_state

    def weights(self, state: Nested) -> Nested:
        """The attention weights of a step; () where they are not wanted."""
        if not self.alignments:
            return ()
        found = alignments_of(state)
        if not found:
            raise ValueError(
                "generate: alignments=True needs an attention cell, and the state holds no attention. "
                "Wrap the cell into an AttentionWrapper, or leave alignments out."
            )
        return found[0] if len(found) == 1 else found


class SoFar:
    """The tokens chosen so far, for a constraint; without one nothing is kept."""

    def __init__(self, wanted: bool, rows: int, device: torch.device) -> None:
        self._wanted, self._length = wanted, 0
        self._ids = torch.zeros(rows, 0, dtype=torch.long, device=device)

    @property
    def ids(self) -> Tensor:
        """[B, t]."""
        return self._ids[:, : self._length]

    def append(self, ids: Tensor) -> None:
        if not self._wanted:
            return
        if self._length == self._ids.shape[1]:
            room = self._ids.new_zeros(len(ids), max(16, self._length))
            self._ids = torch.cat([self._ids, room], 1)
        self._ids[:, self._length] = ids
        self._length += 1

    def select(self, index: Tensor) -> None:
        if self._wanted:
            self._ids = self._ids.index_select(0, index)


def prepare(
    step: Feedback,
    prompts: Prompts,
    initial_state: Nested,
    end_token: int | None,
    max_steps: int | None,
    constraint: Constraint | None,
    alignments: bool,
    backend: Backend,
) -> Request:
    """Find the state to start from, and run the prompts through the cell, all tokens but the last."""
    cell, rows = step.cell, len(prompts.lengths)
    first = step.embedding(prompts.ids[:, 0])
    dtype, device = float_dtype(cell, first, initial_state), leaves(first)[0].device
    own = None
    if initial_state is None or declares_state(cell):
        own = start_of(cell, first, rows, dtype, device)
    state = fit_state(own if initial_state is None else initial_state, own, rows, "initial_state")
    row_consts = initial_row_consts(cell, rows, dtype, device)
    if rows and prompts.lengths.max() > 1:
        state = _run_prompts(step, prompts, state, row_consts, backend)
    return Request(step, prompts.last, state, row_consts, end_token, max_steps, constraint, alignments)


def _run_prompts(step: Feedback, prompts: Prompts, state: Nested, row_consts: Nested, backend: Backend) -> Nested:
    ragged = read_sequence(step.embedding(prompts.ids[:, :-1]), prompts.lengths - np.int64(1))
    size_parameters(step.cell, ragged.xs, state, row_consts)
    request = Run(
        cell=step.cell,
        ragged=ragged,
        state=ragged.sort_rows(state),
        row_consts=ragged.sort_rows(row_consts),
        reset=None,
        reset_state=None,
        backend=backend,
        chunk=CHUNK,
    )
    return ragged.unsort_rows(run(request)[1])


def _constrain(constraint: Constraint, so_far: Tensor, logits: Tensor, rows: Tensor) -> Tensor:
    changed = constraint(so_far, logits)
    if not isinstance(changed, Tensor) or changed.shape != logits.shape:
        got = list(changed.shape) if isinstance(changed, Tensor) else f"a {type(changed).__name__}"
        raise ValueError(
            f"generate: constraint(ids_so_far, logits) must return logits of the shape it gets, {list(logits.shape)}; "
            f"got {got}. Put minus infinity where a token is forbidden."
        )
    nothing_left = (changed == -torch.inf).all(-1)
    if nothing_left.any():
        place = int(nothing_left.nonzero()[0])
        raise ValueError(
            f"generate: the constraint forbids every token, at step {so_far.shape[1]} of row {int(rows[place])}, after "
            f"{so_far[place].tolist()}. Allow the end token there."
        )
    return changed
