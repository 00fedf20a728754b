"""LoopPlan: the order of work for one call, as plain data. Both backends read it; `str(plan)` is its golden form."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from throughtime.capture.graph import Input, Node, format_shape

__all__ = ["LoopPlan", "Stage"]


@dataclass(frozen=True, slots=True)
class Stage:
    """Part of a step.

    A *batched* stage is free of the state that is still to come: all steps of a chunk at once. A *loop* stage runs
    step by step. Its `carries` are the state leaves that make it a loop (their paths).
    """

    kind: Literal["batched", "loop"]
    nodes: tuple[Node, ...]
    carries: tuple[str, ...] = ()

    def __str__(self) -> str:
        because = f", sequential in {', '.join(self.carries)}" if self.carries else ""
        return "\n".join([f"  {self.kind}{because}", *(f"    {node}" for node in self.nodes)])


@dataclass(frozen=True)
class LoopPlan:
    """One call: `once`; chunk by chunk `forward`; chunk by chunk, from the last, `backward` and `reductions`; `after`.

    inputs: the step's inputs.
    cotangents: d_ys and d_next_carry.
    once: nodes that depend on consts only, and nodes of rows [B, ...] that depend on consts and row consts only.
    saved: forward values that are stored for every pair, for the backward pass; never one of `ys` or `next_carry`.
    traced: carry leaves (by index) whose value after each step is stored for every pair. A carry that no step changes
        (it is its own `next_carry`) is never traced: its value is the initial one.
    backward: stages of the backward step; they hold clones of the forward nodes that are computed again.
    reductions: nodes that contract the rows: summed over all pairs.
    row_sums: values of pairs that are summed over the steps of each row: [B, ...].
    after: nodes that depend on `reductions`, `row_sums`, `once` and inputs of a call only, and are linear in the sums.
        Some are values of rows [B, ...]; some contract these.
    d_consts, d_row_consts, d_xs, d_carry: the names of the gradients; None where there is none. That of a row const
        is a row sum or in `after`.

    Any of these names may be an input: a y may be a carry, a next carry another carry or an x, a gradient a cotangent.
    A batched stage may read a carry that it is no part of: its value before each step, known from an earlier stage.
    """

    inputs: tuple[Input, ...]
    cotangents: tuple[Input, ...]
    once: tuple[Node, ...]
    forward: tuple[Stage, ...]
    ys: tuple[str, ...]
    next_carry: tuple[str, ...]
    saved: tuple[str, ...]
    traced: tuple[int, ...]
    backward: tuple[Stage, ...]
    reductions: tuple[Node, ...]
    row_sums: tuple[str, ...]
    after: tuple[Node, ...]
    d_consts: tuple[str | None, ...]
    d_row_consts: tuple[str | None, ...]
    d_xs: tuple[str | None, ...]
    d_carry: tuple[str | None, ...]

    def of_kind(self, kind: str) -> tuple[Input, ...]:
        return self._by_kind.get(kind, ())

    @cached_property
    def _by_kind(self) -> dict[str, tuple[Input, ...]]:
        kinds = {i.kind for i in self.inputs}
        return {kind: tuple(i for i in self.inputs if i.kind == kind) for kind in kinds}

    def shape_of(self, name: str) -> tuple:
        return self.values[name].shape

    @cached_property
    def values(self) -> dict[str, Input | Node]:
        """Every value by name."""
        found: dict[str, Input | Node] = {}
        for item in (*self.inputs, *self.cotangents, *self.once, *self.reductions, *self.after):
            found[item.name] = item
        for stage in (*self.forward, *self.backward):
            found.update((node.name, node) for node in stage.nodes)
        return found

    def __str__(self) -> str:
        values = self.values
        saved = [f"{name} {format_shape(values[name].shape)}" for name in self.saved]
        traced = [self.of_kind("carry")[i].path for i in self.traced]
        lines = ["inputs", *(f"  {i}" for i in (*self.inputs, *self.cotangents))]
        lines += ["once", *(f"  {node}" for node in self.once)]
        lines += [
            "forward",
            *map(str, self.forward),
            f"  ys: {_names(self.ys)}",
            f"  next_carry: {_names(self.next_carry)}",
        ]
        lines += [f"saved: {', '.join(saved) or '(nothing)'}", f"traced: {', '.join(traced) or '(nothing)'}"]
        lines += ["backward", *map(str, self.backward)]
        lines += ["reductions", *(f"  {node}" for node in self.reductions)]
        lines += [f"row sums: {_names(self.row_sums)}"]
        lines += ["after", *(f"  {node}" for node in self.after)]
        for field in ("d_consts", "d_row_consts", "d_xs", "d_carry"):
            lines.append(f"  {field}: {_names(getattr(self, field))}")
        return "\n".join(lines)


def _names(names: Iterable[str | None]) -> str:
    return ", ".join(n or "-" for n in names) or "(none)"
