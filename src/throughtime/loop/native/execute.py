"""Schedule, bound call -> outputs and gradients. The forward pass and the backward pass, action by action."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from throughtime.loop.native.batch import Bound, Located
from throughtime.loop.native.run import Walker
from throughtime.loop.native.sums import Sums
from throughtime.loop.spill import SpillFile
from throughtime.plan.memory import BLOCK, Action, Schedule, Spill

if TYPE_CHECKING:
    from throughtime.loop.native.kernel import NativeKernel

__all__ = ["Kept", "Stepper", "go_back", "go_forward"]

Residuals = dict[str, Located]
State = dict[str, Tensor]


@dataclass
class Kept:
    """What the forward pass leaves: residuals of ranges of steps by first step, and the states at marks."""

    ys: dict[str, Tensor]
    residuals: dict[int, Residuals] = field(default_factory=dict)
    marks: dict[int, State] = field(default_factory=dict)
    spill: SpillFile | None = None

    def tensors(self) -> list[Tensor]:
        """Everything but the outputs, for autograd to look after."""
        found = [located.tensor for residuals in self.residuals.values() for located in residuals.values()]
        return found + [leaf for mark in self.marks.values() for leaf in mark.values()]

    def with_tensors(self, ys: dict[str, Tensor], tensors: Sequence[Tensor]) -> "Kept":
        """The same with these tensors in place of its own."""
        rest = iter(tensors)
        residuals = {
            start: {name: Located(next(rest), located.first) for name, located in residuals.items()}
            for start, residuals in self.residuals.items()
        }
        marks = {t: {name: next(rest) for name in mark} for t, mark in self.marks.items()}
        return Kept(ys, residuals, marks, self.spill)

    def without_tensors(self) -> "Kept":
        """Only the places, so that autograd alone holds the tensors."""
        empty = torch.empty(0)
        return self.with_tensors(dict.fromkeys(self.ys, empty), [empty] * len(self.tensors()))


class _Pass:
    """Steps forwards, with the state in place; and the room of their residuals, which goes from segment to segment.

    Fresh memory costs a fault for every page.
    """

    def __init__(
        self, kernel: "NativeKernel", bound: Bound, state: State, kept: Kept, chunk: int, actions: Sequence[Action]
    ) -> None:
        self.kernel, self.bound, self.state, self.kept, self.chunk = kernel, bound, state, kept, chunk
        self.walkers: dict[str, Walker] = {}
        held = (bound.batch.pairs_of(a.start, a.stop) for a in actions if a.keep or a.kind == "load")
        self.most_pairs = max(held, default=0)
        self.spare: Residuals = {}
        self.written: Residuals = {}

    def walker(self, direction: str) -> Walker:
        if direction not in self.walkers:
            self.walkers[direction] = Walker(self.kernel, direction, self.bound, self.state, self.chunk)
        return self.walkers[direction]

    def mark(self, t: int) -> None:
        rows = int(self.bound.batch.active[t])
        self.kept.marks[t] = {name: leaf[:rows].clone() for name, leaf in self.state.items()}

    def restore(self, t: int) -> None:
        for name, leaf in self.kept.marks[t].items():
            self.state[name][: len(leaf)] = leaf

    def run(self, action: Action, ys: Residuals | None) -> None:
        """`ys` is where outputs go; without it they go with the residuals, or nowhere."""
        batch = self.bound.batch
        direction = "training" if action.keep else "inference"
        prefixes = ("saved:", "trace:") if ys is not None else ("saved:", "trace:", "ys:")
        for start, stop in self._ranges(action):
            count = batch.pairs_of(start, stop)
            first = int(batch.offsets[start])
            if action.keep:
                buffers = self._room(prefixes)
            else:
                buffers = self.kernel.empty(direction, prefixes, count, self.bound.empty)
            residuals = {name: Located(tensor, first) for name, tensor in buffers.items()}
            if action.keep:
                self.kept.residuals[start] = residuals
            for low, high in batch.windows(self.chunk, start, stop):
                self.walker(direction).steps(low, high, {**residuals, **(ys or {})}, 0, {})

    def save(self, action: Action) -> None:
        """While a segment is written, the next one runs in the room of the one before."""
        assert self.kept.spill is not None
        residuals = self.kept.residuals.pop(action.start)
        count = self.bound.batch.pairs_of(action.start, action.stop)
        self.kept.spill.write(action.start, {name: located.tensor[:count] for name, located in residuals.items()})
        self.spare, self.written = self.written, residuals

    def load(self, action: Action, later: Sequence[Action]) -> None:
        """Read a range, and begin to read the one that is next."""
        spill = self.kept.spill
        assert spill is not None
        tensors = spill.read(action.start, self._room)
        first = int(self.bound.batch.offsets[action.start])
        self.kept.residuals[action.start] = {name: Located(tensor, first) for name, tensor in tensors.items()}
        following = next((a for a in later if a.kind == "load"), None)
        if following is not None:
            spill.prefetch(following.start, self._room)

    def free(self, action: Action) -> None:
        self.spare = self.kept.residuals.pop(action.start)
        del self.kept.marks[action.start]

    def _room(self, prefixes: tuple[str, ...] = ("saved:", "trace:")) -> dict[str, Tensor]:
        """For any segment of this pass: that of one that is done with, or fresh."""
        spare, self.spare = self.spare, {}
        held = {name: located.tensor for name, located in spare.items()}
        return held or self.kernel.empty("training", prefixes, self.most_pairs, self.bound.empty)

    def _ranges(self, action: Action) -> list[tuple[int, int]]:
        """Outputs that nobody keeps need room for a chunk only."""
        if action.keep:
            return [(action.start, action.stop)]
        return self.bound.batch.windows(self.chunk, action.start, action.stop)


class Stepper:
    """A forward pass that goes as far as it is told, and keeps nothing for a backward pass."""

    def __init__(self, kernel: "NativeKernel", bound: Bound, carry: State, chunk: int) -> None:
        self.kept = Kept(kernel.empty("inference", ("ys:",), bound.batch.pairs))
        self.state = {name: leaf.clone() for name, leaf in carry.items()}
        self._batch, self._chunk, self._at = bound.batch, chunk, 0
        self._walker = Walker(kernel, "inference", bound, self.state, chunk)
        self._ys = {name: Located(tensor) for name, tensor in self.kept.ys.items()}

    @property
    def steps_left(self) -> int:
        return self._batch.steps - self._at

    def advance(self, steps: int) -> State:
        """The outputs of the next steps."""
        start, stop = self._at, self._at + steps
        for low, high in self._batch.windows(self._chunk, start, stop):
            self._walker.steps(low, high, self._ys, 0, {})
        self._at = stop
        first, last = (int(self._batch.offsets[t]) for t in (start, stop))
        return {name: tensor[first:last] for name, tensor in self.kept.ys.items()}


def go_forward(
    kernel: "NativeKernel", bound: Bound, carry: State, schedule: Schedule | None, chunk: int
) -> tuple[State, Kept]:
    """The final state and what is kept; without a schedule nothing is. Outputs are in `kept.ys`."""
    batch = bound.batch
    if schedule is None:
        stepper = Stepper(kernel, bound, carry, chunk)
        stepper.advance(batch.steps)
        return stepper.state, stepper.kept
    kept = Kept(kernel.empty("training", ("ys:",), batch.pairs))
    ys = {name: Located(tensor) for name, tensor in kept.ys.items()}
    run = _Pass(kernel, bound, {name: leaf.clone() for name, leaf in carry.items()}, kept, chunk, schedule.forward)
    kept.marks[0] = carry
    if isinstance(schedule.policy, Spill):
        kept.spill = SpillFile(batch.pairs * kernel.residual_bytes, schedule.policy.directory)
    for action in schedule.forward:
        if action.kind == "mark":
            run.mark(action.start)
        elif action.kind == "run":
            run.run(action, ys)
        else:
            run.save(action)
    return run.state, kept


def go_back(
    kernel: "NativeKernel",
    bound: Bound,
    kept: Kept,
    schedule: Schedule,
    located: Mapping[str, Located],
    rows: State,
    chunk: int,
) -> dict[str, Tensor]:
    """Walks the schedule's backward actions; returns the totals of what contracts the pairs.

    located: cotangents of outputs and gradients of inputs, [N, ...]. rows: gradients of the state, in place.
    """
    carry = {name: torch.empty_like(leaf) for name, leaf in kept.marks[0].items()}
    run = _Pass(kernel, bound, carry, kept, chunk, schedule.backward)
    backward = _Backward(kernel, bound, kept, located, rows)
    for place, action in enumerate(schedule.backward):
        if action.kind == "restore":
            run.restore(action.start)
        elif action.kind == "mark":
            run.mark(action.start)
        elif action.kind == "run":
            run.run(action, None)
        elif action.kind == "load":
            run.load(action, schedule.backward[place + 1 :])
        elif action.kind == "back":
            backward.go(action.start, action.stop)
        else:
            run.free(action)
    return backward.sums.totals


class _Backward:
    """Goes back over ranges of steps, last first; sums what contracts the pairs in blocks of absolute time."""

    def __init__(
        self, kernel: "NativeKernel", bound: Bound, kept: Kept, located: Mapping[str, Located], rows: State
    ) -> None:
        self.kernel, self.bound, self.kept, self.located = kernel, bound, kept, located
        self.sums = Sums(kernel, bound)
        still = {f"still:{name.removeprefix('carry:')}": leaf for name, leaf in kept.marks[0].items()}
        self.walker = Walker(kernel, "backward", bound, {**still, **rows}, BLOCK)

    def go(self, start: int, stop: int) -> None:
        batch = self.bound.batch
        ys = {name: Located(tensor) for name, tensor in self.kept.ys.items() if len(tensor)}
        pairs = {**ys, **self.kept.residuals[start], **self.located}
        pairs |= {f"previous:{i}": pairs[source] for i, source in self.kernel.traces.items()}
        mark = self.kept.marks[start]
        initial = {f"previous:{i}": mark[f"carry:{i}"] for i in self.kernel.traces}
        for low, high in reversed(batch.windows(BLOCK, start, stop)):
            local = self.walker.steps(low, high, pairs, start, initial)
            self.sums.add_steps(low, high, batch, {**pairs, **local})
