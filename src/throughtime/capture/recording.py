"""A call of the step and of its gradient on shapes -> the operators that ran, and what is what."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.autograd.graph import _engine_run_backward
from torch.utils._python_dispatch import _disable_current_modes

from throughtime._errors import CaptureError
from throughtime._nested import Nested, Structure, flatten, leaves, leaves_with_paths, unflatten
from throughtime._state import check_output, split_result
from throughtime.capture.generators import Generators
from throughtime.capture.graph import ROWS, Input, InputKind, Shape
from throughtime.capture.names import Names
from throughtime.capture.reach import Route
from throughtime.capture.rowcount import rows_are
from throughtime.capture.rows import list_sizes
from throughtime.capture.shape_rules import empty_like
from throughtime.capture.shapes import Shapes
from throughtime.capture.stand_ins import StandIns
from throughtime.capture.tape import Call, Tape, shown_line

__all__ = ["Const", "Recording", "StepCall", "record", "rehearse"]


@dataclass(frozen=True, slots=True)
class Const:
    """A tensor that the cell closes over. `read(cell)` gives the one that is there now."""

    path: str
    read: Callable[[Any], Tensor]
    by_reference: bool = False
    """No path leads to it from the cell: the tensor itself is kept, and a new one in its place would go unseen."""


@dataclass(frozen=True)
class StepCall:
    """The cell and examples of what it is given."""

    cell: Any
    xs: Nested
    state: Nested
    row_consts: Nested

    @property
    def arguments(self) -> tuple[Nested, ...]:
        return (self.xs, self.state, self.row_consts) if leaves(self.row_consts) else (self.xs, self.state)


@dataclass(frozen=True)
class Recording:
    """Every tensor in it is a shape."""

    shapes: Shapes
    calls: Sequence[Call]
    inputs: Sequence[tuple[Tensor, Input]]
    consts: tuple[Const, ...]
    ys: Sequence[Tensor]
    next_carry: Sequence[Tensor]
    gradients: Mapping[str, Tensor]
    """By the name of the input."""
    ys_structure: Structure
    state_structure: Structure
    dropped: tuple[str, ...]


def rehearse(call: StepCall, rows: int, routes: Mapping[int, Route]) -> list[float]:
    """The step alone, without a record: the numbers that it computed with."""
    recorder = _Recorder(call, rows, routes, ())
    with recorder.shapes:
        recorder.step()
    return recorder.numbers


def record(
    call: StepCall,
    rows: int,
    routes: Mapping[int, Route],
    kept: Sequence[tuple[Tensor, str]],
    rehearsed: Sequence[float] = (),
) -> Recording:
    """`routes`: paths to tensors by id. `kept`: what an earlier run left on the cell, and where: not to be read."""
    recorder = _Recorder(call, rows, routes, kept)
    tape, generators = Tape(), Generators()
    with recorder.shapes, tape:
        output, next_state = recorder.step()
        ys, ys_structure = flatten(output)
        next_carry, state_structure = flatten(next_state)
        gradients = recorder.gradients(ys, next_carry)
    generators.refuse_draws()
    recorder.refuse_other_numbers(rehearsed)
    recorder.refuse_writes(tape.calls)
    consts = tuple(recorder.consts)
    return Recording(
        recorder.shapes,
        tape.calls,
        recorder.inputs,
        consts,
        ys,
        next_carry,
        gradients,
        ys_structure,
        state_structure,
        tuple(sorted({path for _, path in kept})),
    )


class _Recorder:
    def __init__(
        self, call: StepCall, rows: int, routes: Mapping[int, Route], kept: Sequence[tuple[Tensor, str]]
    ) -> None:
        self.shapes = Shapes()
        self.consts: list[Const] = []
        self.numbers: list[float] = []
        self._call = call
        self._rows = rows
        self._routes = routes
        self._kept = kept
        self._kept_paths = {id(tensor): path for tensor, path in kept}
        self._names = Names()
        self._stand_ins = StandIns(self._const, self._refuse_kept, routes)
        self._inputs: dict[InputKind, list[tuple[Tensor, Input]]] = {}

    @property
    def inputs(self) -> list[tuple[Tensor, Input]]:
        kinds: tuple[InputKind, ...] = ("const", "row_const", "xs", "carry", "d_ys", "d_next_carry")
        return [pair for kind in kinds for pair in self._inputs.get(kind, ())]

    def step(self) -> tuple[Nested, Nested]:
        """Output and next state."""
        call = self._call
        xs = self._arguments(call.xs, "xs", "inputs", "x")
        state = self._arguments(call.state, "carry", "state", "state")
        row_consts = self._arguments(call.row_consts, "row_const", "row_consts", "row_const")
        given = (xs, state, row_consts)[: len(call.arguments)]
        with rows_are(self._rows), self._stand_ins:
            result = call.cell(*given)
        self.numbers = list(self._stand_ins.numbers)
        output, next_state = split_result(result, state)
        check_output(output, self._rows)
        self._check_row_axes(output)
        return output, next_state

    def _check_row_axes(self, output: Nested) -> None:
        for path, leaf in leaves_with_paths(output, "output"):
            if sum(n > 0 and n % self._rows == 0 for n in leaf.shape) > 1:
                raise CaptureError(
                    f"{path} of shape {list_sizes(leaf.shape, self._rows)} holds an entry for every pair of rows, but "
                    "a row must not meet the others. Return what each row has."
                )

    def gradients(self, ys: Sequence[Tensor], next_carry: Sequence[Tensor]) -> dict[str, Tensor]:
        """Of every input that wants one, given the gradients of the outputs."""
        d_ys = self._cotangents(ys, "d_ys", "d_y")
        d_next_carry = self._cotangents(next_carry, "d_next_carry", "d_next_state")
        pairs = [
            (out, d_out)
            for out, d_out in zip([*ys, *next_carry], [*d_ys, *d_next_carry])
            if d_out is not None and out.requires_grad
        ]
        wanted = {described.name: leaf for leaf, described in self.inputs if leaf.requires_grad}
        if not pairs or not wanted:
            return {}
        outs, d_outs = zip(*pairs)
        # A checkpoint runs the step again, and must find the stand-ins; `torch.autograd.grad` would put them aside.
        self._stand_ins.as_on_cpu = False
        with rows_are(self._rows), self._stand_ins:
            found = _engine_run_backward(outs, d_outs, False, False, (*wanted.values(),), True, accumulate_grad=False)
        return {name: g for name, g in zip(wanted, found) if g is not None}

    def _arguments(self, examples: Nested, kind: InputKind, root: str, name: str) -> Nested:
        """Shapes of the examples with as many rows as this trace has. The cell gets copies: it may write on them."""
        _, structure = flatten(examples)
        named = leaves_with_paths(examples, root)
        names = self._names.leaves([path for path, _ in named], name)
        copies = []
        for word, (path, example) in zip(names, named):
            wants = example.is_floating_point() and (kind == "carry" or example.requires_grad)
            sizes = (self._rows, *example.shape[1:])
            leaf = self._leaf(example, sizes, wants)
            self._add(leaf, kind, word, path)
            copies.append(leaf.clone())
        return unflatten(structure, copies)

    def _cotangents(self, outs: Sequence[Tensor], kind: InputKind, root: str) -> list[Tensor | None]:
        words = self._names.leaves([f"{root}[{i}]" if len(outs) > 1 else root for i in range(len(outs))], root)
        found: list[Tensor | None] = []
        for word, out in zip(words, outs):
            leaf = self._leaf(out, tuple(out.shape), False) if out.is_floating_point() else None
            if leaf is not None:
                self._add(leaf, kind, word, word)
            found.append(leaf)
        return found

    def _const(self, real: Tensor) -> Tensor:
        """What stands for a tensor that the cell closes over."""
        if real.layout != torch.strided or real.is_quantized:
            raise CaptureError(f"the step closes over a tensor that is not dense ({real.layout}).")
        if real.is_meta:
            raise CaptureError("the step computes on two devices, cpu and meta.")
        if any(n and n % self._rows == 0 for n in real.shape):
            raise CaptureError(f"the step closes over a tensor with an axis of {self._rows}, a size kept for tracing.")
        route = self._routes.get(id(real))
        path = route.path if route else f"a tensor of shape {list(real.shape)} that no attribute of the cell holds"
        leaf = self._leaf(real, None, real.requires_grad)
        self._add(leaf, "const", self._names.const(path if route else "unnamed"), path)
        self.consts.append(Const(path, route.reader(), False) if route else Const(path, lambda _: real, True))
        return leaf

    def _leaf(self, like: Tensor, sizes: tuple[int, ...] | None, requires_grad: bool) -> Tensor:
        """A shape that comes from outside: its making is not recorded."""
        with temporarily_clear_interpreter_stack(), _disable_current_modes():
            return empty_like(like, sizes).requires_grad_(requires_grad)

    def _add(self, leaf: Tensor, kind: InputKind, name: str, path: str) -> None:
        shape: Shape = tuple(ROWS if n and n % self._rows == 0 else n for n in leaf.shape)
        wants = leaf.requires_grad and kind != "carry"
        described = Input(name, kind, path, shape, leaf.dtype, requires_grad=wants)
        self._inputs.setdefault(kind, []).append((leaf, described))

    def _refuse_kept(self, shape: Tensor) -> None:
        path = self._kept_paths.get(id(shape))
        if path is not None:
            raise CaptureError(
                f"the step reads {path}, which the step before wrote there: the cell keeps a state of its own beside "
                "the one it is given. Take it from the state, and return it with the next state."
            )

    def refuse_other_numbers(self, rehearsed: Sequence[float]) -> None:
        """A step that takes another path at first has other numbers, and as a rule not as many."""
        for before, now in zip(rehearsed, self.numbers if len(self.numbers) == len(rehearsed) else ()):
            if before != now and before == before:
                raise CaptureError(
                    f"the step computes with a number that is another at each run ({before:.6g}, then {now:.6g}), of a "
                    "clock, an iterator or a generator, but it is traced once. Make it an input or part of the state."
                )

    def refuse_writes(self, calls: Sequence[Call]) -> None:
        """Storage tells, so that a view or `.data` of a closed-over tensor is found too."""
        closed_over = {leaf.untyped_storage()._cdata: i.path for leaf, i in self._inputs.get("const", ())}
        for call in calls:
            for tensor in call.written():
                path = closed_over.get(tensor.untyped_storage()._cdata)
                if path is not None:
                    raise CaptureError(
                        f"the step writes in place on {path}, but a step is a function of its input and state, run "
                        f"many times in an order of the loop's own. Make it part of the state.{shown_line(call.line)}"
                    )
