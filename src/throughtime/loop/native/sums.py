"""Reductions over pairs -> totals: sums over blocks of absolute time, added to sums over blocks, added to totals.

The order of the additions depends on nothing but the lengths: not on threads, chunks or the memory policy. The plain
worker adds pair by pair, from the last to the first; others go through the pairs of a block upwards, last block first.
"""

import ctypes
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from throughtime.capture.graph import Node
from throughtime.loop.native.batch import Batch, Bound, Located
from throughtime.loop.native.contractions import Contraction, Side
from throughtime.loop.native.jit import CompiledModule
from throughtime.loop.native.lower import Reduction
from throughtime.loop.native.threads import run_shares, share_block
from throughtime.loop.native.views import feature_shape
from throughtime.plan.memory import BLOCK

if TYPE_CHECKING:
    from throughtime.loop.native.kernel import NativeKernel

__all__ = ["STEPS_PER_SUM", "OwnSum", "Sums", "SumsCode", "own_sums"]

STEPS_PER_SUM = 16 * BLOCK
"""That one sum runs over before it is added to the total: a sum over a million steps keeps its digits."""


@dataclass(frozen=True)
class OwnSum:
    """A reduction that our own products do. `turned`: they make the transpose, with the wider operand along vectors."""

    reduction: Reduction
    contraction: Contraction
    turned: bool


def own_sums(reductions: Sequence[Reduction]) -> dict[str, OwnSum]:
    """`outer` and `sum`, by the name of the node; a table's gradient is left to PyTorch."""
    found = {}
    for reduction in reductions:
        if reduction.node.op == "outer":
            found[reduction.node.name] = _outer(reduction)
        elif reduction.node.op == "sum":
            (g,), (width,) = reduction.operands, reduction.widths
            total = Contraction(None, Side(g, width, 1, math.prod(g.shape)))
            found[reduction.node.name] = OwnSum(reduction, total, False)
    return found


def _outer(reduction: Reduction) -> OwnSum:
    sizes = feature_shape(reduction.node.shape)
    places = zip(_both(reduction.operands), _both(reduction.widths), sizes)
    a, g = (Side(view, width, reduction.vectors, size) for view, width, size in places)
    turned = a.size > g.size
    sides = (g, a) if turned else (a, g)
    return OwnSum(reduction, Contraction(*sides, reduction.rounded), turned)


def _both(items: Sequence) -> tuple:
    """An operand that is contracted with itself is named once."""
    return items[0], items[-1]


class SumsCode(NamedTuple):
    """The worker of some sums. `plain`: it does any plain ones, and is told which in a table."""

    module: CompiledModule
    worker: int
    plain: bool


class Sums:
    """The totals of one backward pass: `over` its pairs or, after the steps, over its rows."""

    def __init__(self, kernel: "NativeKernel", bound: Bound, over: Literal["pairs", "rows"] = "pairs") -> None:
        self.kernel, self.threads = kernel, bound.batch.threads
        dtype = kernel.lowered.element
        self.reductions = kernel.lowered.reductions if over == "pairs" else kernel.lowered.row_reductions
        self.own = kernel.own_sums[over]
        self.partial = {r.node.name: torch.zeros(self._partial_shape(r), dtype=dtype) for r in self.reductions}
        self.totals: dict[str, Tensor] = {}
        self.code = kernel.contractions(over) if self.own else None
        self.only_plain = len(self.own) == len(self.reductions) and self.code is not None and self.code.plain
        self.room = kernel.sum_scratch[over]
        self.scratch = bound.empty((self.room * self.threads,), dtype)

    def _partial_shape(self, reduction: Reduction) -> tuple[int, ...]:
        own = self.own.get(reduction.node.name)
        return own.contraction.shape if own else tuple(int(n) for n in reduction.node.shape)

    def add_steps(self, start: int, stop: int, batch: Batch, buffers: Mapping[str, Located]) -> None:
        """Last steps first; `start` is a block's first step. Where pairs go one by one, blocks need not stand alone."""
        at_once = STEPS_PER_SUM if self.only_plain else BLOCK
        while stop > start:
            first = max(start, (stop - 1) // at_once * at_once)
            low, high = int(batch.offsets[first]), int(batch.offsets[stop])
            if self.code is not None:
                self._add_own(self.code, buffers, low, high)
            for reduction in self.reductions:
                if reduction.node.op == "embedding_dense_backward":
                    self._add_to_table(reduction, buffers, low, high)
            if first % STEPS_PER_SUM == 0:
                self._flush(last=first == 0)
            stop = first

    def _add_own(self, code: SumsCode, buffers: Mapping[str, Located], low: int, high: int) -> None:
        arguments = [high - low, self.scratch.data_ptr()]
        if code.plain:
            arguments += [self.room, len(self.own)]
        for name, own in self.own.items():
            sides = (own.contraction.a, own.contraction.g)
            if code.plain:
                arguments += own.contraction.row
                arguments += [_last_vector(side, buffers, low, high) for side in sides]
            else:
                arguments += [0 if side is None else buffers[side.view.base].pointer_to(low) for side in sides]
            arguments.append(self.partial[name].data_ptr())
        block = share_block(self.threads, arguments)
        run_shares(code.worker, ctypes.addressof(block), self.threads)

    def _add_to_table(self, reduction: Reduction, buffers: Mapping[str, Located], low: int, high: int) -> None:
        gradient, index = (buffers[v.base].cut(low, high) for v in reduction.operands)
        index = index.reshape(-1)
        gradient = gradient.reshape(len(index), -1)
        padding = reduction.node.attributes.get("padding_idx", -1)
        if padding is not None and padding >= 0:
            gradient = gradient * (index != padding).unsqueeze(-1)
        self.partial[reduction.node.name].index_add_(0, index, gradient)

    def _flush(self, last: bool) -> None:
        """The first sum becomes the total."""
        for reduction in self.reductions:
            name = reduction.node.name
            own, sums = self.own.get(name), self.partial.pop(name)
            partial = sums
            if own is not None:
                partial = sums.t() if own.turned else _finish_sum(reduction.node, own, sums)
            if name in self.totals:
                self.totals[name] += partial
            else:
                self.totals[name] = partial if last else partial.clone()
            if not last:
                self.partial[name] = sums.zero_()


def _last_vector(side: Side | None, buffers: Mapping[str, Located], low: int, high: int) -> int:
    """Where the plain worker begins, which goes down from there."""
    if side is None:
        return 0
    located = buffers[side.view.base]
    numbers = side.view.offset + ((high - low) * side.vectors - 1) * side.step
    return located.pointer_to(low) + numbers * located.tensor.element_size()


def _finish_sum(node: Node, own: OwnSum, partial: Tensor) -> Tensor:
    """A sum over rows may run over features too."""
    if node.op != "sum":
        return partial
    axes = [d - 1 for d in node.attributes["dims"] if d > 0]
    shaped = partial.reshape(own.contraction.g.view.shape)
    return (shaped.sum(axes) if axes else shaped).reshape(feature_shape(node.shape))
