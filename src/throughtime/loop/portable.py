"""Cell, ragged xs -> ys and final state, with PyTorch's own operators: any cell, any operator, any device.

The cell itself is called, step by step, on the rows that still run. This is the definition of a run, without the
padding: rows stand longest first, so the rows that are left are a prefix that shrinks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from throughtime._errors import StateError
from throughtime._nested import Nested, Structure, flatten, leaves, leaves_as, map_leaves, unflatten
from throughtime.loop.portable_noise import CounterNoise

__all__ = ["PortableLoop", "join_rows"]

Step = Callable[[Nested, Nested, Nested], tuple[Nested, Nested]]


@dataclass(frozen=True)
class PortableLoop:
    """One run of `step(x, state, row_consts) -> (output, next_state)`.

    A step may write on the state it gets: outputs and the initial state are what they were.

    active: the number of rows that still run at each step, never growing.
    reset: bool [N] or None; where true, the row's state is `reset_state` before the step.
    noise: stands in for PyTorch's random operators. first_step: the number of this loop's first step.
    """

    step: Step
    active: Sequence[int]
    row_consts: Nested
    reset: Tensor | None = None
    reset_state: Nested = None
    noise: CounterNoise | None = None
    first_step: int = 0

    def run(self, xs: Nested, state: Nested) -> tuple[Nested, Nested]:
        """xs [N, ...] and the initial state [B, ...], longest row first -> (ys [N, ...], final state [B, ...])."""
        xs_by_step = self._split(xs)
        finished: list[Nested] = []
        outputs = _Outputs()
        writes = False
        row_consts, reset_state = self.row_consts, self.reset_state
        resets = self._resets()
        running = _rows((state, row_consts))
        for t, rows in enumerate(self.active):
            if rows < running:
                finished.append(map_leaves(lambda leaf: leaf[rows:], state))  # noqa: B023
                state, row_consts, reset_state = (_head(v, rows) for v in (state, row_consts, reset_state))
                running = rows
            if (mask := resets[t]) is not None:
                state = _put_back(mask, reset_state, state)
            if t == 0 or writes:
                state = map_leaves(torch.clone, state)
            given, before = state, _versions(state)
            output, state = self._step(t, rows, xs_by_step[t], state, row_consts)
            writes = writes or _versions(given) != before
            outputs.add(output)
        return outputs.joined(), join_rows([state, *reversed(finished)])

    def _step(self, t: int, rows: int, x: Nested, state: Nested, row_consts: Nested) -> tuple[Nested, Nested]:
        """One step. A cell that asks for no noise at its first step has none to replace, and pays for no mode."""
        noise, step = self.noise, self.first_step + t
        if noise is None or (noise.seed is None and step > 0):
            return self.step(x, state, row_consts)
        with noise.at(step, rows):
            return self.step(x, state, row_consts)

    def _split(self, xs: Nested) -> list[Nested]:
        flat, structure = flatten(xs)
        steps = zip(*(leaf.split(list(self.active)) for leaf in flat))
        return [unflatten(structure, step) for step in steps]

    def _resets(self) -> list[Tensor | None]:
        """The mask of each step; None where no row is put back, so that most steps pay nothing."""
        if self.reset is None:
            return [None] * len(self.active)
        masks = self.reset.split(list(self.active))
        needed = [bool(mask.any()) for mask in self.reset.cpu().split(list(self.active))]
        return [mask if need else None for mask, need in zip(masks, needed)]


class _Outputs:
    """The outputs of the steps, each as it was when its step returned it.

    A step that writes on its state gets copies of it from then on, so outputs that are its state stay as they are.
    What is written on nevertheless is an error. Where writing is not counted, outputs are copied at once.
    """

    def __init__(self) -> None:
        self.counted = not (torch.is_inference_mode_enabled() or torch._C._are_functorch_transforms_active())
        self.values: list[Nested] = []
        self.versions: list[list[int]] = []

    def add(self, output: Nested) -> None:
        self.values.append(output if self.counted else map_leaves(torch.clone, output))
        self.versions.append(_versions(output))

    def joined(self) -> Nested:
        for t, (value, version) in enumerate(zip(self.values, self.versions)):
            if self.counted and _versions(value) != version:
                raise StateError(
                    f"dynamic_rnn: what the cell returned as its output at step {t} was written on in place at a later "
                    f"step. Return a copy, output.clone(), or make new tensors instead of writing on old ones."
                )
        return join_rows(self.values)


def _versions(value: Nested) -> list[int]:
    """How often each leaf was written on; an inference tensor does not count, and is never written on elsewhere."""
    return [0 if leaf.is_inference() else leaf._version for leaf in leaves(value)]


def _rows(value: Nested) -> int:
    """The rows of a batch; 0 where nothing is kept per row, so that nothing need be cut."""
    flat, _ = flatten(value)
    return flat[0].shape[0] if flat else 0


def _head(value: Nested, rows: int) -> Nested:
    return map_leaves(lambda leaf: leaf[:rows], value) if value is not None else None


def _put_back(mask: Tensor, reset_state: Nested, state: Nested) -> Nested:
    def put_back(start: Tensor, leaf: Tensor) -> Tensor:
        return torch.where(mask.reshape(-1, *[1] * (leaf.dim() - 1)), start, leaf)

    return map_leaves(put_back, reset_state, state)


def join_rows(parts: list[Nested]) -> Nested:
    """Nested values of some rows each -> a new one of all rows."""
    if len(parts) == 1:
        return map_leaves(torch.clone, parts[0])
    structure: Structure = flatten(parts[0])[1]
    columns = zip(*(leaves_as(part, parts[0]) for part in parts), strict=True)
    return unflatten(structure, [torch.cat(column) for column in columns])
