"""A case of the conformance tests -> its result, through `trace_step`, `make_plan` and the plain run of the plan."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from conformance.cases import Case, Result, pull_back
from throughtime._nested import Nested, leaves, leaves_with_paths, map_leaves, unflatten
from throughtime._sequence import Ragged, read_sequence
from throughtime.capture import StepTrace, trace_step
from throughtime.loop.reference import Gradients, PlanRun, run_backward, run_forward
from throughtime.plan.loop_plan import LoopPlan
from throughtime.plan.make import make_plan

__all__ = ["Planned", "by_plan", "plan_case"]


@dataclass(frozen=True)
class Planned:
    """A case, its step and its plan. state, row_consts: in the user's order of rows."""

    case: Case
    trace: StepTrace
    plan: LoopPlan
    state: Nested
    row_consts: Nested


def plan_case(case: Case) -> Planned:
    cell, descriptor = case.subject.cell, case.descriptor
    state = case.initial_state
    if state is None:
        state = descriptor.make_start(cell, case.batch, case.dtype)
    declare = getattr(cell, "row_consts", None)
    row_consts = declare(case.batch, case.dtype, torch.device("cpu")) if declare else ()
    trace = trace_step(cell, map_leaves(lambda x: x[:, :1].flatten(0, 1), case.inputs), state, row_consts)
    return Planned(case, trace, make_plan(trace.pair), state, row_consts)


def by_plan(planned: Planned, chunk: int) -> Result:
    case, plan = planned.case, planned.plan
    ragged = read_sequence(case.inputs, case.lengths)
    carry = leaves(ragged.sort_rows(planned.state))
    row_consts = leaves(ragged.sort_rows(planned.row_consts))
    consts = planned.trace.read_consts(planned.case.subject.cell)
    xs = leaves(ragged.xs)
    with torch.no_grad():
        run = PlanRun.bind(plan, _by_name(plan, consts, row_consts, xs), case.batch, ragged.active, chunk)
        ys, final, kept = run_forward(run, carry)
        gradients = run_backward(run, kept, _d_ys(planned), _d_final(planned, ragged))
    outputs = ragged.restore(unflatten(planned.trace.ys_structure, ys))
    state = ragged.unsort_rows(unflatten(planned.trace.state_structure, final))
    return Result(outputs, state, _to_sources(case, [consts, row_consts, xs, carry], gradients))


def _by_name(plan: LoopPlan, *columns: Sequence[Tensor]) -> dict[str, Tensor]:
    """Consts, row consts and xs."""
    kinds = zip(("const", "row_const", "xs"), columns, strict=True)
    return {i.name: value for kind, values in kinds for i, value in zip(plan.of_kind(kind), values, strict=True)}


def _d_ys(planned: Planned) -> list[Tensor]:
    return [read_sequence(c, planned.case.lengths).xs for c in _cotangents(planned.case, "outputs")]


def _d_final(planned: Planned, ragged: Ragged) -> list[Tensor]:
    return [ragged.sort_rows(c) for c in _cotangents(planned.case, "state")]


def _cotangents(case: Case, root: str) -> list[Tensor]:
    spec = case.descriptor.output if root == "outputs" else case.descriptor.state
    named = {name: value for name, value in case.cotangents.items() if name.startswith(root)}
    assert [name for name, _ in leaves_with_paths(spec, root)] == list(named)
    return [value for value in named.values() if value.is_floating_point()]


def _to_sources(case: Case, values: list[list[Tensor]], gradients: Gradients) -> dict[str, Tensor]:
    """What the plan's inputs get, carried on by autograd to the tensors that they were made from."""
    found = [gradients.consts, gradients.row_consts, gradients.xs, gradients.carry]
    pairs = [
        (value, gradient)
        for column, column_gradients in zip(values, found, strict=True)
        for value, gradient in zip(column, column_gradients, strict=True)
        if gradient is not None and value.requires_grad
    ]
    return pull_back(pairs, case.sources())
