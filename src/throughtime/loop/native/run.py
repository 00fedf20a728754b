"""A compiled program and a call's tensors -> the steps of a chunk, run on the threads."""

import ctypes
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from throughtime.capture.graph import Input
from throughtime.loop.native.batch import Bound, Located
from throughtime.loop.native.emit import PAIRS_AT_ONCE, arguments_of
from throughtime.loop.native.jit import CompiledModule
from throughtime.loop.native.program import Buffer, Program, Weight
from throughtime.loop.native.threads import FIRST_ARGUMENT, run_shares
from throughtime.loop.noise import normal, uniform

if TYPE_CHECKING:
    from throughtime.loop.native.kernel import NativeKernel

__all__ = ["Walker"]


class Walker:
    """One direction of one call, `chunk` steps at a time.

    rows: buffers with one entry per row, which the steps update in place.
    """

    def __init__(
        self, kernel: "NativeKernel", direction: str, bound: Bound, rows: Mapping[str, Tensor], chunk: int
    ) -> None:
        self.kernel, self.direction, self.bound, self.rows = kernel, direction, bound, rows
        self.room = bound.batch.most_pairs(chunk)
        self.local: dict[str, Tensor] = {}
        self._runs: dict[int | None, _Run] = {}

    def steps(
        self, start: int, stop: int, pairs: Mapping[str, Located], first: int, initial: Mapping[str, Tensor]
    ) -> dict[str, Located]:
        """Run the steps [start, stop). `initial` is the state before the step `first`, which `pairs` does not hold.

        Returns the inputs, and the buffers of this chunk only.
        """
        low = int(self.bound.batch.offsets[start])
        form = self._form(start)
        local = dict(self.bound.inputs(start, stop))
        local |= {name: Located(self._room_of(b), low) for run in form for name, b in run.local.items()}
        self._draw_noise(start, stop, local)
        for run in form:
            run.steps(start, stop, {**pairs, **local}, first, initial)
        return local

    def _form(self, start: int) -> list["_Run"]:
        batch = self.bound.batch
        staged = self.kernel.lowered.staged.get(self.direction)
        if staged is None or not batch.has_few_rows(start):
            return [self._run(None, self.kernel.program(self.direction))]
        return [self._run(i, program) for i, program in enumerate(staged)]

    def _run(self, form: int | None, program: Program) -> "_Run":
        if form not in self._runs:
            self._runs[form] = _Run(self, program, self.kernel.code(self.direction, form))
        return self._runs[form]

    def _room_of(self, buffer: Buffer) -> Tensor:
        """With room for any steps that may come, so that none is made anew while the one before is in use."""
        if buffer.name not in self.local:
            dtype = self.kernel.lowered.dtype(buffer)
            self.local[buffer.name] = self.bound.empty((self.room, buffer.width), dtype)
        return self.local[buffer.name]

    def packed(self, weight: Weight) -> Tensor:
        """A weight in panels, packed once per call."""
        packed = self.bound.constants.packed
        if weight.label not in packed:
            const = self.bound.consts[weight.const].detach()
            packed[weight.label] = self.kernel.pack(weight, const, self.bound.empty)
        return packed[weight.label]

    def _draw_noise(self, start: int, stop: int, local: Mapping[str, Located]) -> None:
        """The same numbers for a pair whenever they are drawn."""
        bound = self.bound
        for k, noise in enumerate(self.kernel.plan.of_kind("noise")):
            if f"noise:{k}" not in local:
                continue
            assert bound.seed is not None
            assert bound.user_rows is not None
            active = bound.batch.active[start:stop]
            steps = np.repeat(np.arange(start, stop), active)
            rows = bound.user_rows[np.concatenate([np.arange(n) for n in active])]
            draw = normal if noise.distribution == "normal" else uniform
            buffer = local[f"noise:{k}"].tensor
            places = (torch.from_numpy(rows), torch.from_numpy(steps))
            buffer[: len(steps)] = draw(bound.seed, _operator(noise), *places, buffer.shape[1], buffer.dtype)


def _operator(noise: Input) -> int:
    """The place of a random operator among those of the step: "noise_1" is the first."""
    return int(noise.name.rsplit("_", 1)[1]) - 1


class _Run:
    """One program's block of arguments."""

    def __init__(self, walker: Walker, program: Program, code: CompiledModule) -> None:
        self.program, self.batch = program, walker.bound.batch
        self.worker = code.address("worker")
        names = arguments_of(program)
        self.block = (ctypes.c_int64 * (FIRST_ARGUMENT + len(names)))()
        self.place = {name: FIRST_ARGUMENT + i for i, name in enumerate(names)}
        self.bounds = (ctypes.c_int64 * (self.batch.threads + 1))()
        self.alive: list[object] = [code]
        self.by_pair = [name for name, b in program.buffers.items() if b.kind in ("pair", "previous")]
        self.previous = [name for name, b in program.buffers.items() if b.kind == "previous"]
        self.local = {name: b for name, b in program.buffers.items() if b.local}
        self._bind(walker)

    def _bind(self, walker: Walker) -> None:
        """What stays where it is for the whole call. The walker holds its runs, so they must not hold the walker."""
        lowered = walker.kernel.lowered
        self._set("bounds", ctypes.addressof(self.bounds))
        self._set("active", self.batch.active.ctypes.data)
        self._set("offsets", self.batch.offsets.ctypes.data)
        rows = {**walker.bound.row_consts, **walker.rows}
        for name, buffer in self.program.buffers.items():
            if buffer.kind == "const":
                const = walker.bound.consts[name.removeprefix("const:")].detach()
                self._point(name, const.to(lowered.dtype(buffer)).contiguous())
            elif buffer.kind == "block":
                self._point(name, walker.bound.empty((self._scratch_rows(), buffer.width), lowered.dtype(buffer)))
            elif buffer.kind == "row":
                self._point(name, rows[name])
        for label, weight in self.program.weights.items():
            self._point(f"packed {label}", walker.packed(weight))

    def _scratch_rows(self) -> int:
        return PAIRS_AT_ONCE * self.batch.threads if self.program.over == "pairs" else len(self.batch.lengths)

    def steps(
        self, start: int, stop: int, pairs: Mapping[str, Located], first: int, initial: Mapping[str, Tensor]
    ) -> None:
        over_pairs = self.program.over == "pairs"
        bounds = (self.batch.pair_shares if over_pairs else self.batch.shares)(start, stop)
        for name in self.by_pair:
            self._set(name, pairs[name].pointer_to(0))
        for name in self.previous:
            self._set(f"initial {name}", initial[name].data_ptr())
        for name, value in (("start", start), ("stop", stop), ("first", first)):
            self._set(name, value)
        shares = len(bounds) - 1
        self.bounds[: shares + 1] = bounds
        self.block[0], self.block[1] = 0, shares
        run_shares(self.worker, ctypes.addressof(self.block), shares)

    def _point(self, name: str, tensor: Tensor) -> None:
        self.alive.append(tensor)
        self._set(name, tensor.data_ptr())

    def _set(self, name: str, value: int) -> None:
        self.block[self.place[name]] = value
