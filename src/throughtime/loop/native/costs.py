"""Kernel, batch -> what a call keeps and computes, in bytes and operations: what memory policies choose by.

Counted is every array that a pass makes, at its full size: with large arrays, what the system sees is no less.
"""

import math
from typing import TYPE_CHECKING

from throughtime.loop.native.batch import Batch
from throughtime.loop.native.emit import PAIRS_AT_ONCE
from throughtime.loop.native.gemm import outer_scratch, packed_size
from throughtime.loop.native.program import Buffer, Program
from throughtime.loop.native.views import feature_shape
from throughtime.plan.memory import BLOCK, Costs
from throughtime.plan.operators import VIEWS

if TYPE_CHECKING:
    from throughtime.loop.native.kernel import NativeKernel

__all__ = ["costs_of"]

UNIFORM_BYTES, NORMAL_BYTES = 24, 40
"""Of one number that is drawn: arrays of int64 while it is mixed; of a normal one, the first draw in float64 too."""
NOISE_PAIR_BYTES = 48
"""Of one pair whose noise is drawn: its row and its step, in int64, while they are mixed."""
ROW_COPIES = 4
"""Of the state: at the start and the end of a pass, and its gradient."""
STEP_BYTES = 16
"""The rows and the first pair of each step."""


def costs_of(kernel: "NativeKernel", batch: Batch, chunk: int) -> Costs:
    """Of a call that is to be differentiated."""
    size = kernel.lowered.element.itemsize
    outputs = sum(b.width for name, b in kernel.buffers("training").items() if name.startswith("ys:"))
    state = sum(math.prod(feature_shape(carry.shape)) for carry in kernel.plan.of_kind("carry"))
    flops = 2 * sum(k * n for k, n in kernel.program("training").weights.values())
    call = ROW_COPIES * int(batch.active.max(initial=0)) * state * size + batch.steps * STEP_BYTES + _once(kernel)
    return Costs(
        batch.offsets,
        batch.active,
        kernel.residual_bytes,
        outputs * size,
        state * size,
        flops,
        _work(kernel, "training", batch, chunk) + call,
        _work(kernel, "backward", batch, BLOCK) + _sums(kernel, batch.threads) + call,
    )


def _once(kernel: "NativeKernel") -> int:
    """What is computed once per call; views take no room."""
    made = (node for node in kernel.plan.once if node.op not in VIEWS)
    return sum(math.prod(int(n) for n in node.shape) * node.dtype.itemsize for node in made)


def _work(kernel: "NativeKernel", direction: str, batch: Batch, chunk: int) -> int:
    """Buffers of a chunk and packed weights."""
    forms = _forms(kernel, direction, batch)
    programs = [program for form, _ in forms for program in form]
    weights = {name: shape for program in programs for name, shape in program.weights.items()}
    packed = sum(packed_size(k, n, kernel.target, kernel.element) for k, n in weights.values())
    scratch = sum(
        b.width * (PAIRS_AT_ONCE * batch.threads if program.over == "pairs" else len(batch.lengths))
        for program in programs
        for b in program.buffers.values()
        if b.kind == "block"
    )
    room = _room(forms, batch, chunk)
    local = sum(count * b.width * kernel.lowered.dtype(b).itemsize for b, count in room.values())
    return local + _noise(kernel, room) + (packed + scratch) * kernel.lowered.element.itemsize


def _forms(kernel: "NativeKernel", direction: str, batch: Batch) -> list[tuple[tuple[Program, ...], int]]:
    """The forms of the direction that this batch runs, each with the most rows that it runs with."""
    whole, staged = (kernel.program(direction),), kernel.lowered.staged.get(direction)
    if staged is None:
        return [(whole, int(batch.active.max(initial=0)))]
    forms = [(whole, batch.most_rows(few=False)), (staged, batch.most_rows(few=True))]
    return [(form, rows) for form, rows in forms if rows]


def _room(forms: list[tuple[tuple[Program, ...], int]], batch: Batch, chunk: int) -> dict[str, tuple[Buffer, int]]:
    """Buffers of a chunk, each with the entries that are used of it."""
    used: dict[str, tuple[Buffer, int]] = {}
    for form, rows in forms:
        count = batch.most_pairs(chunk, rows)
        for buffer in (b for program in form for b in program.buffers.values() if b.local):
            before = used[buffer.name][1] if buffer.name in used else 0
            used[buffer.name] = buffer, max(before, count)
    return used


def _noise(kernel: "NativeKernel", room: dict[str, tuple[Buffer, int]]) -> int:
    """What drawing takes, one buffer after the other."""
    taken = [0]
    for k, noise in enumerate(kernel.plan.of_kind("noise")):
        if f"noise:{k}" in room:
            buffer, count = room[f"noise:{k}"]
            number = NORMAL_BYTES if noise.distribution == "normal" else UNIFORM_BYTES
            taken.append(count * (buffer.width * number + NOISE_PAIR_BYTES))
    return max(taken)


def _sums(kernel: "NativeKernel", threads: int) -> int:
    """Partial sums and totals of what becomes the weights' gradients."""
    entries = sum(math.prod(int(n) for n in reduction.node.shape) for reduction in kernel.lowered.reductions)
    scratch = outer_scratch(kernel.target, kernel.element) * threads
    return (2 * entries + scratch) * kernel.lowered.element.itemsize
