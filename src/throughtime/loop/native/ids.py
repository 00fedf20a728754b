"""LoopPlan -> the whole numbers that name entries, and the check that they name any.

Machine code has no error to raise, so what is known before the steps is checked there: numbers that depend on inputs
and consts only. What a step computes from its state is cut to the table, or names nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from throughtime.capture.graph import Input, Node
from throughtime.capture.interpret import run_node
from throughtime.plan.loop_plan import LoopPlan

__all__ = ["Lookup", "check_ids", "find_lookups"]

INDEX = 1
"""The place of the index among the operands of a look-up."""
LOOKUPS = frozenset(
    {"embedding", "gather", "scatter", "scatter_add", "index_select", "index_add", "index_copy"},
)
PAIRS_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class Lookup:
    """An index of so many entries, and the nodes that compute it from inputs and consts."""

    index: str
    entries: int
    nodes: tuple[Node, ...]


def find_lookups(plan: LoopPlan) -> list[Lookup]:
    """Those whose index is known before the steps, each once."""
    nodes = {node.name: node for stage in (*plan.forward, *plan.backward) for node in stage.nodes}
    known = {value.name for value in (*plan.of_kind("const"), *plan.of_kind("xs"), *plan.once)}
    found: dict[tuple[str, int], Lookup] = {}
    for node in nodes.values():
        if node.op in LOOKUPS:
            index, entries = node.operands[INDEX], int(plan.shape_of(node.operands[0])[node.attributes.get("dim", 0)])
            needed = _needed(index, nodes, known)
            if needed is not None:
                found[index, entries] = Lookup(index, entries, tuple(n for n in nodes.values() if n.name in needed))
    return list(found.values())


def _needed(name: str, nodes: Mapping[str, Node], known: set[str]) -> set[str] | None:
    """The nodes that a whole number is computed by; None where it is not known before the steps."""
    found: set[str] = set()
    pending = [name]
    while pending:
        name = pending.pop()
        if name in known or name in found:
            continue
        node = nodes.get(name)
        if node is None or node.dtype.is_floating_point:
            return None
        found.add(name)
        pending.extend(node.operands)
    return found


def check_ids(
    lookups: Sequence[Lookup], xs: Sequence[Input], tensors: Sequence[Tensor], consts: Mapping[str, Tensor]
) -> None:
    """xs, tensors: the inputs at all pairs. Raises IndexError."""
    for lookup in lookups:
        for start in range(0, max((len(t) for t in tensors), default=0), PAIRS_AT_ONCE):
            parts = [t.detach()[start : start + PAIRS_AT_ONCE] for t in tensors]
            env = {**consts, **{x.name: part for x, part in zip(xs, parts)}}
            for node in lookup.nodes:
                env[node.name] = run_node(node, env, len(parts[0]))
            _check(env[lookup.index], lookup.entries)


def _check(ids: Tensor, entries: int) -> None:
    if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= entries):
        raise IndexError(
            f"dynamic_rnn: an id that looks up one of {entries} entries lies between 0 and {entries - 1}, "
            f"got {int(ids.min())} to {int(ids.max())}. Check the vocabulary, or the number of classes."
        )
