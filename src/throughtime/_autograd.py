"""The autograd Function of a compiled loop: save, run two kernels, nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from throughtime._errors import BackendError
from throughtime.loop.native.batch import Source
from throughtime.loop.native.kernel import Batch, Bound, Constants, NativeKernel
from throughtime.loop.native.room import fresh, room
from throughtime.plan.memory import MemoryPolicy, SaveAll

__all__ = ["NativeCall", "run_native"]


@dataclass(frozen=True)
class NativeCall:
    """A kernel and the batch it runs on; how many of the flat tensors are consts, row consts, xs and carries.

    source: gives the xs, which are none of the flat tensors then and have no gradient.
    """

    kernel: NativeKernel
    batch: Batch
    chunk: int
    sizes: tuple[int, int, int, int]
    seed: int | None = None
    user_rows: np.ndarray | None = None
    memory: MemoryPolicy = field(default_factory=SaveAll)
    source: Source | None = None
    constants: Constants | None = None

    def bind(self, flat: Sequence[Tensor], made: Mapping[str, Tensor] | None = None) -> Bound:
        """made: what an earlier pass of the call made of its constants. Who asks for little memory has none kept."""
        consts, rows, xs, _ = self.split(flat)
        constants = self.constants or (self.kernel.constants(consts) if made is None else Constants(made))
        empty = room.empty if isinstance(self.memory, SaveAll) else fresh
        return self.kernel.bind(self.batch, constants, rows, xs, self.seed, self.user_rows, empty, self.source)

    def split(self, flat: Sequence[Tensor]) -> list[list[Tensor]]:
        parts, start = [], 0
        for size in self.sizes:
            parts.append(list(flat[start : start + size]))
            start += size
        return parts


def run_native(call: NativeCall, flat: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """flat: consts, row consts, xs, carry -> (ys [N, ...], final carry [B, ...])."""
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in flat):
        results = _Loop.apply(call, *flat)
        count = len(call.kernel.plan.ys)
        return list(results[:count]), list(results[count:])
    ys, final, _ = call.kernel.forward(call.bind(flat), call.split(flat)[3], call.chunk, None)
    return ys, final


class _Loop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: NativeCall, *flat: Tensor) -> tuple[Tensor, ...]:
        kernel = call.kernel
        schedule = kernel.schedule(call.memory, call.batch, call.chunk)
        bound = call.bind(flat)
        ys, final, kept = kernel.forward(bound, call.split(flat)[3], call.chunk, schedule)
        ctx.made = bound.consts if isinstance(call.memory, SaveAll) else None
        ctx.call, ctx.schedule, ctx.kept = call, schedule, kept.without_tensors()
        outputs = [] if schedule.runs_again else [kept.ys[name] for name in kernel.outputs_read]
        ctx.save_for_backward(*flat, *outputs, *kept.tensors())
        ctx.set_materialize_grads(False)
        # Detached: a view made in here could not be written on, and one not kept may be.
        results = tuple(result.detach() for result in (*ys, *final))
        ctx.mark_non_differentiable(*(result for result in results if not result.is_floating_point()))
        return results

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch._C._are_functorch_transforms_active() or any(map(_is_batch_of_gradients, incoming)):
            raise BackendError(
                "the native backend goes back with one gradient at a time, not with a batch of gradients "
                "(is_grads_batched=True, vmap). Call dynamic_rnn(..., backend='portable') for that."
            )
        call: NativeCall = ctx.call
        flat, rest = _cut(ctx.saved_tensors, sum(call.sizes))
        kernel = call.kernel
        read = () if ctx.schedule.runs_again else kernel.outputs_read
        outputs, tensors = _cut(rest, len(read))
        kept = ctx.kept.with_tensors(dict(zip(read, outputs)), tensors)
        d_ys, d_final = _cut(incoming, len(kernel.plan.ys))
        found = kernel.backward(call.bind(flat, ctx.made), kept, ctx.schedule, d_ys, d_final, call.chunk)
        gradients = [*found["consts"], *found["row_consts"], *found["xs"][: call.sizes[2]], *found["carry"]]
        if torch.is_grad_enabled():
            depends_on = [*flat, *(d for d in incoming if d is not None)]
            gradients = [None if g is None else _NoSecondDerivative.apply(g, *depends_on) for g in gradients]
        return (None, *gradients)


def _cut(items: tuple[Any, ...], place: int) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    return items[:place], items[place:]


def _is_batch_of_gradients(gradient: Tensor | None) -> bool:
    return gradient is not None and torch._C._functorch.is_legacy_batchedtensor(gradient)  # type: ignore[attr-defined]


class _NoSecondDerivative(torch.autograd.Function):
    """A gradient that says so when it is differentiated again."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *depends_on: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, *incoming: Any) -> Any:
        raise BackendError(
            "the native backend has no second derivative. Call dynamic_rnn(..., backend='portable') where you "
            "differentiate a gradient."
        )
