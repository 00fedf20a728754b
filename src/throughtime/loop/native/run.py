"""A compiled program and a call's tensors -> the steps of a chunk, run on the threads."""

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

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

__all__ = ["Code", "Layout", "Walker"]


@dataclass(frozen=True)
class Layout:
    """A program's block of arguments: what stands where in it. The same for all calls.

    by_pair, previous (of their initial states), rows: name, place. consts: name, dtype, place. scratch: width, dtype,
    place. weights: each with its place. local: name, width, dtype of the buffers of a chunk.
    """

    size: int
    over_pairs: bool
    place: dict[str, int]
    by_pair: tuple[tuple[str, int], ...]
    previous: tuple[tuple[str, int], ...]
    rows: tuple[tuple[str, int], ...]
    consts: tuple[tuple[str, torch.dtype, int], ...]
    scratch: tuple[tuple[int, torch.dtype, int], ...]
    weights: tuple[tuple[Weight, int], ...]
    local: tuple[tuple[str, int, torch.dtype], ...]

    @classmethod
    def of(cls, program: Program, dtype_of: Callable[[Buffer], torch.dtype]) -> "Layout":
        place = {name: FIRST_ARGUMENT + i for i, name in enumerate(arguments_of(program))}

        def of_kind(*kinds: str) -> list[tuple[str, Buffer]]:
            return [(name, b) for name, b in program.buffers.items() if b.kind in kinds]

        return cls(
            FIRST_ARGUMENT + len(place),
            program.over == "pairs",
            place,
            tuple((name, place[name]) for name, _ in of_kind("pair", "previous")),
            tuple((name, place[f"initial {name}"]) for name, _ in of_kind("previous")),
            tuple((name, place[name]) for name, _ in of_kind("row")),
            tuple((name.removeprefix("const:"), dtype_of(b), place[name]) for name, b in of_kind("const")),
            tuple((b.width, dtype_of(b), place[name]) for name, b in of_kind("block")),
            tuple((weight, place[f"packed {label}"]) for label, weight in program.weights.items()),
            tuple((name, b.width, dtype_of(b)) for name, b in program.buffers.items() if b.local),
        )


class Code(NamedTuple):
    """A program in machine code: its worker's address, and how the worker is called."""

    module: CompiledModule
    worker: int
    layout: Layout


class Walker:
    """One direction of one call, `chunk` steps at a time.

    rows: buffers with one entry per row, which the steps update in place.
    """

    def __init__(
        self, kernel: "NativeKernel", direction: str, bound: Bound, rows: Mapping[str, Tensor], chunk: int
    ) -> None:
        self.kernel, self.direction, self.bound, self.rows, self.chunk = kernel, direction, bound, rows, chunk
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
        for run in form:
            for name, width, dtype in run.layout.local:
                local[name] = Located(self._room_of(name, width, dtype), low)
        self._draw_noise(start, stop, local)
        for run in form:
            run.steps(start, stop, {**pairs, **local}, first, initial)
        return local

    def _form(self, start: int) -> list["_Run"]:
        few = self.direction in self.kernel.lowered.staged and self.bound.batch.has_few_rows(start)
        return [self._run(form) for form in ((0, 1) if few else (None,))]

    def _run(self, form: int | None) -> "_Run":
        if form not in self._runs:
            self._runs[form] = _Run(self, self.kernel.code(self.direction, form))
        return self._runs[form]

    def _room_of(self, name: str, width: int, dtype: torch.dtype) -> Tensor:
        """With room for any steps that may come, so that none is made anew while the one before is in use."""
        if name not in self.local:
            self.local[name] = self.bound.empty((self._most_pairs, width), dtype)
        return self.local[name]

    @cached_property
    def _most_pairs(self) -> int:
        return self.bound.batch.most_pairs(self.chunk)

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

    def __init__(self, walker: Walker, code: Code) -> None:
        self.layout, self.batch, self.worker = code.layout, walker.bound.batch, code.worker
        self.bounds = (ctypes.c_int64 * (self.batch.threads + 1))()
        self.alive: list[object] = [code]
        self.block = self._bind(walker)

    def _bind(self, walker: Walker) -> ctypes.Array:
        """What stays where it is for the whole call. The walker holds its runs, so they must not hold the walker."""
        layout, bound, batch = self.layout, walker.bound, self.batch
        block, place = [0] * layout.size, layout.place
        block[place["bounds"]] = ctypes.addressof(self.bounds)
        block[place["active"]], block[place["offsets"]] = batch.addresses
        tensors = [(at, self._row(walker, name)) for name, at in layout.rows]
        tensors += [(at, bound.consts[name].to(dtype).contiguous()) for name, dtype, at in layout.consts]
        if layout.scratch:
            rows = PAIRS_AT_ONCE * batch.threads if layout.over_pairs else len(batch.lengths)
            tensors += [(at, bound.empty((rows, width), dtype)) for width, dtype, at in layout.scratch]
        tensors += [(at, walker.packed(weight)) for weight, at in layout.weights]
        for at, tensor in tensors:
            block[at] = tensor.data_ptr()
        self.alive += tensors
        return (ctypes.c_int64 * layout.size)(*block)

    @staticmethod
    def _row(walker: Walker, name: str) -> Tensor:
        return walker.rows[name] if name in walker.rows else walker.bound.row_consts[name]

    def steps(
        self, start: int, stop: int, pairs: Mapping[str, Located], first: int, initial: Mapping[str, Tensor]
    ) -> None:
        layout, block = self.layout, self.block
        bounds = (self.batch.pair_shares if layout.over_pairs else self.batch.shares)(start, stop)
        for name, at in layout.by_pair:
            block[at] = pairs[name].pointer_to(0)
        for name, at in layout.previous:
            block[at] = initial[name].data_ptr()
        place = layout.place
        block[place["start"]], block[place["stop"]], block[place["first"]] = start, stop, first
        shares = len(bounds) - 1
        self.bounds[: shares + 1] = bounds
        block[0], block[1] = 0, shares
        run_shares(self.worker, ctypes.addressof(block), shares)
