"""Memory policies for the portable loop: segments that run again, or saved tensors in a file."""

import itertools
import math
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from throughtime._errors import MemoryPolicyError
from throughtime._nested import Nested, map_leaves
from throughtime.loop.portable import PortableLoop, join_rows
from throughtime.loop.spill import SpillFile
from throughtime.plan.memory import MemoryPolicy, Recompute, SaveAll, Spill

__all__ = ["run_portable"]

SMALL_BYTES = 4096
"""Tensors up to this size stay in memory: their place in the file would cost as much."""


def run_portable(loop: PortableLoop, memory: MemoryPolicy, xs: Nested, state: Nested) -> tuple[Nested, Nested]:
    """`loop.run(xs, state)`, whose backward pass keeps what the policy says. Raises MemoryPolicyError for a budget."""
    if isinstance(memory, SaveAll) or not torch.is_grad_enabled():
        return loop.run(xs, state)
    if isinstance(memory, Recompute):
        return _run_in_segments(loop, xs, state, memory.every or math.isqrt(len(loop.active) - 1) + 1)
    if isinstance(memory, Spill):
        file = SpillFile(0, memory.directory)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: _put_away(file, t), _fetch):
            return loop.run(xs, state)
    raise MemoryPolicyError(
        f"{memory} needs a prediction, which only the native backend makes, and this cell runs in the portable one. "
        f"Say memory=Recompute() or memory=Spill()."
    )


def _run_in_segments(loop: PortableLoop, xs: Nested, state: Nested, every: int) -> tuple[Nested, Nested]:
    """Each segment is a loop of its own, run again in the backward pass."""
    offsets = [0, *itertools.accumulate(loop.active)]
    outputs, finished = [], []
    for start in range(0, len(loop.active), every):
        stop = min(start + every, len(loop.active))
        rows, pairs = loop.active[start], slice(offsets[start], offsets[stop])
        finished.append(map_leaves(lambda leaf: leaf[rows:], state))  # noqa: B023
        segment = replace(
            loop,
            active=loop.active[start:stop],
            row_consts=_cut(loop.row_consts, slice(rows)),
            reset=_cut(loop.reset, pairs),
            reset_state=_cut(loop.reset_state, slice(rows)),
            first_step=start,
        )
        ys, state = checkpoint(segment.run, _cut(xs, pairs), _cut(state, slice(rows)), use_reentrant=False)
        outputs.append(ys)
    return join_rows(outputs), join_rows([state, *reversed(finished)])


def _cut(value: Nested, part: slice) -> Nested:
    return None if value is None else map_leaves(lambda leaf: leaf[part], value)


_keys = itertools.count()


def _put_away(file: SpillFile, tensor: Tensor) -> Tensor | tuple[SpillFile, int]:
    if tensor.is_leaf or tensor.numel() * tensor.element_size() <= SMALL_BYTES or tensor.device.type != "cpu":
        return tensor
    key = next(_keys)
    file.write(key, {"tensor": tensor.detach()})
    return file, key


def _fetch(kept: Tensor | tuple[SpillFile, int]) -> Tensor:
    if isinstance(kept, Tensor):
        return kept
    file, key = kept
    return file.read(key)["tensor"]
