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

    def forward(
        self,
        batch: Batch,
        consts: Mapping[str, Tensor],
        pairs: Mapping[str, Tensor],
        rows: Mapping[str, Tensor],
        carry: Sequence[Tensor],
        chunk: int,
        training: bool,
    ) -> tuple[list[Tensor], list[Tensor], Kept]:
        """(ys [N, ...], final carry [B, ...], kept). pairs: "xs:0", ...; rows: "row_consts:0", ..."""
        program = self.lowered.forward if training else self.lowered.inference
        dtype, count = self.lowered.element, batch.pairs
        state = {f"carry:{i}": leaf.to(dtype, copy=True).contiguous() for i, leaf in enumerate(carry)}
        results = {
            name: torch.empty(count, buffer.width, dtype=dtype)
            for name, buffer in program.buffers.items()
            if buffer.kind == "pair" and name not in pairs
        }
        run = _Run(self, program, "training" if training else "inference", batch, consts)
        run.bind({**pairs, **rows, **state, **results})
        for start in range(0, len(batch.active), chunk):
            run.steps(start, min(start + chunk, len(batch.active)))
        ys = [self._shaped(results[f"ys:{k}"], name) for k, name in enumerate(self.plan.ys)]
        final = [state[f"carry:{i}"] for i in range(len(carry))]
        initial = {f"initial previous:{i}": carry[i].to(dtype).contiguous() for i in self.plan.traced} if training else {}
        return ys, final, Kept({**results, **initial})

    def backward(
        self,
        batch: Batch,
        consts: Mapping[str, Tensor],
        pairs: Mapping[str, Tensor],
        rows: Mapping[str, Tensor],
        kept: Kept,
        d_ys: Sequence[Tensor],
        d_final: Sequence[Tensor],
    ) -> dict[str, list[Tensor | None]]:
        """Gradients by kind: "consts", "row_consts", "xs", "carry"; d_final for the floating carries."""
        program = self.lowered.backward
        assert program is not None
        dtype = self.lowered.element
        cotangents = {f"d_ys:{k}": d.to(dtype).contiguous() for k, d in enumerate(d_ys)}
        state = {f"d_carry:{i}": d.to(dtype, copy=True).contiguous() for i, d in enumerate(d_final)}
        sums = {
            name: torch.zeros(len(batch.lengths), buffer.width, dtype=dtype)
            for name, buffer in program.buffers.items()
            if name.startswith("d_row_consts:")
        }
        gradients = {
            name: torch.empty(batch.pairs, buffer.width, dtype=dtype)
            for name, buffer in program.buffers.items()
            if name.startswith("d_xs:")
        }
        available = {**pairs, **rows, **self._kept_by_name(kept), **cotangents, **state, **sums, **gradients}
        run = _Run(self, program, "backward", batch, consts)
        run.bind(available)
        totals = self._contract(run, batch, available)
        return self._gradients(consts, totals, gradients, sums, state)

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
        gradients: Mapping[str, Tensor],
        sums: Mapping[str, Tensor],
        state: Mapping[str, Tensor],
    ) -> dict[str, list[Tensor | None]]:
        plan = self.plan
        env = {**consts, **totals}
        for node in plan.after:
            env[node.name] = run_node(node, env)
        floating = [c.dtype.is_floating_point for c in plan.of_kind("carry")]
        places = iter(range(sum(floating)))
        return {
            "consts": [None if name is None else env[name] for name in plan.d_consts],
            "row_consts": [
                None if name is None else self._shaped(sums[f"d_row_consts:{k}"], name)
                for k, name in enumerate(plan.d_row_consts)
            ],
            "xs": [
                None if name is None else self._shaped(gradients[f"d_xs:{k}"], name) for k, name in enumerate(plan.d_xs)
            ],
            "carry": [state[f"d_carry:{next(places)}"] if is_float else None for is_float in floating],
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
        assert self.lowered.backward is not None
        widths = {name: b.width for name, b in self.lowered.backward.buffers.items()}
        widths |= {f"xs:{k}": math.prod(x.shape[1:]) for k, x in enumerate(self.plan.of_kind("xs"))}
        if reduction.node.op == "outer":
            a, g = reduction.operands[0], reduction.operands[-1]
            m, n = reduction.node.shape
            return Contraction(m, n, a.offset, widths[a.base], g.offset, widths[g.base])
        if reduction.node.op == "sum":
            (g,) = reduction.operands
            return Contraction(0, math.prod(g.shape), 0, 0, g.offset, widths[g.base])
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

    def __init__(
        self, kernel: NativeKernel, program: Program, kind: str, batch: Batch, consts: Mapping[str, Tensor]
    ) -> None:
        self.kernel, self.program, self.batch = kernel, program, batch
        self.worker = kernel.code(kind).address(kind)
        self.names = arguments_of(program)
        self.block = (ctypes.c_int64 * (FIRST_ARGUMENT + len(self.names)))()
        self.place = {name: FIRST_ARGUMENT + i for i, name in enumerate(self.names)}
        self.alive: list[object] = []
        self.local: dict[str, Tensor] = {}
        self._bind_consts(consts)
        self._set("active", batch.active.ctypes.data)
        self._set("offsets", batch.offsets.ctypes.data)

    def bind(self, buffers: Mapping[str, Tensor]) -> None:
        """Point at the buffers of the call, and make the scratch."""
        dtype, batch = self.kernel.lowered.element, self.batch
        for name, buffer in self.program.buffers.items():
            if buffer.kind == "const":
                continue
            if buffer.kind == "block":
                tensor = torch.empty(len(batch.lengths), buffer.width, dtype=dtype)
            elif buffer.local:
                steps = range(0, len(batch.active), BLOCK)
                longest = max((int(batch.offsets[min(t + BLOCK, len(batch.active))] - batch.offsets[t]) for t in steps))
                tensor = self.local[name] = torch.empty(longest, buffer.width, dtype=dtype)
            else:
                tensor = buffers[name]
            self._point(name, tensor)
            if buffer.kind == "previous":
                self._point(f"initial {name}", buffers[f"initial {name}"])

    def steps(self, start: int, stop: int) -> None:
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


