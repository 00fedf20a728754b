"""Row nodes of a step -> the part that is free of the states, and the rest.

With few rows a product step by step reads its weights for next to no work. So there is a second form of each program,
for chunks with few rows: what is free of the states runs over all pairs of the chunk first (forwards) or last
(backwards). The arithmetic of an element is the same in both forms: `affine` adds its products in the same order.

Before: g = affine(b, x, w, h, u)
After:  g.free = affine(b, x, w)  over the pairs;  g = affine(g.free, h, u)  step by step
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from throughtime.capture.graph import Node, Ref

__all__ = ["Stages", "split_backward", "split_forward"]

HEAVY = frozenset({"affine", "embedding"})
NUMBERS = frozenset({"full", "index"})
"""Stand in the code."""


@dataclass(frozen=True)
class Stages:
    """Nodes that run over pairs, nodes that run step by step, and the values that cross from one to the other."""

    pairs: tuple[Node, ...]
    steps: tuple[Node, ...]
    crossing: tuple[str, ...]


def split_forward(nodes: Sequence[Node], by_row: Iterable[str], wanted: Collection[str]) -> Stages | None:
    """by_row: states and other values that are known by row. None where nothing heavy is free of them."""
    bound = _reached(by_row, nodes)
    nodes = [part for node in nodes for part in _split_affine(node, bound)]
    free = {n.name for n in nodes if n.name not in bound and not (n.op == "affine" and _reads(n, bound))}
    first = _ancestors(nodes, [n.name for n in nodes if n.op in HEAVY and n.name in free])
    if not first:
        return None
    pairs = tuple(n for n in nodes if n.name in first)
    steps = tuple(n for n in nodes if n.name not in first or n.op in NUMBERS)
    return Stages(pairs, steps, _crossing(pairs, steps, wanted))


def split_backward(
    nodes: Sequence[Node], by_row: Collection[str], sequential: Iterable[str], others: Collection[str]
) -> Stages | None:
    """sequential: what the loop must give; others: what only the input gradients need. None: nothing to gain."""
    first = _ancestors(nodes, sequential)
    pairs = tuple(n for n in nodes if n.name not in first or n.op in NUMBERS)
    steps = tuple(n for n in nodes if n.name in first)
    if not any(n.op in HEAVY for n in pairs):
        return None
    own = {n.name for n in pairs}
    if any(operand in by_row for n in pairs for operand in n.operands if operand not in own):
        return None
    return Stages(pairs, steps, _crossing(steps, pairs, [name for name in others if name in first]))


def _split_affine(node: Node, bound: Collection[str]) -> list[Node]:
    if node.op != "affine":
        return [node]
    bias, *factors = node.args
    terms = list(zip(factors[::2], factors[1::2]))
    free = [term for term in terms if term[0].name not in bound]
    if not free or len(free) == len(terms):
        return [node]
    rest = [part for term in terms if term not in free for part in term]
    name = f"{node.name}.free"
    return [
        replace(node, name=name, args=(bias, *(part for term in free for part in term))),
        replace(node, args=(Ref(name), *rest)),
    ]


def _reached(names: Iterable[str], nodes: Sequence[Node]) -> set[str]:
    found = set(names)
    for node in nodes:
        if _reads(node, found):
            found.add(node.name)
    return found


def _reads(node: Node, names: Collection[str]) -> bool:
    return any(operand in names for operand in node.operands)


def _ancestors(nodes: Sequence[Node], names: Iterable[str]) -> set[str]:
    found = set(names)
    for node in reversed(nodes):
        if node.name in found:
            found.update(node.operands)
    return found & {node.name for node in nodes}


def _crossing(first: Sequence[Node], second: Sequence[Node], wanted: Iterable[str]) -> tuple[str, ...]:
    """Values that `first` makes and `second` reads. Numbers are made in both."""
    made = {node.name for node in first if node.op not in NUMBERS} - {node.name for node in second}
    read = [operand for node in second for operand in node.operands]
    return tuple(dict.fromkeys(name for name in (*read, *wanted) if name in made))
