"""LoopPlan, run plainly with PyTorch operators: the oracle for code generation, and readable.

Everything is in loop order: pairs stand step by step, longest row first, so that the rows that run at a step are the
first `active[t]`. Values that belong to pairs are [N, ...], values of rows are [B, ...].
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Self

import torch
from torch import Tensor

from throughtime.capture.graph import ROWS, Input, Node
from throughtime.capture.interpret import run_node
from throughtime.plan.loop_plan import LoopPlan, Stage

__all__ = ["Gradients", "Kept", "PlanRun", "run_backward", "run_forward"]

Env = dict[str, Tensor]


@dataclass(frozen=True)
class PlanRun:
    """What one call binds to a plan's inputs, and what is computed once from them.

    consts; rows: row consts [B, ...]; pairs: xs and noise [N, ...]: by name.
    batch: B. active: how many rows still run at each step. chunk: steps whose batched stages run together.
    """

    plan: LoopPlan
    consts: Mapping[str, Tensor]
    rows: Mapping[str, Tensor]
    pairs: Mapping[str, Tensor]
    batch: int
    active: Sequence[int]
    chunk: int

    @classmethod
    def bind(cls, plan: LoopPlan, inputs: Mapping[str, Tensor], batch: int, active: Sequence[int], chunk: int) -> Self:
        """inputs: consts, row consts, xs and noise by name."""
        env = {i.name: inputs[i.name] for i in plan.inputs if i.kind != "carry"}
        for node in plan.once:
            env[node.name] = _run(node, env, batch)
        pairs = {i.name for kind in ("xs", "noise") for i in plan.of_kind(kind)}
        rows = {name for name in env if name not in pairs and ROWS in plan.values[name].shape}
        return cls(
            plan,
            {name: value for name, value in env.items() if name not in rows | pairs},
            {name: env[name] for name in rows},
            {name: env[name] for name in pairs},
            batch,
            active,
            chunk,
        )

    @cached_property
    def offsets(self) -> list[int]:
        return [0, *accumulate(self.active)]

    @property
    def chunks(self) -> list[range]:
        steps = len(self.active)
        return [range(t, min(t + self.chunk, steps)) for t in range(0, steps, self.chunk)]


@dataclass(frozen=True)
class Kept:
    """What the forward run keeps for the backward run: values of pairs [N, ...] by name, and the initial carry."""

    pairs: Mapping[str, Tensor]
    initial: Mapping[str, Tensor]


@dataclass(frozen=True)
class Gradients:
    """One for each input of the kind, in the plan's order; None: no gradient. Every floating carry has one.

    xs are [N, ...], row consts and the initial carry [B, ...].
    """

    consts: list[Tensor | None]
    row_consts: list[Tensor | None]
    xs: list[Tensor | None]
    carry: list[Tensor | None]


def run_forward(run: PlanRun, carry: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], Kept]:
    """(ys [N, ...], final carry [B, ...], kept)."""
    plan = run.plan
    carries = [c.name for c in plan.of_kind("carry")]
    initial = dict(zip(carries, carry, strict=True))
    feedback: dict[str, str | None] = dict(zip(carries, plan.next_carry, strict=True))
    names = dict.fromkeys((*plan.ys, *plan.saved, *(plan.next_carry[i] for i in plan.traced)))
    stored: dict[str, list[Tensor]] = {name: [] for name in names}
    state = initial
    for steps in run.chunks:
        walk = _Walk(run, run.pairs, steps, feedback, state)
        walk.run(plan.forward)
        for name in names:
            stored[name].append(walk.pairs(name))
        state = walk.next_state()
    pairs = {name: _join(parts, plan.values[name]) for name, parts in stored.items()}
    return [pairs[name] for name in plan.ys], list(state.values()), Kept(pairs, initial)


def run_backward(run: PlanRun, kept: Kept, d_ys: Sequence[Tensor], d_final: Sequence[Tensor]) -> Gradients:
    """Gradients of sum(ys * d_ys) + sum(final carry * d_final).

    d_ys [N, ...] and d_final [B, ...]: for each cotangent of that kind, in the plan's order.
    """
    plan = run.plan
    pairs = {**run.pairs, **kept.pairs, **_bind(plan, "d_ys", d_ys)}
    state = dict(_bind(plan, "d_next_carry", d_final))
    floating = [i for i, carry in enumerate(plan.of_kind("carry")) if carry.dtype.is_floating_point]
    feedback = {name: plan.d_carry[i] for name, i in zip(state, floating, strict=True)}
    gathered = _Gathered(run)
    for steps in reversed(run.chunks):
        walk = _Walk(run, pairs, steps[::-1], feedback, state, kept)
        walk.run(plan.backward)
        gathered.add(walk)
        state = walk.next_state()
    d_carry: list[Tensor | None] = [None] * len(plan.d_carry)
    for i, gradient in zip(floating, state.values()):
        d_carry[i] = gradient
    return gathered.gradients(d_carry)


def _bind(plan: LoopPlan, kind: str, values: Sequence[Tensor]) -> Env:
    return dict(zip((c.name for c in plan.cotangents if c.kind == kind), values, strict=True))


class _Walk:
    """Stages over the steps of a chunk, in the order of `steps`.

    pairs: values [N, ...] that are there.
    feedback: for each carry the value that becomes it at the following step of the walk; None: zero.
    state: each carry before the walk, [B, ...]. A row that the walk has not met yet still has it.
    kept: of the forward run, when this is the backward run.
    """

    def __init__(
        self,
        run: PlanRun,
        pairs: Mapping[str, Tensor],
        steps: range,
        feedback: Mapping[str, str | None],
        state: Mapping[str, Tensor],
        kept: Kept | None = None,
    ) -> None:
        self.bound, self.steps, self.feedback, self.state, self.kept = run, steps, feedback, state, kept
        self._pairs = pairs
        self._values: dict[int, Env] = {t: {} for t in steps}
        self._next_carry = dict(zip((c.name for c in run.plan.of_kind("carry")), run.plan.next_carry))

    def run(self, stages: Sequence[Stage]) -> None:
        for stage in stages:
            if stage.kind == "batched":
                self._run_batched(stage)
            else:
                self._run_loop(stage)

    def next_state(self) -> Env:
        """Each carry after the walk. All are read before any is changed."""
        return {name: self._after_walk(name, following) for name, following in self.feedback.items()}

    def pairs(self, name: str) -> Tensor:
        """A value at all pairs of the chunk, in loop order."""
        return torch.cat([self.value(name, t) for t in sorted(self.steps)])

    @property
    def size(self) -> int:
        """The number of pairs of the chunk."""
        return sum(self.bound.active[t] for t in self.steps)

    def whole(self, names: Iterable[str]) -> Env:
        """Values at all pairs of the chunk, and consts as they are."""
        consts = self.bound.consts
        return {name: consts[name] if name in consts else self.pairs(name) for name in names}

    def value(self, name: str, t: int) -> Tensor:
        """A value at step t, [active[t], ...]; a const as it is."""
        rows = self.bound.active[t]
        if name in self._values[t]:
            return self._values[t][name]
        if name in self.bound.consts:
            return self.bound.consts[name]
        if name in self.bound.rows:
            return self.bound.rows[name][:rows]
        if name in self._pairs:
            return self._pairs_at(name, t)
        return self._carry(name, t) if name in self.feedback else self._kept_carry(name, t)

    def _run_batched(self, stage: Stage) -> None:
        made = {node.name for node in stage.nodes}
        env = self.whole({operand for node in stage.nodes for operand in node.operands} - made)
        steps = sorted(self.steps)
        for node in stage.nodes:
            env[node.name] = _run(node, env, self.size)
            for t, part in zip(steps, env[node.name].split([self.bound.active[t] for t in steps])):
                self._values[t][node.name] = part

    def _run_loop(self, stage: Stage) -> None:
        for t in self.steps:
            for node in stage.nodes:
                env = {name: self.value(name, t) for name in node.operands}
                self._values[t][node.name] = _run(node, env, self.bound.active[t])

    def _carry(self, name: str, t: int) -> Tensor:
        """A carry of this walk at step t, step by step from the last one that is known."""
        for s in self.steps[: self.steps.index(t) + 1]:
            if name not in self._values[s]:
                self._values[s][name] = self._carry_after(name, s)
        return self._values[t][name]

    def _carry_after(self, name: str, t: int) -> Tensor:
        """What the step before t in the walk made of the carry; for rows that it had not, the state."""
        rows, place = self.bound.active[t], self.steps.index(t)
        whole = self.state[name]
        if place == 0:
            return whole[:rows]
        before = self.steps[place - 1]
        known = self._followed(name, before)[:rows]
        return torch.cat([known, whole[len(known) : rows]])

    def _followed(self, name: str, t: int) -> Tensor:
        following = self.feedback[name]
        if following is None:
            return torch.zeros_like(self.state[name][: self.bound.active[t]])
        return self.value(following, t)

    def _after_walk(self, name: str, following: str | None) -> Tensor:
        whole = self.state[name].clone()
        for t in self.steps:
            whole[: self.bound.active[t]] = self._followed(name, t)
        return whole

    def _kept_carry(self, name: str, t: int) -> Tensor:
        """A carry of the forward run before step t."""
        assert self.kept is not None, f"{name} is known to no stage"
        rows = self.bound.active[t]
        following = self._next_carry[name]
        if t == 0 or following == name:
            return self.kept.initial[name][:rows]
        return self._pairs_at(following, t - 1)[:rows]

    def _pairs_at(self, name: str, t: int) -> Tensor:
        return self._pairs[name][self.bound.offsets[t] : self.bound.offsets[t + 1]]


class _Gathered:
    """Sums and gradients of pairs, chunk by chunk from the last."""

    def __init__(self, run: PlanRun) -> None:
        self.run, self.plan = run, run.plan
        self.sums: Env = {node.name: _zeros(node, 0) for node in self.plan.reductions}
        self.rows: Env = {name: _zeros(self.plan.values[name], run.batch) for name in self.plan.row_sums}
        self.xs: dict[str, list[Tensor]] = {name: [] for name in self.plan.d_xs if name is not None}

    def add(self, walk: _Walk) -> None:
        for node in self.plan.reductions:
            env = walk.whole(node.operands)
            self.sums[node.name] = self.sums[node.name] + _run(node, env, walk.size)
        for name, total in self.rows.items():
            for t in walk.steps:
                total[: self.run.active[t]] += walk.value(name, t)
        for name, parts in self.xs.items():
            parts.insert(0, walk.pairs(name))

    def gradients(self, d_carry: list[Tensor | None]) -> Gradients:
        env = {**self.run.consts, **self.run.rows, **self.sums, **self.rows}
        for node in self.plan.after:
            env[node.name] = _run(node, env, self.run.batch)
        xs = {name: _join(parts, self.plan.values[name]) for name, parts in self.xs.items()}
        return Gradients(
            [None if name is None else env[name] for name in self.plan.d_consts],
            [None if name is None else env[name] for name in self.plan.d_row_consts],
            [None if name is None else xs[name] for name in self.plan.d_xs],
            d_carry,
        )


def _run(node: Node, env: Mapping[str, Tensor], rows: int) -> Tensor:
    if node.op == "outer":
        a, b = (env[operand].to(node.dtype) for operand in node.operands)
        return a.flatten(0, -2).transpose(0, 1) @ b.flatten(0, -2)
    return run_node(node, env, rows)


def _join(parts: Sequence[Tensor], value: Input | Node) -> Tensor:
    return torch.cat(list(parts)) if parts else _zeros(value, 0)


def _zeros(value: Input | Node, rows: int) -> Tensor:
    return torch.zeros([rows if n == ROWS else n for n in value.shape], dtype=value.dtype)
