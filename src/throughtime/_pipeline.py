"""READ FIRST: a cell and a ragged batch -> ys and the final state. Chooses the backend; owns the only cache.

    trace = trace_step(cell, xs, state)     the step and its gradient, as a graph
    plan = make_plan(trace.pair)            what must be sequential, what leaves the loop, what is kept
    kernel = NativeKernel(plan)             machine code
    ys, state = run_native(kernel, ...)     one autograd node, whatever the number of steps

A cell that cannot take this way runs step by step in PyTorch (`backend="portable"`), and says why.
"""

import sys
import warnings
from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from throughtime._autograd import NativeCall, run_native
from throughtime._cache import Cache, Entry
from throughtime._eager import eager
from throughtime._errors import BackendError, BackendWarning, CaptureError, PlanError
from throughtime._limits import has_no_numbers, limit_around, limit_of
from throughtime._nested import Nested, flatten, leaves, map_leaves, restructure, unflatten
from throughtime._no_steps import run_no_steps
from throughtime._sequence import Ragged
from throughtime._state import check_output, rounds_products, split_result
from throughtime._types import Backend
from throughtime.capture import (
    Mentions,
    StepCall,
    StepTrace,
    check_hooks,
    find_mentions,
    mistakes_told,
    signature,
    trace_step,
)
from throughtime.loop.native.kernel import Batch, Constants, NativeKernel
from throughtime.loop.noise import draw_seed
from throughtime.loop.portable import PortableLoop
from throughtime.loop.portable_memory import run_portable
from throughtime.loop.portable_noise import CounterNoise
from throughtime.plan.loop_plan import LoopPlan
from throughtime.plan.make import make_plan
from throughtime.plan.memory import MemoryPolicy, SaveAll

__all__ = [
    "Compiled",
    "Forecast",
    "Held",
    "Progress",
    "Refusal",
    "Run",
    "compilations",
    "find_loop",
    "forecast",
    "run",
    "wants_gradients",
]


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
    memory: MemoryPolicy = field(default_factory=SaveAll)


Stage = Literal["call", "capture", "plan", "native"]


@dataclass(frozen=True)
class Compiled:
    """A cell's step as machine code. `forward_only`: why its gradient is not."""

    trace: StepTrace
    plan: LoopPlan
    kernel: NativeKernel
    forward_only: "Refusal | None" = None


@dataclass(frozen=True)
class Refusal:
    """Why a cell does not run natively, where that was found, and as much of the plan as there is."""

    reason: str
    stage: Stage
    plan: LoopPlan | None = None


_cache: Cache[Compiled | Refusal] = Cache()
_kernels: WeakValueDictionary[str, NativeKernel] = WeakValueDictionary()
MANY_COMPILATIONS = 8
"""Of one cell: train and eval, with and without gradients, two dtypes."""


def compilations() -> int:
    """How many loops this process has compiled: cells traced, whether or not their machine code was there already."""
    return _cache.misses


@eager
def run(request: Run) -> tuple[Nested, Nested]:
    """ys [N, ...] and the final state [B, ...], in loop order."""
    if request.ragged.steps == 0:
        return _no_steps(request)
    if request.backend == "portable":
        return _portable(request)
    loop, consts = find_loop(request)
    if isinstance(loop, Compiled) and loop.forward_only is not None and wants_gradients(request, consts):
        loop = loop.forward_only
    if isinstance(loop, Compiled):
        return _native(request, loop, consts)
    if request.backend == "native":
        raise BackendError(
            f"dynamic_rnn: backend='native' cannot run this cell: {loop.reason}. Use backend='auto' or 'portable'."
        )
    if not has_no_numbers(request.ragged.xs):
        _warn_once(
            request.cell,
            loop.reason,
            f"dynamic_rnn runs this cell step by step in PyTorch (backend='portable'): {loop.reason}. "
            f"Say backend='portable' to run it so without this warning.",
        )
    return _portable(request)


def find_loop(request: Run) -> tuple[Compiled | Refusal, list[Tensor]]:
    """The loop, and the tensors that the cell closes over now."""
    if (limit := limit_around() or limit_of(_given(request))) is not None:
        return Refusal(limit, "call"), []
    step = _traced(request)
    with _cache.lock:
        entry = _cache.entry(request.cell)
        loop = entry.get(_key(request, entry))
        consts = loop.trace.read_consts(step.cell) if isinstance(loop, Compiled) else []
        if loop is None or (isinstance(loop, Compiled) and not loop.trace.fits(consts)):
            loop = _compile_anew(request, step, entry)
            consts = loop.trace.read_consts(step.cell) if isinstance(loop, Compiled) else []
    if isinstance(loop, Compiled):
        paths = (const.path for const in loop.trace.consts)
        if (limit := limit_of(zip(paths, consts))) is not None:
            return Refusal(limit, "call", loop.plan), []
    return loop, consts


def _compile_anew(request: Run, step: StepCall, entry: Entry) -> Compiled | Refusal:
    """The names that the step's code mentions may have changed with it; what was compiled by others is let go then."""
    previous = next(reversed(entry.made), None)
    mentions = find_mentions(request.cell)
    if mentions != entry.mentions:
        entry.made.clear()
    entry.mentions = mentions
    key = _key(request, entry)
    loop = _compile(step, mentions)
    entry.put(key, loop)
    entry.misses += 1
    _cache.misses += 1
    if entry.misses > MANY_COMPILATIONS and isinstance(loop, Compiled):
        _warn_once(
            request.cell,
            "again and again",
            f"dynamic_rnn compiles this cell again and again ({entry.misses} times so far): {_change(previous, key)}. "
            f"Keep a number that changes in a tensor, and what does not change as it is.",
        )
    return loop


def _compile(step: StepCall, mentions: Mentions) -> Compiled | Refusal:
    stage: Stage = "capture"
    plan = None
    try:
        check_hooks(step.cell, mentions)
        trace = trace_step(step.cell, step.xs, step.state, step.row_consts)
        text = str(trace.pair)  # two layers of one kind and size have one step
        if (kernel := _kernels.get(text)) is None:
            stage = "plan"
            with mistakes_told(stage):
                plan = make_plan(trace.pair)
            stage = "native"
            with mistakes_told(stage):
                kernel = _kernels[text] = NativeKernel(plan)
    except (CaptureError, PlanError, BackendError) as error:
        return Refusal(str(error).rstrip("."), stage, plan)
    no_gradient = kernel.lowered.no_backward
    forward_only = Refusal(f"its gradient: {no_gradient}", "native", kernel.plan) if no_gradient is not None else None
    return Compiled(trace, kernel.plan, kernel, forward_only)


def _key(request: Run, entry: Entry) -> Hashable:
    """A reset is part of the step; what it goes back to stands with the row constants."""
    if entry.mentions is None:
        entry.mentions = find_mentions(request.cell)
    row_consts = (request.row_consts, request.reset_state)
    words = signature(request.cell, request.ragged.xs, request.state, row_consts, entry.mentions)
    return (request.reset is not None, *words)


def _change(old: Any, new: Any) -> str:
    """What a new trace is for, by the first word that differs."""
    if old is not None and len(old) == len(new):
        for place, (before, after) in enumerate(zip(old, new)):
            if before != after:
                name = new[place - 1] if isinstance(new[place - 1], str) else "a value"
                return f"{name} was {_shown(before)} and is {_shown(after)}"
    return "what it closes over changes from call to call"


def _shown(word: Any) -> Any:
    return word[1] if isinstance(word, tuple) and len(word) == 2 and isinstance(word[0], type) else word


def _given(request: Run) -> tuple[tuple[str, Nested], ...]:
    named = (
        ("inputs", request.ragged.xs),
        ("state", request.state),
        ("row_consts", request.row_consts),
        ("reset", request.reset),
        ("reset_state", request.reset_state),
    )
    return tuple((name, value) for name, value in named if value is not None)


def wants_gradients(request: Run, consts: list[Tensor]) -> bool:
    given = [leaf for _, value in _given(request) for leaf in leaves(value)]
    return torch.is_grad_enabled() and any(t.requires_grad for t in (*given, *consts))


@dataclass(frozen=True)
class Forecast:
    """Of a native call: the processor it is for, the memory policy and what it chose, the bytes it needs at most.

    as_one: whether batched stages run within the steps of the loops, as they do with many rows.
    """

    machine: str
    as_one: bool
    memory: str | None
    peak_bytes: int | None


def forecast(request: Run, loop: Compiled, trained: bool) -> Forecast:
    """What a call would need. Nothing is run."""
    batch = _batch(request)
    as_one = loop.kernel.runs_as_one("training" if trained else "inference", batch)
    if not trained:
        return Forecast(loop.kernel.machine, as_one, None, None)
    schedule = loop.kernel.schedule(request.memory, batch, request.chunk)
    chosen = "" if schedule.policy == request.memory else f" chooses {schedule.policy}"
    return Forecast(loop.kernel.machine, as_one, f"{request.memory}{chosen}", schedule.peak)


def _batch(request: Run) -> Batch:
    return Batch.of(request.ragged.lengths, torch.get_num_threads())


def _traced(request: Run) -> StepCall:
    """What is traced: the cell, or the cell behind its resets."""
    xs, row_consts = request.ragged.xs, request.row_consts
    if request.reset is None:
        return StepCall(request.cell, xs, request.state, row_consts)
    both = (row_consts, request.reset_state)
    return StepCall(ResetStep(request.cell), (xs, request.reset), request.state, both)


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


def _native(request: Run, loop: Compiled, consts: list[Tensor]) -> tuple[Nested, Nested]:
    call, flat = _native_call(request, loop, consts)
    ys, final = run_native(call, flat)
    return unflatten(loop.trace.ys_structure, ys), restructure(final, request.state)


class Held:
    """A compiled loop whose weights are read once, for runs that follow each other."""

    def __init__(self, loop: Compiled, consts: list[Tensor]) -> None:
        self.loop, self.consts, self.constants = loop, consts, loop.kernel.constants(consts)


class Progress:
    """A run without gradients that its caller looks at on the way."""

    def __init__(self, request: Run, held: Held) -> None:
        call, flat = _native_call(request, held.loop, held.consts, held.constants)
        self._loop, self._like, self._carry = held.loop, request.state, leaves(request.state)
        self._stepper = self._loop.kernel.stepper(call.bind(flat), self._carry, request.chunk)

    @property
    def steps_left(self) -> int:
        return self._stepper.steps_left

    def advance(self, steps: int) -> Nested:
        """ys of the next steps, in loop order."""
        return unflatten(self._loop.trace.ys_structure, self._loop.kernel.outputs(self._stepper.advance(steps)))

    @property
    def state(self) -> Nested:
        """As it is now; the next steps write on it."""
        return restructure(self._loop.kernel.final(self._stepper.state, self._carry), self._like)


def _native_call(
    request: Run, loop: Compiled, consts: list[Tensor], constants: Constants | None = None
) -> tuple[NativeCall, list[Tensor]]:
    """The call, and its tensors one after the other."""
    step = _traced(request)
    source = request.ragged.source
    xs = leaves(step.xs) if source is None else []
    groups = [consts, leaves(step.row_consts), xs, leaves(step.state)]
    noisy = bool(loop.plan.of_kind("noise"))
    call = NativeCall(
        loop.kernel,
        _batch(request),
        request.chunk,
        (len(groups[0]), len(groups[1]), len(groups[2]), len(groups[3])),
        draw_seed() if noisy else None,
        request.ragged.user_order if noisy else None,
        request.memory,
        None if source is None else lambda start, stop: leaves(source(start, stop)),
        constants,
    )
    return call, [tensor for group in groups for tensor in group]


def _warn_once(cell: Any, reason: str, message: str) -> None:
    with _cache.lock:
        told = _cache.entry(cell).told
        if reason in told:
            return
        told.add(reason)
    warnings.warn(message, BackendWarning, stacklevel=_stack_level())


def _stack_level() -> int:
    """Of the first caller outside of this library."""
    level, frame = 2, sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__", "").startswith("throughtime."):
        level, frame = level + 1, frame.f_back
    return level


def _portable(request: Run) -> tuple[Nested, Nested]:
    loop = PortableLoop(
        lambda x, state, row_consts: _step(request.cell, x, state, row_consts),
        request.ragged.active,
        request.row_consts,
        request.reset,
        request.reset_state,
        CounterNoise(request.ragged.user_order),
    )
    return run_portable(loop, request.memory, request.ragged.xs, request.state, request.ragged.source)


def _step(cell: Any, x: Nested, state: Nested, row_consts: Nested) -> tuple[Nested, Nested]:
    result = cell(x, state, row_consts) if leaves(row_consts) else cell(x, state)
    output, next_state = split_result(result, state)
    check_output(output, leaves(x)[0].shape[0])
    return _full_precision(output, state), next_state


def _full_precision(output: Nested, state: Nested) -> Nested:
    """Under autocast products are rounded, outputs are not: they come out in the state's precision."""
    flat, structure = flatten(output)
    if not any(rounds_products(leaf.device) for leaf in flat[:1]):
        return output
    floating = [leaf.dtype for leaf in leaves(state) if leaf.is_floating_point()]
    wanted = floating[0] if floating else torch.float32
    return unflatten(structure, [leaf.to(wanted) if leaf.is_floating_point() else leaf for leaf in flat])


def _no_steps(request: Run) -> tuple[Nested, Nested]:
    cell, given = request.cell, (request.ragged.xs, request.state, request.row_consts, request.reset_state)
    return run_no_steps(cell, partial(_step, cell), *given)
