"""The autograd Function of a compiled loop: save, run two kernels, nothing else."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from throughtime._errors import BackendError
from throughtime.loop.native.batch import Source
from throughtime.loop.native.kernel import Batch, NativeKernel
from throughtime.loop.native.room import Empty, fresh, room
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

    @property
    def empty(self) -> Empty:
        """Who asks for little memory has none kept."""
        return room.empty if isinstance(self.memory, SaveAll) else fresh

    def split(self, flat: tuple[Tensor, ...]) -> list[list[Tensor]]:
        parts, start = [], 0
        for size in self.sizes:
            parts.append(list(flat[start : start + size]))
            start += size
        return parts


def run_native(call: NativeCall, flat: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """flat: consts, row consts, xs, carry -> (ys [N, ...], final carry [B, ...])."""
    # Inside a Function gradients are always off, and `needs_input_grad` does not know of `no_grad`.
    training = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in flat)
    results = _Loop.apply(call, training, *flat)
    count = len(call.kernel.plan.ys)
    return list(results[:count]), list(results[count:])


class _Loop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: NativeCall, training: bool, *flat: Tensor) -> tuple[Tensor, ...]:
        kernel = call.kernel
        consts, rows, xs, carry = call.split(flat)
        bound = kernel.bind(call.batch, consts, rows, xs, call.seed, call.user_rows, call.empty, call.source)
        schedule = kernel.schedule(call.memory, call.batch, call.chunk) if training else None
        ys, final, kept = kernel.forward(bound, carry, call.chunk, schedule)
        if schedule is not None:
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
        kernel, (consts, rows, xs, _) = call.kernel, call.split(flat)
        read = () if ctx.schedule.runs_again else kernel.outputs_read
        outputs, tensors = _cut(rest, len(read))
        kept = ctx.kept.with_tensors(dict(zip(read, outputs)), tensors)
        bound = kernel.bind(call.batch, consts, rows, xs, call.seed, call.user_rows, call.empty, call.source)
        d_ys, d_final = _cut(incoming, len(kernel.plan.ys))
        found = kernel.backward(bound, kept, ctx.schedule, d_ys, d_final, call.chunk)
        gradients = [*found["consts"], *found["row_consts"], *found["xs"][: len(xs)], *found["carry"]]
        if torch.is_grad_enabled():
            depends_on = [*flat, *(d for d in incoming if d is not None)]
            gradients = [None if g is None else _NoSecondDerivative.apply(g, *depends_on) for g in gradients]
        return (None, None, *gradients)


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
