"""Memory policies for the portable loop: segments that run again, or saved tensors in a file."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torch.utils.weak import WeakIdKeyDictionary

from throughtime._errors import MemoryPolicyError
from throughtime._nested import Nested, map_leaves
from throughtime.loop.portable import PortableLoop, join_rows
from throughtime.loop.spill import SpillFile
from throughtime.plan.memory import MemoryPolicy, Recompute, SaveAll, Spill

__all__ = ["run_portable"]

Source = Callable[[int, int], Nested]

SMALL_BYTES = 4096
"""Tensors up to this size stay in memory: their place in the file would cost as much."""


def run_portable(
    loop: PortableLoop, memory: MemoryPolicy, xs: Nested, state: Nested, source: Source | None = None
) -> tuple[Nested, Nested]:
    """`loop.run(xs, state)`, whose backward pass keeps what the policy says. Raises MemoryPolicyError for a budget.

    source: (start, stop) -> the pairs of these steps, where `xs` does not hold them all.
    """
    if isinstance(memory, Recompute) and (torch.is_grad_enabled() or source is not None):
        return _run_in_segments(loop, xs, state, memory.every or math.isqrt(len(loop.active) - 1) + 1, source)
    xs = xs if source is None else source(0, len(loop.active))
    if isinstance(memory, SaveAll) or not torch.is_grad_enabled():
        return loop.run(xs, state)
    if isinstance(memory, Spill):
        away = _Away(SpillFile(0, memory.directory))
        with torch.autograd.graph.saved_tensors_hooks(away.put, _fetch):
            return loop.run(xs, state)
    raise MemoryPolicyError(
        f"{memory} needs a prediction, which only the native backend makes, and this cell runs in the portable one. "
        f"Say memory=Recompute() or memory=Spill()."
    )


def _run_in_segments(
    loop: PortableLoop, xs: Nested, state: Nested, every: int, source: Source | None
) -> tuple[Nested, Nested]:
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
        state = _cut(state, slice(rows))
        if source is None:
            ys, state = checkpoint(segment.run, _cut(xs, pairs), state, use_reentrant=False)
        else:
            ys, state = checkpoint(partial(_run_from, source, start, stop, segment), state, use_reentrant=False)
        outputs.append(ys)
    return join_rows(outputs), join_rows([state, *reversed(finished)])


def _run_from(source: Source, start: int, stop: int, segment: PortableLoop, state: Nested) -> tuple[Nested, Nested]:
    return segment.run(source(start, stop), state)


def _cut(value: Nested, part: slice) -> Nested:
    return None if value is None else map_leaves(lambda leaf: leaf[part], value)


class _Away:
    """Saved tensors in a file. One that is saved again, such as a weight that needs no gradient, is written once."""

    def __init__(self, file: SpillFile) -> None:
        self.file = file
        self.keys = itertools.count()
        self.known: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def put(self, tensor: Tensor) -> "Tensor | tuple[SpillFile, int]":
        if not _is_made_by_a_step(tensor) or tensor.numel() * tensor.element_size() <= SMALL_BYTES:
            return tensor
        version, key = self.known.get(tensor) or (-1, -1)
        if version != tensor._version:
            key = next(self.keys)
            self.file.write(key, {"tensor": tensor.detach()})
            self.known[tensor] = tensor._version, key
        return self.file, key


def _is_made_by_a_step(tensor: Tensor) -> bool:
    """Not a weight, nor a view of one or of the inputs: these stay in memory whatever is saved."""
    if tensor.device.type != "cpu" or (tensor.is_leaf and tensor.requires_grad):
        return False
    base = tensor._base
    return base is None or not base.is_leaf


def _fetch(kept: "Tensor | tuple[SpillFile, int]") -> Tensor:
    if isinstance(kept, Tensor):
        return kept
    file, key = kept
    return file.read(key)["tensor"]
