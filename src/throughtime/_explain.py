"""A call that is not made -> what it would do: stages, residuals, memory, work, backend, refusals and why."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from throughtime._nested import Nested, map_leaves
from throughtime._pipeline import Compiled, Refusal, Run, find_loop, forecast, wants_gradients
from throughtime._sequence import Ragged, read_reset, read_sequence
from throughtime._types import Backend, Cell
from throughtime._unroll import CHUNK, Options, check_options, prepare, read_memory
from throughtime.capture import Node
from throughtime.capture.graph import format_shape
from throughtime.plan.arithmetic import operations_of
from throughtime.plan.loop_plan import LoopPlan, Stage
from throughtime.plan.memory import MemoryPolicy
from throughtime.plan.operators import PRODUCTS, VIEWS

__all__ = ["Explanation", "Product", "Residual", "StageReport", "Work", "explain"]

Direction = Literal["forward", "backward"]


@dataclass(frozen=True)
class Product:
    """A matrix product or a convolution; `operations` for one row and step."""

    name: str
    operands: str
    operations: int

    def __str__(self) -> str:
        return f"{self.name} = {self.operands}"


@dataclass(frozen=True)
class StageReport:
    """Part of a step. `carries`: the states that make it a loop. `others`: values that are no products."""

    direction: Direction
    kind: Literal["batched", "loop"]
    carries: tuple[str, ...]
    products: tuple[Product, ...]
    others: int
    operations: int

    @property
    def why(self) -> str:
        before, awaited = ("before", "state") if self.direction == "forward" else ("after", "gradient of a state")
        if self.kind == "loop":
            return f"step by step, because each needs {_listed(self.carries)} of the step {before}"
        return f"many steps at once, because it needs no {awaited} that is still to come"


@dataclass(frozen=True)
class Residual:
    """What the backward pass reads of each row and step."""

    name: str
    kind: Literal["saved", "state", "output"]
    bytes: int


@dataclass(frozen=True)
class Work:
    """Floating-point operations: of the real steps, and what the same on the padding would add (it is not done)."""

    real: int
    padding: int


@dataclass(frozen=True)
class Explanation:
    """What a call would do; `str` of it is one page.

    backend: None where the call would raise an error.
    pairs, padded_pairs: real (row, step) pairs, and rows times steps.
    as_one: whether machine code runs batched stages within the steps of its loops, as it does with many rows.
    once: what is computed once a call. sums: what becomes the weights' gradients, after or between the stages.
    memory: the policy, and what it chose. peak_bytes: the most that the call and its backward pass allocate at once,
        beside inputs, outputs and gradients. None where nothing is kept, or nobody can tell.
    forward, backward: None where there is no plan, or no gradient is wanted.
    refusals: what cannot run the cell, and why. dropped: attributes that the step writes, which a run leaves alone.
    """

    cell: str
    rows: int
    steps: int
    pairs: int
    padded_pairs: int
    backend: Literal["native", "portable"] | None
    machine: str
    threads: int
    as_one: bool
    stages: tuple[StageReport, ...]
    once: tuple[str, ...]
    sums: tuple[Product, ...]
    residuals: tuple[Residual, ...]
    output_bytes: int | None
    memory: str | None
    peak_bytes: int | None
    forward: Work | None
    backward: Work | None
    refusals: tuple[str, ...]
    dropped: tuple[str, ...] = ()

    @property
    def kept_bytes(self) -> int:
        """What a forward pass keeps that keeps everything, beside its outputs."""
        return self.pairs * sum(r.bytes for r in self.residuals if r.kind != "output")

    def __str__(self) -> str:
        parts = [self._head(), self._stages(), self._kept(), self._work(), self._refused()]
        return "\n\n".join("\n".join(part) for part in parts if part)

    def _head(self) -> list[str]:
        share = f"{self.pairs} real steps of {self.padded_pairs}"
        lines = [f"{self.cell}: {self.rows} rows, up to {self.steps} steps, {share}"]
        if self.backend is None:
            lines.append("backend: none; the call raises an error")
        else:
            how = f"machine code for {self.machine}" if self.backend == "native" else "step by step in PyTorch"
            lines.append(f"backend: {self.backend}, {how}, threads: {self.threads}")
        return lines

    def _stages(self) -> list[str]:
        lines = ["once a call", *(f"    {line}" for line in self.once)] if self.once else []
        for direction in ("forward", "backward"):
            for stage in (s for s in self.stages if s.direction == direction):
                lines.append(f"{direction}: {stage.why}")
                lines += [f"    {product}" for product in stage.products]
                if stage.others:
                    lines.append(f"    values besides products: {stage.others}")
        if self.as_one:
            lines.append("with so many rows, what needs no state runs within the steps too")
        if self.sums:
            lines += [
                "weights: sums over all real steps, out of the loop",
                *(f"    {product}" for product in self.sums),
            ]
        return lines

    def _kept(self) -> list[str]:
        if self.output_bytes is None:
            return []
        lines = [f"outputs: {_bytes(self.output_bytes)}"]
        if self.memory is None:
            return lines
        lines.append(f"for the backward pass: {_bytes(self.kept_bytes)} of residuals; {self.memory}")
        lines += [f"    {r.name:<24} {r.kind:<8} {r.bytes} bytes a row and step" for r in self.residuals]
        if self.peak_bytes is not None:
            lines.append(f"at most at once, beside inputs, outputs and gradients: {_bytes(self.peak_bytes)}")
        return lines

    def _work(self) -> list[str]:
        named = (("forward", self.forward), ("backward", self.backward))
        return [
            f"{name}: {_operations(work.real)} for real steps; padding would add {_operations(work.padding)}"
            for name, work in named
            if work is not None
        ]

    def _refused(self) -> list[str]:
        lines = [f"refused: {reason}" for reason in self.refusals]
        if self.dropped:
            lines.append(f"written by the step, and left as it was by a run: {_listed(self.dropped)}")
        return lines


def explain(
    cell: Cell,
    inputs: Nested,
    sequence_length: Sequence[int] | Tensor | None = None,
    initial_state: Nested = None,
    dtype: torch.dtype | None = None,
    parallel_iterations: int | None = None,
    swap_memory: bool = False,
    time_major: bool = False,
    *,
    reset: Any = None,
    reset_state: Nested = None,
    memory: MemoryPolicy | None = None,
    backend: Backend = "auto",
) -> Explanation:
    """What `dynamic_rnn` would do with the same arguments; `print(explain(cell, inputs))` is one page.

    The cell is traced, as for the call, but not run on the inputs: nothing is computed from them, a cell without sizes
    keeps none, and no random number is used up. Arguments and errors are those of `dynamic_rnn`.

    Returns:
        An Explanation: stages with what is sequential and why, what left the loop, what is kept, memory, work, and the
        backend, with what was refused and why.

    >>> import torch, throughtime
    >>> page = throughtime.explain(throughtime.GRUCell(4), torch.randn(3, 5, 2), sequence_length=[5, 1, 3])
    >>> page.backend, page.pairs, page.padded_pairs
    ('native', 9, 15)
    >>> [stage.carries for stage in page.stages if stage.kind == "loop" and stage.direction == "forward"]
    [('state',)]
    """
    check_options(cell, parallel_iterations, backend)
    ragged = read_sequence(inputs, sequence_length, time_major)
    mask = None if reset is None else read_reset(reset, ragged, time_major)
    del inputs, sequence_length, reset
    options = Options(dtype, parallel_iterations or CHUNK, backend, read_memory(swap_memory, memory))
    with torch.random.fork_rng(devices=[]):
        twin = copy.deepcopy(cell) if _is_unsized(cell) else cell
        request = prepare(twin, _blank(ragged), initial_state, mask, reset_state, options)
        return _explained(cell, request)


def _is_unsized(cell: Any) -> bool:
    return isinstance(cell, nn.Module) and any(map(is_lazy, cell.parameters()))


def _blank(ragged: Ragged) -> Ragged:
    """Zeros in place of the inputs, which take no room. Tensors of other kinds stay, so that they are refused."""

    def zeros(leaf: Tensor) -> Tensor:
        if type(leaf) is not Tensor:
            return leaf
        return leaf.detach().new_zeros(()).expand(leaf.shape).requires_grad_(leaf.requires_grad)

    return replace(ragged, xs=map_leaves(zeros, ragged.xs))


def _explained(cell: Any, request: Run) -> Explanation:
    ragged = request.ragged
    steps = ragged.steps if ragged.padded_steps is None else ragged.padded_steps
    loop, consts = find_loop(request) if ragged.steps else (Refusal("no row has a step to run", "call"), [])
    trained = wants_gradients(request, consts or _weights(cell))
    backend, refusals = _choice(request, loop, trained)
    outlook = forecast(request, loop, trained) if isinstance(loop, Compiled) and backend == "native" else None
    report = _Report(loop.plan, int(ragged.lengths.sum()), ragged.batch_size * steps, trained)
    return Explanation(
        cell=_word(cell),
        rows=ragged.batch_size,
        steps=steps,
        pairs=report.pairs,
        padded_pairs=report.padded_pairs,
        backend=backend,
        machine="PyTorch" if outlook is None else outlook.machine,
        threads=torch.get_num_threads(),
        as_one=outlook is not None and outlook.as_one,
        stages=report.stages(),
        once=report.once(),
        sums=report.sums(),
        residuals=report.residuals() if outlook is not None and trained else (),
        output_bytes=report.output_bytes(),
        memory=None if outlook is None else outlook.memory,
        peak_bytes=None if outlook is None else outlook.peak_bytes,
        forward=report.work("forward"),
        backward=report.work("backward") if trained else None,
        refusals=refusals,
        dropped=loop.trace.dropped if isinstance(loop, Compiled) else (),
    )


def _choice(
    request: Run, loop: Compiled | Refusal, trained: bool
) -> tuple[Literal["native", "portable"] | None, tuple[str, ...]]:
    """The backend, and what was refused on the way to it."""
    refusal = loop.forward_only if isinstance(loop, Compiled) and trained else loop
    if isinstance(refusal, Refusal):
        refusals = (f"native, {_WHERE[refusal.stage]}: {refusal.reason}",)
        return (None if request.backend == "native" else "portable"), refusals
    if request.backend == "portable":
        return "portable", ("native: backend='portable' was asked for",)
    return "native", ()


_WHERE = {
    "call": "for this call",
    "capture": "when the step was traced",
    "plan": "when it was planned",
    "native": "when machine code was made",
}


class _Report:
    """A plan in numbers."""

    def __init__(self, plan: LoopPlan | None, pairs: int, padded_pairs: int, trained: bool) -> None:
        self.plan, self.pairs, self.padded_pairs, self.trained = plan, pairs, padded_pairs, trained
        self.values = {} if plan is None else plan.values

    def stages(self) -> tuple[StageReport, ...]:
        if self.plan is None:
            return ()
        forward = tuple(self._stage("forward", stage) for stage in self.plan.forward)
        return (*forward, *(self._stage("backward", stage) for stage in self.plan.backward if self.trained))

    def _stage(self, direction: Direction, stage: Stage) -> StageReport:
        products = tuple(self._product(node) for node in stage.nodes if node.op in PRODUCTS)
        operations = sum(operations_of(node, self.values) for node in stage.nodes)
        others = sum(node.op not in PRODUCTS and node.op not in VIEWS for node in stage.nodes)
        return StageReport(direction, stage.kind, stage.carries, products, others, operations)

    def _product(self, node: Node) -> Product:
        operands = (f"{name} {format_shape(self.values[name].shape)}" for name in node.operands)
        return Product(node.name, f"{node.op}({', '.join(operands)})", operations_of(node, self.values))

    def once(self) -> tuple[str, ...]:
        """Views of weights by their number, the rest one by one."""
        nodes = () if self.plan is None else self.plan.once
        views = sum(node.op in VIEWS for node in nodes)
        shown = tuple(str(node) for node in nodes if node.op not in VIEWS)
        return (*shown, f"{views} views of weights") if views else shown

    def sums(self) -> tuple[Product, ...]:
        return tuple(map(self._product, self.plan.reductions)) if self.plan is not None and self.trained else ()

    def residuals(self) -> tuple[Residual, ...]:
        """Outputs that are kept are there anyway."""
        assert self.plan is not None
        carries = [(self.plan.of_kind("carry")[i].path, self.plan.next_carry[i]) for i in self.plan.traced]
        found = [Residual(name, "saved", self._bytes(name)) for name in self.plan.saved]
        return (
            *found,
            *(
                Residual(path, "output" if name in self.plan.ys else "state", self._bytes(name))
                for path, name in carries
            ),
        )

    def _bytes(self, name: str) -> int:
        value = self.values[name]
        return math.prod(int(n) for n in value.shape[1:]) * value.dtype.itemsize

    def output_bytes(self) -> int | None:
        return None if self.plan is None else self.padded_pairs * sum(map(self._bytes, self.plan.ys))

    def work(self, direction: Direction) -> Work | None:
        if self.plan is None:
            return None
        operations = sum(stage.operations for stage in self.stages() if stage.direction == direction)
        if direction == "backward":
            operations += sum(product.operations for product in self.sums())
        return Work(operations * self.pairs, operations * (self.padded_pairs - self.pairs))


def _weights(cell: Any) -> list[Tensor]:
    """Of a cell that was not traced, as far as one can tell."""
    return list(cell.parameters()) if isinstance(cell, nn.Module) else []


def _word(cell: Any) -> str:
    return getattr(cell, "__name__", None) or type(cell).__name__


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _number(count: float, units: Sequence[str], base: int) -> str:
    """`12.3 MB`: three digits and a unit."""
    for unit in units[:-1]:
        if count < base:
            return f"{count:.4g} {unit}"
        count /= base
    return f"{count:.4g} {units[-1]}"


def _bytes(count: int) -> str:
    return _number(count, ("bytes", "KB", "MB", "GB", "TB"), 1000)


def _operations(count: int) -> str:
    return _number(count, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP"), 1000)
