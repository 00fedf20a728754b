"""A graph under rewriting: nodes by name, in order, with their users. Every rewrite keeps the value of each name."""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from throughtime.capture.graph import ROWS, Input, Node, Ref, Shape, StepPair

__all__ = ["GraphEditor", "has_rows"]


def has_rows(value: Input | Node) -> bool:
    return ROWS in value.shape


class GraphEditor:
    """The nodes of a step and its gradient, forward part first."""

    def __init__(self, pair: StepPair) -> None:
        self.pair = pair
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

    def users(self) -> dict[str, list[Node]]:
        found: dict[str, list[Node]] = {name: [] for name in (*self.inputs, *self.nodes)}
        for node in self.nodes.values():
            for operand in dict.fromkeys(node.operands):
                found[operand].append(node)
        return found

    def gradients(self) -> set[str]:
        """What depends on a cotangent."""
        found = {i.name for i in self.pair.backward_inputs}
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
                rebuilt[key] = rename_operands(node, {name: stand_in})
        self.nodes = rebuilt
        self.outputs = {
            field: tuple(stand_in if n == name else n for n in names) for field, names in self.outputs.items()
        }

    def make(self, op: str, args: tuple[Any, ...], shape: Shape, dtype: torch.dtype, **attributes: Any) -> Node:
        name = f"{op}_p{self._fresh}"
        self._fresh += 1
        return Node(name, op, args, tuple(sorted(attributes.items())), shape, dtype)

    def drop_dead(self) -> None:
        """Nodes that reach no result go."""
        live = self.results()
        for node in reversed(list(self.nodes.values())):
            if node.name in live:
                live.update(node.operands)
        self.nodes = {name: node for name, node in self.nodes.items() if name in live}

    def where(self, accept: Callable[[Node], bool]) -> list[Node]:
        return [node for node in self.nodes.values() if accept(node)]


def rename_operands(node: Node, names: dict[str, str]) -> Node:
    if not any(operand in names for operand in node.operands):
        return node
    return Node(node.name, node.op, _rename(node.args, names), node.kwargs, node.shape, node.dtype)


def _rename(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, Ref):
        return Ref(names.get(value.name, value.name))
    if isinstance(value, tuple):
        return tuple(_rename(part, names) for part in value)
    return value
