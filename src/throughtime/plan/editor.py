"""A graph under rewriting: nodes by name, in order, with their users. Every rewrite keeps the value of each name."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from throughtime.capture.graph import ROWS, Input, Node, Ref, Shape, StepPair

__all__ = ["GraphEditor", "has_rows"]


def has_rows(value: Input | Node) -> bool:
    return ROWS in value.shape


class GraphEditor:
    """The nodes of a step and its gradient, forward part first."""

    def __init__(self, pair: StepPair) -> None:
        self.inputs = {i.name: i for i in (*pair.forward.inputs, *pair.backward_inputs)}
        self.nodes = {n.name: n for n in (*pair.forward.nodes, *pair.backward_nodes)}
        self._fresh = 0
        self.outputs: dict[str, tuple[str | None, ...]] = {
            "ys": pair.forward.ys,
            "next_carry": pair.forward.next_carry,
            "d_consts": pair.d_consts,
            "d_row_consts": pair.d_row_consts,
            "d_xs": pair.d_xs,
            "d_carry": pair.d_carry,
        }

    def value(self, name: str) -> Input | Node:
        return self.nodes.get(name) or self.inputs[name]

    def shape(self, name: str) -> Shape:
        return self.value(name).shape

    def of_kind(self, kind: str) -> list[Input]:
        return [i for i in self.inputs.values() if i.kind == kind]

    @property
    def forward_feedback(self) -> dict[str, str]:
        """For each carry, what becomes it at the next step."""
        return {c.name: name for c, name in zip(self.of_kind("carry"), self.outputs["next_carry"]) if name}

    @property
    def backward_feedback(self) -> dict[str, str]:
        """For each gradient of a next carry, what becomes it at the step before; a gradient of zero has no entry."""
        floating = [
            gradient
            for gradient, carry in zip(self.outputs["d_carry"], self.of_kind("carry"))
            if carry.dtype.is_floating_point
        ]
        cotangents = self.of_kind("d_next_carry")
        return {c.name: gradient for c, gradient in zip(cotangents, floating, strict=True) if gradient}

    @property
    def feedback(self) -> dict[str, str]:
        return {**self.forward_feedback, **self.backward_feedback}

    def users(self) -> dict[str, list[Node]]:
        found: dict[str, list[Node]] = {name: [] for name in (*self.inputs, *self.nodes)}
        for node in self.nodes.values():
            for operand in dict.fromkeys(node.operands):
                found[operand].append(node)
        return found

    def gradients(self) -> set[str]:
        """What depends on a cotangent."""
        found = {i.name for i in (*self.of_kind("d_ys"), *self.of_kind("d_next_carry"))}
        for node in self.nodes.values():
            if not found.isdisjoint(node.operands):
                found.add(node.name)
        return found

    def results(self) -> set[str]:
        return {name for names in self.outputs.values() for name in names if name}

    def replace(self, name: str, new: Iterable[Node], stand_in: str) -> None:
        """Put `new` where the node `name` stood; whoever used `name` uses `stand_in`."""
        rebuilt: dict[str, Node] = {}
        for key, node in self.nodes.items():
            if key == name:
                rebuilt.update((n.name, n) for n in new)
            else:
                rebuilt[key] = _rename_operands(node, {name: stand_in})
        self.nodes = rebuilt
        self._rename_outputs({name: stand_in})

    def insert_after(self, name: str, new: Iterable[Node]) -> None:
        rebuilt: dict[str, Node] = {}
        for key, node in self.nodes.items():
            rebuilt[key] = node
            if key == name:
                rebuilt.update((n.name, n) for n in new)
        self.nodes = rebuilt

    def merge_equal(self) -> None:
        """Of nodes that compute the same, the first stays."""
        first: dict[tuple, str] = {}
        names: dict[str, str] = {}
        kept: dict[str, Node] = {}
        for node in self.nodes.values():
            node = _rename_operands(node, names)
            known = first.setdefault(_computation(node), node.name)
            if known == node.name:
                kept[node.name] = node
            else:
                names[node.name] = known
        self.nodes = kept
        self._rename_outputs(names)

    def make(self, op: str, args: tuple[Any, ...], shape: Shape, dtype: torch.dtype, **attributes: Any) -> Node:
        while (name := f"{op}_p{self._fresh}") in self.nodes or name in self.inputs:
            self._fresh += 1
        self._fresh += 1
        return Node(name, op, args, tuple(attributes.items()), shape, dtype)

    def drop_dead(self) -> None:
        """Nodes that reach no result go."""
        live = self.results()
        for node in reversed(list(self.nodes.values())):
            if node.name in live:
                live.update(node.operands)
        self.nodes = {name: node for name, node in self.nodes.items() if name in live}

    def where(self, accept: Callable[[Node], bool]) -> list[Node]:
        return [node for node in self.nodes.values() if accept(node)]

    def _rename_outputs(self, names: Mapping[str, str]) -> None:
        for field, values in self.outputs.items():
            self.outputs[field] = tuple(names.get(v, v) if v else v for v in values)


def _computation(node: Node) -> tuple:
    """Numbers by their text, which tells 1 from 1.0 and 0.0 from -0.0."""
    return node.op, repr(node.args), repr(node.kwargs), node.shape, node.dtype


def _rename_operands(node: Node, names: Mapping[str, str]) -> Node:
    if not any(operand in names for operand in node.operands):
        return node
    return Node(node.name, node.op, _rename(node.args, names), node.kwargs, node.shape, node.dtype)


def _rename(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, Ref):
        return Ref(names.get(value.name, value.name))
    if isinstance(value, tuple):
        return tuple(_rename(part, names) for part in value)
    return value
