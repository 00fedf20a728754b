"""READ FIRST: a cell -> StepPair. Find what it closes over, run it on shapes, take the gradient, lower.

The step runs twice on tensors that have a shape and no data. The first run shows what it does to the cell itself; the
second is recorded, the step and its gradient (by PyTorch's autograd, so that custom functions keep their own).
Batch sizes are two large primes: a size that is a multiple of one belongs to rows, and what a cell must not do with
its batch size stops the trace (`rowcount.py`). Shapes with a symbol in them would say the same at ten times the cost.
"""

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.grad_mode import _force_original_view_tracking
from torch.nn.parameter import is_lazy

from throughtime._nested import Nested, Structure, leaves, map_leaves
from throughtime._state import trial, zero_row
from throughtime.capture.attributes import Attributes
from throughtime.capture.generators import Generators
from throughtime.capture.graph import Input, StepPair
from throughtime.capture.lower import lower
from throughtime.capture.pair import Results, make_pair
from throughtime.capture.reach import tensors
from throughtime.capture.recording import Const, Recording, StepCall, record, rehearse
from throughtime.capture.refusals import mistakes_told, retold
from throughtime.capture.rows import FRONT
from throughtime.capture.sharing import check_shared_gradients
from throughtime.capture.tape import functional
from throughtime.capture.values import Value, Values

__all__ = ["Const", "StepTrace", "trace_step"]

FIRST_ROWS, ROWS = 10_007, 1_000_003
_one_at_a_time = threading.RLock()


@dataclass(frozen=True)
class StepTrace:
    """What was found, and what the outside needs to call it."""

    pair: StepPair
    consts: tuple[Const, ...]
    """In the order of the graph's consts."""
    ys_structure: Structure
    state_structure: Structure
    dropped: tuple[str, ...] = ()
    """Paths of attributes that the step writes and never reads: a run leaves them as they were."""

    def read_consts(self, cell: Any) -> list[Tensor]:
        """The tensors that are there now; `cell` is the one that was traced, which the trace does not hold."""
        return [const.read(cell) for const in self.consts]

    def fits(self, consts: Sequence[Tensor]) -> bool:
        """Whether tensors read now are of the kind that was traced; if not, trace again."""
        return all(_is_like(t, i) for t, i in zip(consts, self.pair.forward.of_kind("const"), strict=True))


def _is_like(tensor: Tensor, described: Input) -> bool:
    return (
        isinstance(tensor, Tensor)
        and tuple(tensor.shape) == described.shape
        and tensor.dtype == described.dtype
        and tensor.requires_grad == described.requires_grad
    )


def trace_step(cell: Callable[..., object], xs: Nested, state: Nested, row_consts: Nested = ()) -> StepTrace:
    """One step of `cell`, traced for every batch size.

    Args:
        cell: called as `cell(xs, state)`, or `cell(xs, state, row_consts)` if there are any.
        xs, state, row_consts: nested tensors [rows, ...]; only the other axes, dtype, device and `requires_grad`
            are looked at. A floating state always has a gradient.

    Raises:
        CaptureError: the step is not a function of one row at a time, or not of its arguments alone.
        StateError: what the cell returns does not fit the state.
    """
    call = StepCall(cell, xs, state, row_consts)
    _find_input_sizes(call)
    with _one_at_a_time:
        recording = _recorded(call)
    with mistakes_told("capture"):
        return _lowered(recording, call.cell, _product_dtype(leaves(xs)))


def _recorded(call: StepCall) -> Recording:
    attributes, generators = Attributes(call.cell), Generators()
    routes = tensors(call.cell)
    try:
        with retold((ROWS, FIRST_ROWS)), _plain_modes(leaves(call.xs)):
            rehearsed = rehearse(call, FIRST_ROWS, routes)
            return record(call, ROWS, routes, attributes.written_tensors(), rehearsed)
    finally:
        attributes.restore()
        generators.restore()


def _find_input_sizes(call: StepCall) -> None:
    """Cells that size their parameters at the first call have that call now, on one row of zeros."""
    modules = call.cell.modules() if isinstance(call.cell, nn.Module) else ()
    if any(p is not None and is_lazy(p) for module in modules for p in module._parameters.values()):
        with trial(call.xs):
            call.cell(*map_leaves(zero_row, call.arguments))


@contextmanager
def _plain_modes(xs: Sequence[Tensor]) -> Iterator[None]:
    """Gradients on, autocast off: products are rounded when they are lowered, and nothing else is.

    What has no numbers is no anomaly, and hooks on saved tensors (of a checkpoint, say) must not see it.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autograd.set_detect_anomaly(False))
        stack.enter_context(_force_original_view_tracking(True))
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(_apart, _as_it_is))
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        for device in {"cpu", *(x.device.type for x in xs)}:
            stack.enter_context(torch.autocast(device, enabled=False))
        yield


def _apart(tensor: Tensor) -> Tensor:
    """A result that its own graph holds by a hook is a ring through C++, which the collector cannot see."""
    return tensor.detach()


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _product_dtype(xs: Sequence[Tensor]) -> torch.dtype | None:
    device = xs[0].device.type if xs else "cpu"
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def _lowered(recording: Recording, cell: Any, product_dtype: torch.dtype | None) -> StepTrace:
    values = Values(ROWS, product_dtype)
    known: dict[int, Value] = {}
    for leaf, described in recording.inputs:
        known[id(leaf)] = values.input(described, tuple(leaf.shape))
    given = [leaf for leaf, _ in recording.inputs]
    outputs = [*recording.ys, *recording.next_carry, *recording.gradients.values()]
    with recording.shapes:
        calls, outputs = functional(recording.calls, given, outputs)
    step = outputs[: len(recording.ys) + len(recording.next_carry)]
    lower(calls, values, known, step, outputs[len(step) :])
    pair = make_pair(values.builder.inputs, values.builder.nodes, _results(recording, values, known, outputs))
    names = (i.name for i in pair.forward.of_kind("const"))
    check_shared_gradients(pair, {name: const.read(cell) for name, const in zip(names, recording.consts)})
    return StepTrace(
        pair,
        recording.consts,
        recording.ys_structure,
        recording.state_structure,
        recording.dropped,
    )


def _results(recording: Recording, values: Values, known: dict[int, Value], outputs: Sequence[Tensor]) -> Results:
    found = [known[id(t)] for t in outputs]
    ys, rest = found[: len(recording.ys)], found[len(recording.ys) :]
    next_carry, gradients = rest[: len(recording.next_carry)], rest[len(recording.next_carry) :]
    for value in (*ys, *next_carry):
        assert value.place == FRONT, "outputs and states were checked to have their rows first"
    given = {
        name: value.ref.name
        for name, value in zip(recording.gradients, gradients, strict=True)
        if values.number(value) != 0
    }
    return Results(tuple(y.ref.name for y in ys), tuple(c.ref.name for c in next_carry), given)
