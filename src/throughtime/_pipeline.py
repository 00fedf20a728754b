"""READ FIRST: a cell and a ragged batch -> ys and the final state. Chooses the backend; owns the only cache.

    trace = trace_step(cell, xs, state)     the step and its gradient, as a graph
    plan = make_plan(trace.pair)            what must be sequential, what leaves the loop, what is kept
    kernel = NativeKernel(plan)             machine code
    ys, state = run_native(kernel, ...)     one autograd node, whatever the number of steps

A cell that cannot take this way runs step by step in PyTorch (`backend="portable"`), and says why.
"""

import threading
import warnings
import weakref
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from throughtime._autograd import NativeCall, run_native
from throughtime._errors import BackendError, BackendWarning, CaptureError, PlanError
from throughtime._nested import Nested, flatten, leaves, map_leaves, unflatten
from throughtime._sequence import Ragged
from throughtime._state import check_output, split_result, trial
from throughtime._types import Backend
from throughtime.capture import StepTrace, trace_step
from throughtime.loop.native.kernel import Batch, NativeKernel
from throughtime.loop.noise import draw_seed
from throughtime.loop.portable import PortableLoop
from throughtime.loop.portable_noise import CounterNoise
from throughtime.loop.portable_memory import run_portable
from throughtime.plan.loop_plan import LoopPlan
from throughtime.plan.make import make_plan
from throughtime.plan.memory import MemoryPolicy, SaveAll

__all__ = ["Compiled", "Refusal", "Run", "compilations", "compiled_loop", "run"]


@dataclass(frozen=True)
class Run:
    """Everything one call of an unroller needs, checked and in loop order (longest row first)."""

    cell: Any
    ragged: Ragged
    state: Nested
    row_consts: Nested
    reset: Tensor | None
    reset_state: Nested
    backend: Backend
    chunk: int
    memory: MemoryPolicy = SaveAll()


@dataclass(frozen=True)
class Compiled:
    """A cell's step as machine code."""

    trace: StepTrace
    plan: LoopPlan
    kernel: NativeKernel


@dataclass
class Refusal:
    """Why a cell does not run natively. `told`: the warning was given."""

    reason: str
    told: bool = False


@dataclass
class _Cache:
    """By cell, then by signature. A cell's entries go with it."""

    by_cell: dict[int, dict[Hashable, Compiled | Refusal]] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)
    compilations: int = 0

    def of(self, cell: Any) -> dict[Hashable, Compiled | Refusal]:
        owner = getattr(cell, "__self__", cell)  # a bound method is made anew at each access
        key = hash((id(owner), getattr(cell, "__func__", None)))
        if key not in self.by_cell:
            self.by_cell[key] = {}
            weakref.finalize(owner, self.by_cell.pop, key, None)
        return self.by_cell[key]


_cache = _Cache()


def compilations() -> int:
    """How many loops this process has compiled."""
    return _cache.compilations


def run(request: Run) -> tuple[Nested, Nested]:
    """ys [N, ...] and the final state [B, ...], in loop order."""
    if request.ragged.steps == 0:
        return _no_outputs(request), map_leaves(torch.clone, request.state)
    if request.backend == "portable":
        return _portable(request)
    loop = compiled_loop(request)
    if isinstance(loop, Compiled):
        return _native(request, loop)
    if request.backend == "native":
        raise BackendError(
            f"dynamic_rnn: backend='native' cannot run this cell: {loop.reason}. Use backend='auto' or 'portable'."
        )
    _warn_once(loop)
    return _portable(request)


def compiled_loop(request: Run) -> Compiled | Refusal:
    """The request's loop, out of the cache if it was compiled before."""
    xs, row_consts = request.ragged.xs, request.row_consts
    cell: Any = request.cell
    if (reason := _unfit(request)) is not None:
        return Refusal(reason)
    with _cache.lock:
        entries = _cache.of(cell)
        key = _signature(request)
        known = entries.get(key)
        if isinstance(known, Compiled) and not known.trace.fits(known.trace.read_consts(_traced_cell(request))):
            known = None
        if known is None:
            if request.reset is not None:
                cell, xs, row_consts = ResetStep(cell), (xs, request.reset), (row_consts, request.reset_state)
            known = entries[key] = _compile(cell, xs, request.state, row_consts)
        return known


def _compile(cell: Any, xs: Nested, state: Nested, row_consts: Nested) -> Compiled | Refusal:
    _cache.compilations += 1
    try:
        trace = trace_step(cell, xs, state, row_consts)
        plan = make_plan(trace.pair)
        return Compiled(trace, plan, NativeKernel(plan))
    except (CaptureError, PlanError, BackendError) as error:
        return Refusal(str(error).rstrip("."))


class ResetStep:
    """A step whose state is put back first, where the mask is true. Traced with the cell, so resets cost nothing."""

    def __init__(self, cell: Any) -> None:
        self.cell = cell

    def __call__(self, x_and_mask: Nested, state: Nested, consts_and_start: Nested = ((), ())) -> Any:
        """A cell without state and row constants is called without the third."""
        (x, mask), (row_consts, start) = x_and_mask, consts_and_start

        def put_back(start: Tensor, leaf: Tensor) -> Tensor:
            shaped = mask
            for _ in range(leaf.dim() - 1):
                shaped = shaped.unsqueeze(-1)
            return torch.where(shaped, start, leaf)

        state = map_leaves(put_back, start, state) if leaves(state) else state
        return self.cell(x, state, row_consts) if leaves(row_consts) else self.cell(x, state)


def _unfit(request: Run) -> str | None:
    """What the native backend does not do, whatever the cell computes."""
    device = request.ragged.device
    if device.type != "cpu":
        return f"the inputs are on {device}, and machine code is made for the CPU"
    if isinstance(request.cell, nn.Module):
        for name, module in request.cell.named_modules():
            if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
                return f"{name or 'the cell'} has hooks, which run at every step"
    return None


def _signature(request: Run) -> Hashable:
    modules = request.cell.modules() if isinstance(request.cell, nn.Module) else ()
    named = (request.ragged.xs, request.state, request.row_consts, request.reset, request.reset_state)
    return (
        tuple((leaf.shape[1:], leaf.dtype, leaf.requires_grad) for leaf in leaves(named) if leaf is not None),
        tuple(module.training for module in modules),
        torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"),
    )


def _native(request: Run, loop: Compiled) -> tuple[Nested, Nested]:
    ragged, xs, row_consts = request.ragged, request.ragged.xs, request.row_consts
    if request.reset is not None:
        xs, row_consts = (xs, request.reset), (row_consts, request.reset_state)
    groups = [loop.trace.read_consts(_traced_cell(request)), leaves(row_consts), leaves(xs), leaves(request.state)]
    noisy = bool(loop.plan.of_kind("noise"))
    call = NativeCall(
        loop.kernel,
        Batch.of(ragged.lengths, _threads()),
        request.chunk,
        (len(groups[0]), len(groups[1]), len(groups[2]), len(groups[3])),
        draw_seed() if noisy else None,
        _user_rows(ragged) if noisy else None,
        request.memory,
    )
    ys, final = run_native(call, [tensor for group in groups for tensor in group])
    return unflatten(loop.trace.ys_structure, ys), unflatten(flatten(request.state)[1], final)


def _traced_cell(request: Run) -> Any:
    return request.cell if request.reset is None else ResetStep(request.cell)


def _threads() -> int:
    return torch.get_num_threads()


def _user_rows(ragged: Ragged) -> np.ndarray:
    return np.arange(ragged.batch_size) if ragged.order is None else ragged.order.cpu().numpy()


def _warn_once(refusal: Refusal) -> None:
    if not refusal.told:
        refusal.told = True
        warnings.warn(
            f"dynamic_rnn runs this cell step by step in PyTorch (backend='portable'): {refusal.reason}. "
            f"Say backend='portable' to run it so without this warning.",
            BackendWarning,
            stacklevel=4,
        )


def _portable(request: Run) -> tuple[Nested, Nested]:
    loop = PortableLoop(
        lambda x, state, row_consts: _step(request.cell, x, state, row_consts),
        request.ragged.active,
        request.row_consts,
        request.reset,
        request.reset_state,
        CounterNoise(torch.from_numpy(_user_rows(request.ragged)).to(request.ragged.device)),
    )
    return run_portable(loop, request.memory, request.ragged.xs, request.state)


def _step(cell: Any, x: Nested, state: Nested, row_consts: Nested) -> tuple[Nested, Nested]:
    result = cell(x, state, row_consts) if leaves(row_consts) else cell(x, state)
    output, next_state = split_result(result, state)
    check_output(output, leaves(x)[0].shape[0])
    return _full_precision(output, state), next_state


def _full_precision(output: Nested, state: Nested) -> Nested:
    """Under autocast products are rounded, outputs are not: they come out in the state's precision."""
    flat, structure = flatten(output)
    if not any(torch.is_autocast_enabled(leaf.device.type) for leaf in flat[:1]):
        return output
    floating = [leaf.dtype for leaf in leaves(state) if leaf.is_floating_point()]
    wanted = floating[0] if floating else torch.float32
    return unflatten(structure, [leaf.to(wanted) if leaf.is_floating_point() else leaf for leaf in flat])


def _no_outputs(request: Run) -> Nested:
    """No row has a step: the cell is tried once on a row of zeros, to learn the shapes of what it would return."""

    def one_row(leaf: Tensor) -> Tensor:
        return leaf.new_zeros(1, *leaf.shape[1:])

    x, state, row_consts = (map_leaves(one_row, v) for v in (request.ragged.xs, request.state, request.row_consts))
    with trial(request.ragged.xs):
        output, _ = _step(request.cell, x, state, row_consts)
    return map_leaves(lambda leaf: leaf.new_zeros(0, *leaf.shape[1:]), output)
