"""Steps with backward parts that are no gradient of anything: whatever a step may compute, a plan must compute too.

All values stay below one, so that rounding stays small over the steps.
"""

from random import Random

import torch

from throughtime.capture.graph import Input, Node, Ref, StepGraph, StepPair

__all__ = ["random_pair"]

WIDTH = 4
CONSTS = {"square": (WIDTH, WIDTH), "tall": (2 * WIDTH, WIDTH), "wide": (WIDTH, 2 * WIDTH), "bias": (WIDTH,)}


def random_pair(random: Random) -> StepPair:
    return _Writer(random).pair()


class _Writer:
    def __init__(self, random: Random) -> None:
        self.random = random
        self.nodes: list[Node] = []
        self.narrow: list[str] = []
        """The values [B, WIDTH] so far."""

    def pair(self) -> StepPair:
        inputs = [self._input(name, "const", shape) for name, shape in CONSTS.items()]
        for kind, most in (("row_const", 1), ("xs", 2), ("carry", 3)):
            count = self.random.randint(kind != "row_const", most)
            inputs += [self._row_input(f"{kind}{i}", kind) for i in range(count)]
        forward = self._grow(self.random.randint(0, 12))
        ys = self._some(self.random.randint(1, 2))
        next_carry = self._some(sum(i.kind == "carry" for i in inputs))
        step = StepGraph(tuple(inputs), forward, ys, next_carry)
        cotangents = [self._row_input(f"d_ys{i}", "d_ys") for i in range(len(ys))]
        cotangents += [self._row_input(f"d_next{i}", "d_next_carry") for i in range(len(next_carry))]
        backward = self._grow(self.random.randint(0, 12))
        d_xs, d_carry = (tuple(self._maybe() for i in inputs if i.kind == kind) for kind in ("xs", "carry"))
        d_row_consts = tuple(self._moving(cotangents) for i in inputs if i.kind == "row_const")
        start = len(self.nodes)
        d_consts = tuple(self._const_gradient(name) for name in CONSTS)
        sums = tuple(self.nodes[start:])
        return StepPair(step, tuple(cotangents), (*backward, *sums), d_consts, d_row_consts, d_xs, d_carry)

    def _grow(self, count: int) -> tuple[Node, ...]:
        start = len(self.nodes)
        for _ in range(count):
            make = self.random.choice([self._mean, self._gate, self._product, self._joined, self._split, self._bias])
            make()
        return tuple(self.nodes[start:])

    def _mean(self) -> None:
        op = self.random.choice(["add", "sub"])
        total = self._node(op, *map(Ref, self._some(2)))
        self._keep(self._node("mul", Ref(total), 0.5))

    def _gate(self) -> None:
        a, b = self._some(2)
        gate = self._node(self.random.choice(["sigmoid", "tanh"]), Ref(a))
        self._keep(gate)
        self._keep(self._node("mul", Ref(gate), Ref(b)))

    def _product(self) -> None:
        self._keep(self._node("mm", Ref(self._one()), Ref("square")))

    def _joined(self) -> None:
        joined = self._node("cat", *map(Ref, self._some(2)), width=2 * WIDTH, dim=1)
        self._keep(self._node("mm", Ref(joined), Ref("tall")))

    def _split(self) -> None:
        both = self._node("mm", Ref(self._one()), Ref("wide"), width=2 * WIDTH)
        for start in self.random.choice([(0,), (WIDTH,), (0, WIDTH), (0, WIDTH // 2)]):
            self._keep(self._node("slice", Ref(both), dim=1, start=start, end=start + WIDTH, step=1))

    def _bias(self) -> None:
        total = self._node("add", Ref(self._one()), Ref("bias"))
        self._keep(self._node("mul", Ref(total), 0.5))

    def _const_gradient(self, name: str) -> str | None:
        if self.random.random() < 0.2:
            return None
        if name == "bias":
            return self._add("sum", (Ref(self._one()),), (WIDTH,), dims=(0,), keepdim=False)
        left, right = (self._of_width(width) for width in CONSTS[name])
        turned = self._add("permute", (Ref(left),), (CONSTS[name][0], "B"), dims=(1, 0))
        total = self._add("mm", (Ref(turned), Ref(right)), CONSTS[name])
        return self._add("mul", (Ref(total), Ref(name)), CONSTS[name]) if self.random.random() < 0.3 else total

    def _of_width(self, width: int) -> str:
        if width == WIDTH:
            return self._one()
        return self._node("cat", *map(Ref, self._some(2)), width=width, dim=1)

    def _one(self) -> str:
        """More often than not one of the last."""
        return self.random.choice(self.narrow[-6:] if self.random.random() < 0.7 else self.narrow)

    def _some(self, count: int) -> tuple[str, ...]:
        return tuple(self._one() for _ in range(count))

    def _maybe(self) -> str | None:
        return self._one() if self.random.random() < 0.8 else None

    def _moving(self, cotangents: list[Input]) -> str | None:
        """The gradient of a row const depends on a cotangent, or it would be zero and not there."""
        found = {c.name for c in cotangents}
        for node in self.nodes:
            if not found.isdisjoint(node.operands):
                found.add(node.name)
        return self.random.choice([name for name in self.narrow if name in found][-4:])

    def _keep(self, name: str) -> None:
        self.narrow.append(name)

    def _row_input(self, name: str, kind: str) -> Input:
        self._keep(name)
        return self._input(name, kind, ("B", WIDTH))

    def _input(self, name: str, kind: str, shape: tuple) -> Input:
        return Input(name, kind, name, shape, torch.float64)  # type: ignore[arg-type]

    def _node(self, op: str, *args: object, width: int = WIDTH, **attributes: object) -> str:
        return self._add(op, args, ("B", width), **attributes)

    def _add(self, op: str, args: tuple, shape: tuple, **attributes: object) -> str:
        node = Node(f"n{len(self.nodes)}", op, args, tuple(attributes.items()), shape, torch.float64)
        self.nodes.append(node)
        return node.name
