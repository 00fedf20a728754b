"""Lowered plan -> machine code, and one call of it: chunk by chunk forwards, block by block backwards."""

import ctypes
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from llvmlite import ir
from torch import Tensor

from throughtime.capture.graph import ROWS
from throughtime.capture.interpret import run_node
from throughtime.loop.native.amx import amx_library, amx_packed_size
from throughtime.loop.native.batch import Batch, Bound, Constants, Located, Source
from throughtime.loop.native.by_row import run_over_rows
from throughtime.loop.native.contractions import (
    are_plain,
    contraction_scratch,
    contractions_library,
    emit_contractions,
)
from throughtime.loop.native.costs import StepCosts, costs_of
from throughtime.loop.native.emit import element_type, emit_program
from throughtime.loop.native.execute import Kept, Stepper, go_back, go_forward
from throughtime.loop.native.gemm import packed_size, products_library
from throughtime.loop.native.ids import check_ids, find_lookups
from throughtime.loop.native.jit import CompiledModule, compile_module
from throughtime.loop.native.lower import Lowered, lower
from throughtime.loop.native.program import Buffer, Program, Weight
from throughtime.loop.native.room import Empty, fresh
from throughtime.loop.native.run import Code, Layout
from throughtime.loop.native.sums import OwnSum, SumsCode, own_sums
from throughtime.loop.native.target import Target, host_target
from throughtime.loop.native.tiles import full_name
from throughtime.loop.native.views import feature_shape
from throughtime.plan.loop_plan import LoopPlan
from throughtime.plan.memory import MemoryPolicy, Schedule, choose

__all__ = ["Batch", "Bound", "Constants", "Kept", "NativeKernel", "Stepper"]


class NativeKernel:
    """One plan as machine code for one target. Programs are compiled when they are first needed."""

    def __init__(self, plan: LoopPlan, target: Target | None = None) -> None:
        self.plan = plan
        self.target = target or host_target()
        self.lowered: Lowered = lower(plan)
        self.element = element_type(self.lowered.element)
        self.rounds = any(value.dtype == torch.bfloat16 for value in plan.values.values())
        self.libraries = [products_library(self.target, self.element)]
        if self.rounds and self.target.has_amx_bf16:
            self.libraries.append(amx_library(self.target))
        self._code: dict[tuple[str, int | None], Code] = {}
        self._contractions: dict[str, SumsCode] = {}
        self._buffers: dict[str, dict[str, Buffer]] = {}
        self._packed_sizes: dict[Weight, int] = {}
        self._lock = threading.Lock()
        self.lookups = find_lookups(plan)
        self.own_sums = {"pairs": own_sums(self.lowered.reductions), "rows": own_sums(self.lowered.row_reductions)}
        self.sum_scratch = {over: self._scratch(sums) for over, sums in self.own_sums.items()}
        """Numbers that each thread needs for the sums over pairs, or over rows."""

    # --- one call

    def constants(self, consts: Sequence[Tensor]) -> Constants:
        """Tensors in the order of the plan's inputs -> these and what is made of them once per call."""
        env = {i.name: tensor.detach() for i, tensor in zip(self.plan.of_kind("const"), consts)}
        for node in self.plan.once:
            if ROWS not in node.shape:
                env[node.name] = run_node(node, env, 0)
        return Constants(env)

    def bind(
        self,
        batch: Batch,
        constants: Constants,
        rows: Sequence[Tensor],
        xs: Sequence[Tensor],
        seed: int | None = None,
        user_rows: np.ndarray | None = None,
        empty: Empty = fresh,
        source: Source | None = None,
    ) -> Bound:
        """Tensors in the order of the plan's inputs -> what a program reads.

        source: (start, stop) -> the xs of these steps, where they are not given.
        """
        env = constants.values
        row_consts = {f"row_consts:{k}": self._as_numbers(tensor) for k, tensor in enumerate(rows)}

        def inputs(xs: Sequence[Tensor], first: int) -> dict[str, Located]:
            if self.lookups:
                pairs = {i.name: tensor for i, tensor in zip(self.plan.of_kind("xs"), xs)}
                running = int(batch.active.max(initial=0))
                of_rows = {i.name: tensor[:running] for i, tensor in zip(self.plan.of_kind("row_const"), rows)}
                check_ids(self.lookups, pairs, of_rows, env)
            return {f"xs:{k}": Located(self._as_numbers(tensor), first) for k, tensor in enumerate(xs)}

        def read(start: int, stop: int) -> dict[str, Located]:
            assert source is not None
            return inputs(source(start, stop), int(batch.offsets[start]))

        located = inputs(xs, 0) if source is None else {}
        if "before" in self.lowered.by_row:
            row_consts |= run_over_rows(self, "before", batch, env, row_consts, "rows:").made
        return Bound(batch, constants, located, row_consts, seed, user_rows, empty, source and read)

    def runs_as_one(self, direction: str, batch: Batch) -> bool:
        """Whether what is free of the states runs within the steps; with few rows it runs over all pairs of a chunk."""
        return direction not in self.lowered.staged or not batch.has_few_rows(0)

    def schedule(self, policy: MemoryPolicy, batch: Batch, chunk: int) -> Schedule:
        """The schedule of a memory policy for a batch."""
        return choose(policy, costs_of(self, batch, chunk))

    def forward(
        self, bound: Bound, carry: Sequence[Tensor], chunk: int, schedule: Schedule | None
    ) -> tuple[list[Tensor], list[Tensor], Kept]:
        """(ys [N, ...], final carry [B, ...], kept); without a schedule nothing is kept for a backward pass."""
        final, kept = go_forward(self, bound, self._state(carry), schedule, chunk)
        return self.outputs(kept.ys), self.final(final, carry), kept

    def stepper(self, bound: Bound, carry: Sequence[Tensor], chunk: int) -> Stepper:
        """A forward pass part by part; `outputs` and `final` make tensors of what it gives."""
        return Stepper(self, bound, self._state(carry), chunk)

    def _state(self, carry: Sequence[Tensor]) -> dict[str, Tensor]:
        return {f"carry:{i}": self._as_numbers(leaf) for i, leaf in enumerate(carry)}

    def outputs(self, ys: Mapping[str, Tensor]) -> list[Tensor]:
        return [self._output(ys[f"ys:{k}"], name) for k, name in enumerate(self.plan.ys)]

    def final(self, state: Mapping[str, Tensor], carry: Sequence[Tensor]) -> list[Tensor]:
        """With the shapes and dtypes of `carry`."""
        return [_like(state[f"carry:{i}"], leaf) for i, leaf in enumerate(carry)]

    def backward(
        self,
        bound: Bound,
        kept: Kept,
        schedule: Schedule,
        d_ys: Sequence[Tensor | None],
        d_final: Sequence[Tensor | None],
        chunk: int,
    ) -> dict[str, list[Tensor | None]]:
        """Gradients by kind: "consts", "row_consts", "xs", "carry". No cotangent (None) is a cotangent of zero."""
        batch = bound.batch
        rows = len(batch.lengths)
        carries = [(c, d) for c, d in zip(self.plan.of_kind("carry"), d_final) if c.dtype.is_floating_point]
        state = {f"d_carry:{k}": self._cotangent(d, c.name, rows, own=True) for k, (c, d) in enumerate(carries)}
        sums = {name: tensor.zero_() for name, tensor in self.empty("backward", ("row_sums:",), rows).items()}
        d_xs = self.empty("backward", ("d_xs:",), batch.pairs)
        outputs = zip(d_ys, self.plan.ys, strict=True)
        real = [(d, y) for d, y in outputs if self.plan.values[y].dtype.is_floating_point]
        named = {f"d_ys:{k}": self._cotangent(d, y, batch.pairs, bound.empty) for k, (d, y) in enumerate(real)}
        located = {name: Located(tensor) for name, tensor in {**named, **d_xs}.items()}
        totals = go_back(self, bound, kept, schedule, located, {**state, **sums}, chunk)
        if "after" in self.lowered.by_row:
            after = run_over_rows(self, "after", batch, bound.consts, {**bound.row_consts, **sums}, "after:")
            totals, sums = {**totals, **after.totals}, {**sums, **after.made}
        return self._gradients(bound.consts, totals, {**d_xs, **sums}, state)

    def _gradients(
        self,
        consts: Mapping[str, Tensor],
        totals: Mapping[str, Tensor],
        results: Mapping[str, Tensor],
        state: Mapping[str, Tensor],
    ) -> dict[str, list[Tensor | None]]:
        plan = self.plan
        env = {**consts, **totals}
        for node in plan.after:
            if node.name not in env and ROWS not in node.shape:
                env[node.name] = run_node(node, env, 0)

        def of_row(name: str) -> Tensor:
            return self._shaped(results[f"{'row_sums' if name in plan.row_sums else 'after'}:{name}"], name)

        places = iter(range(len(state)))
        return {
            "consts": [None if n is None else env[n].to(c.dtype) for n, c in zip(plan.d_consts, plan.of_kind("const"))],
            "row_consts": [None if n is None else of_row(n) for n in plan.d_row_consts],
            "xs": [None if n is None else self._shaped(results[f"d_xs:{k}"], n) for k, n in enumerate(plan.d_xs)],
            "carry": [
                self._shaped(state[f"d_carry:{next(places)}"], c.name) if c.dtype.is_floating_point else None
                for c in plan.of_kind("carry")
            ],
        }

    # --- tensors

    def _as_numbers(self, tensor: Tensor, empty: Empty = fresh) -> Tensor:
        """Entries of numbers of the kernel's type; whole numbers, which look up tables, are int64."""
        integer = not tensor.dtype.is_floating_point and tensor.dtype != torch.bool
        wanted = torch.int64 if integer else self.lowered.element
        if tensor.dim() != 2:
            tensor = tensor.reshape(tensor.shape[0], math.prod(tensor.shape[1:]))
        tensor = tensor.detach()
        if tensor.dtype == wanted and tensor.is_contiguous():
            return tensor
        return empty(tensor.shape, wanted).copy_(tensor)

    def _cotangent(self, given: Tensor | None, of: str, count: int, empty: Empty = fresh, own: bool = False) -> Tensor:
        """Of the value `of`; one's own may be written on."""
        if given is not None:
            return self._as_numbers(given).clone() if own else self._as_numbers(given, empty)
        return torch.zeros(count, math.prod(feature_shape(self.plan.shape_of(of))), dtype=self.lowered.element)

    def buffers(self, direction: str) -> dict[str, Buffer]:
        """Every buffer that any form of the direction uses."""
        if direction not in self._buffers:
            programs = (self.program(direction), *self.lowered.staged.get(direction, ()))
            self._buffers[direction] = {name: b for program in programs for name, b in program.buffers.items()}
        return self._buffers[direction]

    def empty(self, direction: str, prefixes: tuple[str, ...], count: int, new: Empty = fresh) -> dict[str, Tensor]:
        """Buffers of a direction with `count` entries each."""
        wanted = ((name, b) for name, b in self.buffers(direction).items() if name.startswith(prefixes))
        return {name: new((count, b.width), self.lowered.dtype(b)) for name, b in wanted}

    @cached_property
    def traces(self) -> dict[int, str]:
        """For each traced carry: the buffer of its values after each step."""
        found = {}
        for i in self.plan.traced:
            following = self.plan.next_carry[i]
            found[i] = f"ys:{self.plan.ys.index(following)}" if following in self.plan.ys else f"trace:{i}"
        return found

    @cached_property
    def outputs_read(self) -> tuple[str, ...]:
        """The outputs that the backward pass reads."""
        if self.lowered.backward is None:
            return ()
        read = set(self.buffers("backward")) | set(self.traces.values())
        read |= {view.base for reduction in self.lowered.reductions for view in reduction.operands}
        return tuple(f"ys:{k}" for k in range(len(self.plan.ys)) if f"ys:{k}" in read)

    @cached_property
    def step_costs(self) -> StepCosts:
        """What one step of one row takes."""
        return StepCosts.of(self)

    @cached_property
    def residual_bytes(self) -> int:
        """Of one pair, outputs left out."""
        kept = [b for name, b in self.buffers("training").items() if name.startswith(("saved:", "trace:"))]
        return sum(b.width * self.lowered.dtype(b).itemsize for b in kept)

    def _output(self, flat: Tensor, name: str) -> Tensor:
        """Rounded values come out in full precision."""
        dtype = self.plan.values[name].dtype
        return self._shaped(flat, name).to(self.lowered.element if dtype.is_floating_point else dtype)

    def _shaped(self, flat: Tensor, name: str) -> Tensor:
        features = feature_shape(self.plan.values[name].shape)
        return flat if len(features) == 1 else flat.view(flat.shape[0], *features)

    def _scratch(self, sums: Mapping[str, OwnSum]) -> int:
        return contraction_scratch([own.contraction for own in sums.values()], self.target, self.element)

    # --- weights

    def packed_size(self, weight: Weight) -> int:
        """Numbers that take the room of the weight in panels."""
        known = self._packed_sizes.get(weight)
        if known is None:
            on_tiles, (_, k, n, _) = self._is_on_tiles(weight), weight
            known = amx_packed_size(k, n) if on_tiles else packed_size(k, n, self.target, self.element)
            self._packed_sizes[weight] = known
        return known

    def pack(self, weight: Weight, const: Tensor, empty: Empty) -> Tensor:
        """A const in panels."""
        const = const.to(self.lowered.element)
        strides = const.stride()
        if 1 not in strides:
            const, strides = const.contiguous(), (weight.n, 1)
        out = empty((self.packed_size(weight),), const.dtype)
        pack = self._packers[self._is_on_tiles(weight)]
        pack(weight.k, weight.n, const.data_ptr(), *strides, out.data_ptr())
        return out

    def _is_on_tiles(self, weight: Weight) -> bool:
        return weight.rounded and self.target.has_amx_bf16

    @cached_property
    def _packers(self) -> list[Callable[..., None]]:
        """`pack_b` and, for tiles, `amx_pack_b`."""
        size, pointer = ctypes.c_int64, ctypes.c_void_p
        names = [full_name(name, self.element) for name in ("pack_b", "amx_pack_b")]
        return [
            library.function(name, size, size, pointer, size, size, pointer)
            for library, name in zip(self.libraries, names)
        ]

    # --- code

    @property
    def machine(self) -> str:
        """What the code is for."""
        where = f"{self.target.cpu}, vectors of {self.target.vector_bytes} bytes"
        if not self.rounds:
            return where
        return f"{where}, products of bfloat16 {'on AMX tiles' if self.target.has_amx_bf16 else 'in float32'}"

    def program(self, direction: str) -> Program:
        programs = {
            "inference": self.lowered.inference,
            "training": self.lowered.training,
            "backward": self.lowered.backward,
            **self.lowered.by_row,
        }
        program = programs[direction]
        assert program is not None, "who asks for gradients has been refused a step without them"
        return program

    def code(self, direction: str, form: int | None = None) -> Code:
        """The machine code of a direction: whole (None), or one of its two programs for few rows."""
        key = (direction, form)
        with self._lock:  # two threads would compile it twice, and one would lose the code that it runs
            if key not in self._code:
                self._code[key] = self._compile(direction, form)
            return self._code[key]

    def _compile(self, direction: str, form: int | None) -> Code:
        program = self.program(direction) if form is None else self.lowered.staged[direction][form]
        module = self._compiled(emit_program(program, self.element, self.target, "worker"))
        return Code(module, module.address("worker"), Layout.of(program, self.lowered.dtype))

    def contractions(self, over: str) -> SumsCode:
        """Of the sums over pairs, or over rows."""
        with self._lock:
            if over not in self._contractions:
                self._contractions[over] = self._contractions_of(self.own_sums[over])
            return self._contractions[over]

    def _contractions_of(self, sums: Mapping[str, OwnSum]) -> SumsCode:
        contractions = [own.contraction for own in sums.values()]
        if are_plain(contractions, self.target):
            module = contractions_library(self.target, self.element)
            return SumsCode(module, module.address("plain"), True)
        module = self._compiled(emit_contractions(contractions, self.element, self.target, "worker"))
        return SumsCode(module, module.address("worker"), False)

    def _compiled(self, module: ir.Module) -> CompiledModule:
        return compile_module(module, self.target, self.libraries, quickly=True)


def _like(flat: Tensor, leaf: Tensor) -> Tensor:
    shaped = flat if leaf.dim() == 2 else flat.view(leaf.shape)
    return shaped.to(leaf.dtype)
