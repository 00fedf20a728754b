"""Kernel, batch -> what a call keeps and computes, in bytes and operations: what memory policies choose by.

Counted is every array that a pass makes, at its full size: with large arrays, what the system sees is no less.
"""

import math
from typing import TYPE_CHECKING, NamedTuple

from throughtime.capture.graph import ROWS
from throughtime.loop.native.batch import Batch
from throughtime.loop.native.emit import PAIRS_AT_ONCE
from throughtime.loop.native.program import Buffer
from throughtime.loop.native.sums import STEPS_PER_SUM
from throughtime.loop.native.views import feature_shape
from throughtime.plan.memory import BLOCK, Costs, Work
from throughtime.plan.operators import VIEWS

if TYPE_CHECKING:
    from throughtime.loop.native.kernel import NativeKernel

__all__ = ["StepCosts", "costs_of"]

UNIFORM_BYTES, NORMAL_BYTES = 24, 40
"""Of one number that is drawn: arrays of int64 while it is mixed; of a normal one, the first draw in float64 too."""
NOISE_PAIR_BYTES = 48
"""Of one pair whose noise is drawn: its row and its step, in int64, while they are mixed."""
ROW_COPIES = 4
"""Of the state: at the start and the end of a pass, and its gradient."""
STEP_BYTES = 16
"""The rows and the first pair of each step."""


class StepCosts(NamedTuple):
    """Of one row: numbers of the outputs and of the state, floating-point operations."""

    outputs: int
    state: int
    flops: int

    @classmethod
    def of(cls, kernel: "NativeKernel") -> "StepCosts":
        return cls(
            sum(b.width for name, b in kernel.buffers("training").items() if name.startswith("ys:")),
            sum(math.prod(feature_shape(carry.shape)) for carry in kernel.plan.of_kind("carry")),
            2 * sum(w.k * w.n for w in kernel.program("training").weights.values()),
        )


def costs_of(kernel: "NativeKernel", batch: Batch, chunk: int) -> Costs:
    """Of a call that is to be differentiated."""
    size = kernel.lowered.element.itemsize
    step = kernel.step_costs

    def work(within: int) -> Work:
        rows = ROW_COPIES * int(batch.active.max(initial=0)) * step.state * size
        always = rows + batch.steps * STEP_BYTES + _once(kernel, len(batch.lengths))
        forward, backward = (_Pass(kernel, d, batch, c, within) for d, c in (("training", chunk), ("backward", BLOCK)))
        noise = max(forward.noise_bytes, backward.noise_bytes)
        return Work(always + noise, forward.bytes, backward.bytes + _sums(kernel, batch))

    return Costs(
        batch.offsets, batch.active, kernel.residual_bytes, step.outputs * size, step.state * size, step.flops, work
    )


def _once(kernel: "NativeKernel", rows: int) -> int:
    """What is computed once per call; views take no room."""
    made = (node for node in kernel.plan.once if node.op not in VIEWS)
    return sum(math.prod(rows if n == ROWS else int(n) for n in node.shape) * node.dtype.itemsize for node in made)


class _Pass:
    """What a direction works with, in ranges of so many steps."""

    def __init__(self, kernel: "NativeKernel", direction: str, batch: Batch, chunk: int, within: int) -> None:
        self.kernel, self.batch = kernel, batch
        whole, staged = (kernel.program(direction),), kernel.lowered.staged.get(direction)
        forms = {None: whole} if staged is None else {False: whole, True: staged}
        most = {few: batch.most_pairs(chunk, few, within) for few in forms}
        self.programs = [program for few, form in forms.items() if most[few] for program in form]
        self.room: dict[str, tuple[Buffer, int]] = {}
        """Buffers of a chunk, each with the entries that are used of it."""
        for few, form in forms.items():
            for buffer in (b for program in form for b in program.buffers.values() if b.local):
                before = self.room[buffer.name][1] if buffer.name in self.room else 0
                self.room[buffer.name] = buffer, max(before, most[few])

    @property
    def bytes(self) -> int:
        """Of the buffers of a chunk, packed weights and scratch."""
        kernel = self.kernel
        weights = {label: weight for program in self.programs for label, weight in program.weights.items()}
        packed = sum(map(kernel.packed_size, weights.values()))
        local = sum(count * b.width * kernel.lowered.dtype(b).itemsize for b, count in self.room.values())
        return local + (packed + self._scratch()) * kernel.lowered.element.itemsize

    def _scratch(self) -> int:
        by_pairs, by_rows = PAIRS_AT_ONCE * self.batch.threads, len(self.batch.lengths)
        return sum(
            b.width * (by_pairs if program.over == "pairs" else by_rows)
            for program in self.programs
            for b in program.buffers.values()
            if b.kind == "block"
        )

    @property
    def noise_bytes(self) -> int:
        """What drawing takes, one buffer after the other."""
        taken = [0]
        for k, noise in enumerate(self.kernel.plan.of_kind("noise")):
            if f"noise:{k}" in self.room:
                buffer, count = self.room[f"noise:{k}"]
                number = NORMAL_BYTES if noise.distribution == "normal" else UNIFORM_BYTES
                taken.append(count * (buffer.width * number + NOISE_PAIR_BYTES))
        return max(taken)


def _sums(kernel: "NativeKernel", batch: Batch) -> int:
    """What becomes the weights' gradients: a sum for each, and where it is not the only one, the total beside it."""
    pairs, rows = (
        sum(math.prod(int(n) for n in reduction.node.shape) for reduction in reductions)
        for reductions in (kernel.lowered.reductions, kernel.lowered.row_reductions)
    )
    sums = 2 * pairs if batch.steps > STEPS_PER_SUM else pairs
    return (sums + rows + kernel.sum_scratch["pairs"] * batch.threads) * kernel.lowered.element.itemsize
