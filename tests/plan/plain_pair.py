"""A StepPair run as it is written: all of its nodes at every step, forward and backward. Knows nothing of plans."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from throughtime.capture.graph import Node, StepPair
from throughtime.capture.interpret import run_node
from throughtime.loop.reference import Gradients, PlanRun, run_backward, run_forward
from throughtime.plan.loop_plan import LoopPlan

__all__ = ["Bound", "bind_random", "run_pair", "run_plan"]

Env = dict[str, Tensor]
PAIRS = ("xs", "noise")


@dataclass(frozen=True)
class Bound:
    """The tensors of a call, in loop order.

    values: consts, row consts [B, ...], xs and noise [N, ...], by name. d_ys [N, ...], d_final [B, ...].
    """

    values: Env
    carry: list[Tensor]
    batch: int
    active: list[int]
    d_ys: list[Tensor]
    d_final: list[Tensor]


def bind_random(pair: StepPair, lengths: Sequence[int], seed: int) -> Bound:
    generator = torch.Generator().manual_seed(seed)
    rows, steps = len(lengths), max(lengths, default=0)
    active = [sum(length > t for length in lengths) for t in range(steps)]

    def draw(value, count):
        return torch.rand([count if n == "B" else n for n in value.shape], generator=generator).to(value.dtype) / 4

    step = pair.forward
    values = {i.name: draw(i, sum(active) if i.kind in PAIRS else rows) for i in step.inputs if i.kind != "carry"}
    carry = [draw(c, rows) for c in step.of_kind("carry")]
    d_ys = [draw(c, sum(active)) for c in pair.backward_inputs if c.kind == "d_ys"]
    d_final = [draw(c, rows) for c in pair.backward_inputs if c.kind == "d_next_carry"]
    return Bound(values, carry, rows, active, d_ys, d_final)


def run_plan(plan: LoopPlan, bound: Bound, chunk: int) -> tuple[list[Tensor], list[Tensor], Gradients]:
    run = PlanRun.bind(plan, bound.values, bound.batch, bound.active, chunk)
    ys, final, kept = run_forward(run, bound.carry)
    return ys, final, run_backward(run, kept, bound.d_ys, bound.d_final)


def run_pair(pair: StepPair, bound: Bound) -> tuple[list[Tensor], list[Tensor], Gradients]:
    step = pair.forward
    state = [leaf.clone() for leaf in bound.carry]
    seen: list[Env] = []
    for t, rows in enumerate(bound.active):
        env = _inputs(pair, bound, t)
        env |= {c.name: leaf[:rows] for c, leaf in zip(step.of_kind("carry"), state)}
        _run_nodes(step.nodes, env, rows)
        seen.append(env)
        state = [_put(leaf, env[name]) for leaf, name in zip(state, step.next_carry)]
    ys = [_over_steps([env[name] for env in seen], pair, name) for name in step.ys]
    return ys, state, _run_backward(pair, bound, seen)


def _run_backward(pair: StepPair, bound: Bound, seen: list[Env]) -> Gradients:
    d_ys = [c.name for c in pair.backward_inputs if c.kind == "d_ys"]
    d_next = [c.name for c in pair.backward_inputs if c.kind == "d_next_carry"]
    state = [leaf.clone() for leaf in bound.d_final]
    for t in reversed(range(len(bound.active))):
        rows, env = bound.active[t], seen[t]
        env |= {name: _at(bound, value, t) for name, value in zip(d_ys, bound.d_ys)}
        env |= {name: leaf[:rows] for name, leaf in zip(d_next, state)}
        _run_nodes(pair.backward_nodes, env, rows)
        state = [
            _put(leaf, torch.zeros_like(leaf[:rows]) if name is None else env[name])
            for leaf, name in zip(state, pair.d_carry)
        ]
    return Gradients(
        [None if name is None else _total(seen, pair, name) for name in pair.d_consts],
        [None if name is None else _total_per_row(seen, bound, pair, name) for name in pair.d_row_consts],
        [None if name is None else _over_steps([env[name] for env in seen], pair, name) for name in pair.d_xs],
        list(state),
    )


def _run_nodes(nodes: Sequence[Node], env: Env, rows: int) -> None:
    for node in nodes:
        env[node.name] = run_node(node, env, rows)


def _inputs(pair: StepPair, bound: Bound, t: int) -> Env:
    env = {}
    for i in pair.forward.inputs:
        if i.kind in PAIRS:
            env[i.name] = _at(bound, bound.values[i.name], t)
        elif i.kind != "carry":
            env[i.name] = bound.values[i.name][: bound.active[t]] if i.kind == "row_const" else bound.values[i.name]
    return env


def _at(bound: Bound, value: Tensor, t: int) -> Tensor:
    return value.split(bound.active)[t]


def _put(whole: Tensor, part: Tensor) -> Tensor:
    return torch.cat([part, whole[len(part) :]])


def _zeros(pair: StepPair, name: str, rows: int) -> Tensor:
    values = (*pair.forward.inputs, *pair.forward.nodes, *pair.backward_inputs, *pair.backward_nodes)
    value = next(v for v in values if v.name == name)
    return torch.zeros([rows if n == "B" else n for n in value.shape], dtype=value.dtype)


def _over_steps(parts: list[Tensor], pair: StepPair, name: str) -> Tensor:
    return torch.cat([_zeros(pair, name, 0), *parts])


def _total(seen: list[Env], pair: StepPair, name: str) -> Tensor:
    return sum((env[name] for env in seen), start=_zeros(pair, name, 0))


def _total_per_row(seen: list[Env], bound: Bound, pair: StepPair, name: str) -> Tensor:
    total = _zeros(pair, name, bound.batch)
    for env in seen:
        total[: len(env[name])] += env[name]
    return total
