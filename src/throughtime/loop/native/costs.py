"""Kernel, batch -> what a call keeps and computes, in bytes and operations: what memory policies choose by."""

import math
from typing import TYPE_CHECKING

from throughtime.loop.native.batch import PAIRS_PER_CALL, Batch
from throughtime.loop.native.emit import PAIRS_AT_ONCE
from throughtime.loop.native.gemm import outer_scratch, packed_size
from throughtime.loop.native.views import feature_shape
from throughtime.plan.memory import BLOCK, Costs

if TYPE_CHECKING:
    from throughtime.loop.native.kernel import NativeKernel

__all__ = ["costs_of"]

NOISE_BYTES = 40
"""For each number of noise: four arrays of int64 while it is mixed, and one of float64."""
ROW_COPIES = 4
"""Of the state: at the start and the end of a pass, and its gradient."""


def costs_of(kernel: "NativeKernel", batch: Batch, chunk: int) -> Costs:
    """Of a call that is to be differentiated."""
    size = kernel.lowered.element.itemsize
    outputs = sum(b.width for name, b in kernel.buffers("training").items() if name.startswith("ys:"))
    state = sum(math.prod(feature_shape(carry.shape)) for carry in kernel.plan.of_kind("carry"))
    flops = 2 * sum(k * n for k, n in kernel.program("training").weights.values())
    rows = ROW_COPIES * int(batch.active.max(initial=0)) * state * size
    return Costs(
        batch.offsets,
        batch.active,
        kernel.residual_bytes,
        outputs * size,
        state * size,
        flops,
        _work(kernel, "training", batch, chunk) + rows,
        _work(kernel, "backward", batch, BLOCK) + _sums(kernel, batch.threads) + rows,
    )


def _work(kernel: "NativeKernel", direction: str, batch: Batch, chunk: int) -> int:
    """Buffers of a chunk and packed weights."""
    programs = (kernel.program(direction), *kernel.lowered.staged.get(direction, ()))
    most_rows = int(batch.active.max(initial=0))
    pairs = min(batch.pairs, max(PAIRS_PER_CALL, chunk * most_rows))
    local = {name: b.width for program in programs for name, b in program.buffers.items() if b.local}
    noise = sum(width for name, width in local.items() if name.startswith("noise:"))
    scratch = sum(
        b.width * (PAIRS_AT_ONCE * batch.threads if program.over == "pairs" else len(batch.lengths))
        for program in programs
        for b in program.buffers.values()
        if b.kind == "block"
    )
    weights = {name: shape for program in programs for name, shape in program.weights.items()}
    packed = sum(packed_size(k, n, kernel.target, kernel.element) for k, n in weights.values())
    size = kernel.lowered.element.itemsize
    return (pairs * sum(local.values()) + scratch + packed) * size + pairs * noise * NOISE_BYTES


def _sums(kernel: "NativeKernel", threads: int) -> int:
    """Partial sums and totals of what becomes the weights' gradients."""
    entries = sum(math.prod(int(n) for n in reduction.node.shape) for reduction in kernel.lowered.reductions)
    scratch = outer_scratch(kernel.target, kernel.element) * threads
    return (2 * entries + scratch) * kernel.lowered.element.itemsize
