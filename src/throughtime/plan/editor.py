"""A graph under rewriting: nodes by name, in order, with their users. Every rewrite keeps the value of each name."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeGuard

import torch

from throughtime.capture.graph import ROWS, Input, Node, Ref, Shape, StepPair

__all__ = ["GraphEditor", "has_rows", "joins"]


def has_rows(value: Input | Node) -> bool:
    return ROWS in value.shape


def joins(value: Input | Node, axis: int) -> TypeGuard[Node]:
    """Whether it is a concatenation along this axis."""
    return isinstance(value, Node) and value.op == "cat" and value.attributes["dim"] == axis


class GraphEditor:
    """The nodes of a step and its gradient, forward part first."""

    def __init__(self, pair: StepPair) -> None:
        self.inputs = {i.name: i for i in (*pair.forward.inputs, *pair.backward_inputs)}
        self.nodes = {n.name: n for n in (*pair.forward.nodes, *pair.backward_nodes)}
        self._fresh = 0
        self._register_all()
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

    def users(self, name: str) -> list[Node]:
        return [self.nodes[user] for user in self._users[name]]

    def gradients(self) -> set[str]:
        """What depends on a cotangent."""
        found = {i.name for i in (*self.of_kind("d_ys"), *self.of_kind("d_next_carry"))}
        for node in self.nodes.values():
            if not found.isdisjoint(node.operands):
                found.add(node.name)
        return found

    def results(self) -> set[str]:
        return {name for names in self.outputs.values() for name in names if name}

    def replace(self, name: str, new: Sequence[Node], stand_in: str) -> None:
        """Put `new` where the node `name` stood; whoever used `name` uses `stand_in`."""
        self.insert_after(name, new)
        for user in self._users.pop(name):
            self.nodes[user] = _rename_operands(self.nodes[user], {name: stand_in})
            self._users[stand_in][user] = None
        for operand in self.nodes.pop(name).operands:
            self._users[operand].pop(name, None)
        self._rename_outputs({name: stand_in})

    def insert_after(self, name: str, new: Sequence[Node]) -> None:
        rebuilt: dict[str, Node] = {}
        for key, node in self.nodes.items():
            rebuilt[key] = node
            if key == name:
                rebuilt.update((n.name, n) for n in new)
        self.nodes = rebuilt
        for node in new:
            self._register(node)

    def _register(self, node: Node) -> None:
        self._users.setdefault(node.name, {})
        for operand in node.operands:
            self._users[operand][node.name] = None

    def _register_all(self) -> None:
        self._users: dict[str, dict[str, None]] = {name: {} for name in (*self.inputs, *self.nodes)}
        for node in self.nodes.values():
            self._register(node)

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
        self._register_all()
        self._rename_outputs(names)

    def make(self, op: str, args: tuple[Any, ...], shape: Shape, dtype: torch.dtype, **attributes: Any) -> Node:
        while (name := f"{op}_p{self._fresh}") in self.nodes or name in self.inputs:
            self._fresh += 1
        self._fresh += 1
        return Node(name, op, args, tuple(attributes.items()), shape, dtype)

    def cut(self, name: str, dim: int, start: int, end: int) -> Node:
        """A new slice of a value."""
        value = self.value(name)
        shape = (*value.shape[:dim], end - start, *value.shape[dim + 1 :])
        return self.make("slice", (Ref(name),), shape, value.dtype, dim=dim, start=start, end=end, step=1)

    def join(self, names: Sequence[str], dim: int) -> tuple[list[Node], Input | Node]:
        """(new nodes, the values joined along an axis)."""
        first = self.value(names[0])
        if len(names) == 1:
            return [], first
        width = sum(int(self.shape(name)[dim]) for name in names)
        shape = (*first.shape[:dim], width, *first.shape[dim + 1 :])
        joined = self.make("cat", tuple(map(Ref, names)), shape, first.dtype, dim=dim)
        return [joined], joined

    def cut_again(self, part: Node, start: int, cuts: Sequence[Node]) -> None:
        """The slices of a value become those of `part`, which is what it holds from `start`."""
        for cut in cuts:
            dim, first, last = cut.attributes["dim"], cut.attributes["start"] - start, cut.attributes["end"] - start
            if (first, last) == (0, part.shape[dim]):
                self.replace(cut.name, [], part.name)
            else:
                narrow = self.cut(part.name, dim, first, last)
                self.replace(cut.name, [narrow], narrow.name)

    def drop_dead(self) -> None:
        """Nodes that reach no result go."""
        live = self.results()
        for node in reversed(list(self.nodes.values())):
            if node.name in live:
                live.update(node.operands)
        self.nodes = {name: node for name, node in self.nodes.items() if name in live}
        self._register_all()

    def where(self, accept: Callable[[Node], bool]) -> Iterator[Node]:
        """The nodes that are there now and that are accepted, each as it is when its turn comes."""
        for name in list(self.nodes):
            node = self.nodes.get(name)
            if node is not None and accept(node):
                yield node

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
