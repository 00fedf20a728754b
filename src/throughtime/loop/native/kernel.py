"""Lowered plan -> machine code, and one call of it: chunk by chunk forwards, block by block backwards."""

import ctypes
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from throughtime._errors import BackendError
from throughtime.capture.graph import Node
from throughtime.capture.interpret import run_node
from throughtime.loop.native.emit import (
    Contraction,
    arguments_of,
    element_type,
    emit_contractions,
    emit_program,
)
from throughtime.loop.native.gemm import outer_scratch, packed_size, products_library
from throughtime.loop.native.jit import CompiledModule, compile_module
from throughtime.loop.native.lower import Lowered, Reduction, lower
from throughtime.loop.native.program import Program
from throughtime.loop.native.target import Target, host_target
from throughtime.loop.native.threads import FIRST_ARGUMENT, run_shares
from throughtime.loop.noise import normal, uniform
from throughtime.plan.loop_plan import LoopPlan

__all__ = ["Batch", "Kept", "NativeKernel"]

BLOCK = 32
"""Steps whose weight gradients are summed at once, in blocks of absolute time, whatever the chunk or the policy."""
BLOCKS_PER_SUM = 16
"""Blocks that one sum runs over before it is added to the total: a sum over a million steps keeps its digits."""


@dataclass(frozen=True)
class Batch:
    """The rows of one call, longest first.

    active, offsets: int64, the running rows and the first pair of each step; offsets has N at its end.
    """

    active: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray
    threads: int

    @property
    def pairs(self) -> int:
        return int(self.offsets[-1])

    def most_pairs(self, window: int) -> int:
        """The most pairs in any chunk of so many steps."""
        marks = np.append(self.offsets[:-1:window], self.offsets[-1])
        return int(np.diff(marks).max(initial=0))

    def shares(self, start: int, stop: int) -> np.ndarray:
        """Bounds of contiguous ranges of rows with about the same number of pairs in these steps."""
        steps = np.clip(self.lengths - start, 0, stop - start)
        done = np.cumsum(steps)
        count = max(1, min(self.threads, int(np.count_nonzero(steps))))
        marks = np.searchsorted(done, done[-1] * np.arange(1, count) / count, side="left") + 1
        return np.concatenate([[0], marks, [len(steps)]]).astype(np.int64)


@dataclass
class Kept:
    """Buffers that the backward pass reads, by name."""

    buffers: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Bound:
    """One call's tensors. consts: by name in the plan. buffers: row consts and xs, by name in the programs."""

    batch: Batch
    consts: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    seed: int | None
    user_rows: np.ndarray | None


class NativeKernel:
    """One plan as machine code for one target. Programs are compiled when they are first needed."""

    def __init__(self, plan: LoopPlan, target: Target | None = None) -> None:
        self.plan = plan
        self.target = target or host_target()
        self.lowered: Lowered = lower(plan)
        self.element = element_type(self.lowered.element)
        self.library = products_library(self.target, self.element)
        self._code: dict[str, CompiledModule] = {}
        _check_reductions(self.lowered.reductions)

    def bind(
        self,
        batch: Batch,
        consts: Sequence[Tensor],
        rows: Sequence[Tensor],
        xs: Sequence[Tensor],
        seed: int | None = None,
        user_rows: np.ndarray | None = None,
    ) -> "Bound":
        """Tensors in the order of the plan's inputs -> what a program reads, by name. Runs what is done once per call.

        seed, user_rows: of the noise, which is keyed by the user's row.
        """
        env = {i.name: tensor.detach() for i, tensor in zip(self.plan.of_kind("const"), consts)}
        for node in self.plan.once:
            env[node.name] = run_node(node, env, 0)
        buffers = {f"row_consts:{k}": self._as_numbers(tensor) for k, tensor in enumerate(rows)}
        buffers |= {f"xs:{k}": self._as_numbers(tensor) for k, tensor in enumerate(xs)}
        return Bound(batch, env, buffers, seed, user_rows)

    def _as_numbers(self, tensor: Tensor) -> Tensor:
        """Rows of numbers of the kernel's type; whole numbers, which look up tables, are int64."""
        integer = not tensor.dtype.is_floating_point and tensor.dtype != torch.bool
        wanted = torch.int64 if integer else self.lowered.element
        return tensor.detach().reshape(len(tensor), math.prod(tensor.shape[1:])).to(wanted).contiguous()

    def forward(
        self, bound: "Bound", carry: Sequence[Tensor], chunk: int, training: bool
    ) -> tuple[list[Tensor], list[Tensor], Kept]:
        """(ys [N, ...], final carry [B, ...], kept)."""
        program = self.lowered.forward if training else self.lowered.inference
        dtype, batch = self.lowered.element, bound.batch
        state = {f"carry:{i}": self._as_numbers(leaf).clone() for i, leaf in enumerate(carry)}
        results = {
            name: torch.empty(batch.pairs, buffer.width, dtype=dtype)
            for name, buffer in program.buffers.items()
            if name.startswith(("ys:", "saved:", "trace:"))
        }
        run = _Run(self, program, "training" if training else "inference", bound)
        run.bind({**bound.buffers, **state, **results}, chunk)
        for start in range(0, len(batch.active), chunk):
            run.steps(start, min(start + chunk, len(batch.active)))
        ys = [self._shaped(results[f"ys:{k}"], name) for k, name in enumerate(self.plan.ys)]
        final = [state[f"carry:{i}"].view(leaf.shape).to(leaf.dtype) for i, leaf in enumerate(carry)]
        if training:
            results |= {f"initial previous:{i}": self._as_numbers(carry[i]) for i in self.plan.traced}
        return ys, final, Kept(results if training else {})

    def backward(
        self, bound: "Bound", kept: Kept, d_ys: Sequence[Tensor | None], d_final: Sequence[Tensor | None]
    ) -> dict[str, list[Tensor | None]]:
        """Gradients by kind: "consts", "row_consts", "xs", "carry". No cotangent (None) is a cotangent of zero."""
        program = self.lowered.backward
        assert program is not None
        batch = bound.batch
        pairs, rows = batch.pairs, len(batch.lengths)
        floating = [i for i, c in enumerate(self.plan.of_kind("carry")) if c.dtype.is_floating_point]
        cotangents = {f"d_ys:{k}": self._cotangent(d, program, f"d_ys:{k}", pairs) for k, d in enumerate(d_ys)}
        state = {
            f"d_carry:{place}": self._cotangent(d_final[i], program, f"d_carry:{place}", rows).clone()
            for place, i in enumerate(floating)
        }
        results = {
            name: torch.zeros(rows if name.startswith("d_row") else pairs, buffer.width, dtype=self.lowered.element)
            for name, buffer in program.buffers.items()
            if name.startswith(("d_row_consts:", "d_xs:"))
        }
        available = {**bound.buffers, **self._kept_by_name(kept), **cotangents, **state, **results}
        run = _Run(self, program, "backward", bound)
        run.bind(available, BLOCK)
        totals = self._contract(run, batch, available)
        return self._gradients(bound.consts, totals, results, state)

    def _cotangent(self, given: Tensor | None, program: Program, name: str, count: int) -> Tensor:
        if given is not None:
            return self._as_numbers(given)
        width = program.buffers[name].width if name in program.buffers else 1
        return torch.zeros(count, width, dtype=self.lowered.element)

    def _kept_by_name(self, kept: Kept) -> dict[str, Tensor]:
        """The state before each step is the trace of the state after the one before."""
        found = dict(kept.buffers)
        for i in self.plan.traced:
            following = self.plan.next_carry[i]
            source = f"ys:{self.plan.ys.index(following)}" if following in self.plan.ys else f"trace:{i}"
            found[f"previous:{i}"] = kept.buffers[source]
        return found

    def _contract(self, run: "_Run", batch: Batch, available: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Walk the blocks backwards; sum what contracts the pairs, block by block."""
        sums = _Sums(self, batch.threads)
        last = (len(batch.active) - 1) // BLOCK
        for block in range(last, -1, -1):
            start, stop = block * BLOCK, min((block + 1) * BLOCK, len(batch.active))
            run.steps(start, stop)
            sums.add({**available, **run.local}, int(batch.offsets[start]), int(batch.offsets[stop]), run.local)
            if block % BLOCKS_PER_SUM == 0:
                sums.flush()
        return sums.totals

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
            env[node.name] = run_node(node, env, 0)

        def named(kind: str, names: Sequence[str | None]) -> list[Tensor | None]:
            return [None if n is None else self._shaped(results[f"{kind}:{k}"], n) for k, n in enumerate(names)]

        places = iter(range(len(state)))
        carries = plan.of_kind("carry")
        return {
            "consts": [None if n is None else env[n].to(c.dtype) for n, c in zip(plan.d_consts, plan.of_kind("const"))],
            "row_consts": named("d_row_consts", plan.d_row_consts),
            "xs": named("d_xs", plan.d_xs),
            "carry": [
                self._shaped(state[f"d_carry:{next(places)}"], c.name) if c.dtype.is_floating_point else None
                for c in carries
            ],
        }

    def _shaped(self, flat: Tensor, name: str) -> Tensor:
        return flat.view(len(flat), *self.plan.values[name].shape[1:])

    def code(self, kind: str) -> CompiledModule:
        if kind not in self._code:
            self._code[kind] = self._compile(kind)
        return self._code[kind]

    def _compile(self, kind: str) -> CompiledModule:
        if kind == "contractions":
            contractions = [c for r in self.lowered.reductions if (c := self.contraction(r))]
            module = emit_contractions(contractions, self.element, self.target, kind)
        else:
            programs = {
                "inference": self.lowered.inference,
                "training": self.lowered.forward,
                "backward": self.lowered.backward,
            }
            program = programs[kind]
            assert program is not None
            module = emit_program(program, self.element, self.target, kind)
        return compile_module(module, self.target, libraries=[self.library])

    def contraction(self, reduction: Reduction) -> Contraction | None:
        """How `outer` and `sum` run as our own products; None for what PyTorch sums (a table's gradient)."""
        widths = reduction.widths
        if reduction.node.op == "outer":
            a, g = reduction.operands[0], reduction.operands[-1]
            m, n = reduction.node.shape
            return Contraction(m, n, a.offset, widths[0], g.offset, widths[-1])
        if reduction.node.op == "sum":
            (g,) = reduction.operands
            return Contraction(0, math.prod(g.shape), 0, 0, g.offset, widths[0])
        return None


def _check_reductions(reductions: Sequence[Reduction]) -> None:
    for reduction in reductions:
        op, views = reduction.node.op, reduction.operands
        if op == "outer":
            fits = all(len(v.shape) == 1 and v.strides[0] == 1 for v in views)
        else:
            fits = op in ("sum", "embedding_dense_backward") and all(v.is_whole for v in views)
        if not fits:
            raise BackendError(f"the gradient sums over rows through '{op}' ({reduction.node}), which has no kernel")


class _Sums:
    """What contracts the pairs: sums over a block, added to sums over blocks, added to totals."""

    def __init__(self, kernel: NativeKernel, threads: int) -> None:
        self.kernel, self.threads = kernel, threads
        dtype = kernel.lowered.element
        self.shapes = {r.node.name: _sum_shape(r) for r in kernel.lowered.reductions}
        self.partial = {name: torch.zeros(shape, dtype=dtype) for name, shape in self.shapes.items()}
        self.totals = {r.node.name: torch.zeros(r.node.shape, dtype=dtype) for r in kernel.lowered.reductions}
        self.own = [(r, c) for r in kernel.lowered.reductions if (c := kernel.contraction(r))]
        size = outer_scratch(kernel.target, kernel.element) * threads
        self.scratch = torch.empty(size, dtype=dtype) if self.own else None

    def add(self, buffers: Mapping[str, Tensor], low: int, high: int, local: Mapping[str, Tensor]) -> None:
        """The pairs [low, high). Buffers in `local` begin at pair `low`."""
        if self.own:
            assert self.scratch is not None
            arguments = [high - low, self.scratch.data_ptr()]
            for reduction, contraction in self.own:
                views = [reduction.operands[0], reduction.operands[-1]]
                places = [_pair_pointer(buffers[v.base], 0 if v.base in local else low) for v in views]
                a = places[0] if contraction.m else 0
                arguments += [a, places[1], self.partial[reduction.node.name].data_ptr()]
            block = (ctypes.c_int64 * (FIRST_ARGUMENT + len(arguments)))(0, self.threads, *arguments)
            worker = self.kernel.code("contractions").address("contractions")
            run_shares(worker, ctypes.addressof(block), self.threads)
        for reduction in self.kernel.lowered.reductions:
            if reduction.node.op == "embedding_dense_backward":
                self._add_to_table(reduction, buffers, low, high, local)

    def _add_to_table(
        self, reduction: Reduction, buffers: Mapping[str, Tensor], low: int, high: int, local: Mapping[str, Tensor]
    ) -> None:
        gradient, index = (
            buffers[v.base][: high - low] if v.base in local else buffers[v.base][low:high] for v in reduction.operands
        )
        table = self.partial[reduction.node.name]
        padding = reduction.node.attributes.get("padding_idx", -1)
        index = index.reshape(-1)
        gradient = gradient.reshape(len(index), -1)
        if padding is not None and padding >= 0:
            gradient = gradient * (index != padding).unsqueeze(-1)
        table.index_add_(0, index, gradient)

    def flush(self) -> None:
        for reduction in self.kernel.lowered.reductions:
            name = reduction.node.name
            self.totals[name] += _finish_sum(reduction.node, self.partial[name], reduction)
            self.partial[name].zero_()


def _sum_shape(reduction: Reduction) -> tuple[int, ...]:
    if reduction.node.op == "sum":
        return tuple(reduction.operands[0].shape)
    return tuple(int(n) for n in reduction.node.shape)


def _finish_sum(node: Node, partial: Tensor, reduction: Reduction) -> Tensor:
    """A sum over rows may run over features too."""
    if node.op != "sum":
        return partial
    axes = [d - 1 for d in node.attributes["dims"] if d > 0]
    return (partial.sum(axes) if axes else partial).reshape(tuple(node.shape))


def _pair_pointer(buffer: Tensor, pair: int) -> int:
    return buffer.data_ptr() + pair * buffer.stride(0) * buffer.element_size()


class _Run:
    """A compiled program bound to the buffers of one call."""

    def __init__(self, kernel: NativeKernel, program: Program, kind: str, bound: "Bound") -> None:
        self.kernel, self.program, self.bound, self.batch = kernel, program, bound, bound.batch
        batch = bound.batch
        self.worker = kernel.code(kind).address(kind)
        self.names = arguments_of(program)
        self.block = (ctypes.c_int64 * (FIRST_ARGUMENT + len(self.names)))()
        self.place = {name: FIRST_ARGUMENT + i for i, name in enumerate(self.names)}
        self.alive: list[object] = []
        self.local: dict[str, Tensor] = {}
        self._bind_consts(bound.consts)
        self._set("active", batch.active.ctypes.data)
        self._set("offsets", batch.offsets.ctypes.data)

    def bind(self, buffers: Mapping[str, Tensor], window: int) -> None:
        """Point at the buffers of the call, and make the scratch. window: steps that run at once, at most."""
        dtype, batch = self.kernel.lowered.element, self.batch
        for name, buffer in self.program.buffers.items():
            if buffer.kind == "const":
                continue
            if buffer.kind == "block":
                tensor = torch.empty(len(batch.lengths), buffer.width, dtype=dtype)
            elif buffer.local:
                tensor = self.local[name] = torch.empty(batch.most_pairs(window), buffer.width, dtype=dtype)
            else:
                tensor = buffers[name]
            self._point(name, tensor)
            if buffer.kind == "previous":
                self._point(f"initial {name}", buffers[f"initial {name}"])

    def steps(self, start: int, stop: int) -> None:
        self._draw_noise(start, stop)
        bounds = self.batch.shares(start, stop)
        first_pair = int(self.batch.offsets[start])
        for name, tensor in self.local.items():
            self._set(name, _pair_pointer(tensor, -first_pair))
        self._set("start", start)
        self._set("stop", stop)
        self._set("first", 0)
        self._set("bounds", bounds.ctypes.data)
        self.block[0], self.block[1] = 0, len(bounds) - 1
        run_shares(self.worker, ctypes.addressof(self.block), len(bounds) - 1)

    def _draw_noise(self, start: int, stop: int) -> None:
        """The same numbers for a pair whenever they are drawn."""
        noises = self.kernel.plan.of_kind("noise")
        if not noises:
            return
        bound, batch = self.bound, self.batch
        assert bound.seed is not None
        assert bound.user_rows is not None
        active = batch.active[start:stop]
        steps = np.repeat(np.arange(start, stop), active)
        rows = bound.user_rows[np.concatenate([np.arange(n) for n in active])]
        places = [torch.from_numpy(rows), torch.from_numpy(steps)]
        for k, noise in enumerate(noises):
            if f"noise:{k}" in self.local:
                draw = normal if noise.distribution == "normal" else uniform
                buffer = self.local[f"noise:{k}"]
                buffer[: len(steps)] = draw(bound.seed, k, *places, buffer.shape[1], buffer.dtype)

    def _bind_consts(self, consts: Mapping[str, Tensor]) -> None:
        dtype = self.kernel.lowered.element
        for name, buffer in self.program.buffers.items():
            if buffer.kind == "const":
                self._point(name, consts[name.removeprefix("const:")].detach().to(dtype).contiguous())
        for name, (k, n) in self.program.weights.items():
            self._point(f"packed {name}", self._pack(consts[name].detach().to(dtype), k, n))

    def _pack(self, weight: Tensor, k: int, n: int) -> Tensor:
        kernel = self.kernel
        packed = torch.empty(packed_size(k, n, kernel.target, kernel.element), dtype=weight.dtype)
        pack = _packer(kernel.library, "f64" if weight.dtype == torch.float64 else "f32")
        pack(k, n, weight.data_ptr(), weight.stride(0), weight.stride(1), packed.data_ptr())
        return packed

    def _point(self, name: str, tensor: Tensor) -> None:
        self.alive.append(tensor)
        self._set(name, tensor.data_ptr())

    def _set(self, name: str, value: int) -> None:
        self.block[self.place[name]] = value


@functools.cache
def _packer(library: CompiledModule, suffix: str) -> Callable[..., None]:
    sizes, pointer = ctypes.c_int64, ctypes.c_void_p
    return library.function(f"pack_b_{suffix}", sizes, sizes, pointer, sizes, sizes, pointer)
