"""LoopPlan -> the whole numbers that name entries, and the check that they name any.

Machine code has no error to raise, so what is known before the steps is checked there: numbers that depend on consts
and inputs, or on consts and row consts. What a step computes from its state is cut to the table, or names nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from throughtime.capture.graph import ROWS, Node
from throughtime.capture.interpret import run_node
from throughtime.plan.loop_plan import LoopPlan

__all__ = ["Lookup", "check_ids", "find_lookups"]

INDEX = 1
"""The place of the index among the operands of a look-up."""
LOOKUPS = frozenset(
    {"embedding", "gather", "scatter", "scatter_add", "index_select", "index_add", "index_copy"},
)
AT_ONCE = 1 << 16


@dataclass(frozen=True)
class Lookup:
    """An index of so many entries, and the nodes that compute it from what is known of pairs or of rows."""

    index: str
    entries: int
    nodes: tuple[Node, ...]
    over: Literal["pairs", "rows"]


def find_lookups(plan: LoopPlan) -> list[Lookup]:
    """Those whose index is known before the steps, each once."""
    of_rows = [node for node in plan.once if ROWS in node.shape]
    consts = {value.name for value in (*plan.of_kind("const"), *plan.once)} - {node.name for node in of_rows}
    staged = [node for stage in (*plan.forward, *plan.backward) for node in stage.nodes]
    xs, row_consts = ({value.name for value in plan.of_kind(kind)} for kind in ("xs", "row_const"))
    by_pair = _find(plan, staged, "pairs", consts | xs)
    by_row = _find(plan, [*of_rows, *staged], "rows", consts | row_consts)
    return list({(lookup.index, lookup.entries): lookup for lookup in (*by_row, *by_pair)}.values())


def _find(plan: LoopPlan, nodes: Sequence[Node], over: Literal["pairs", "rows"], known: set[str]) -> Iterator[Lookup]:
    by_name = {node.name: node for node in nodes}
    for node in by_name.values():
        if node.op in LOOKUPS:
            index, entries = node.operands[INDEX], int(plan.shape_of(node.operands[0])[node.attributes.get("dim", 0)])
            needed = _needed(index, by_name, known)
            if needed is not None:
                yield Lookup(index, entries, tuple(n for n in by_name.values() if n.name in needed), over)


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
    lookups: Sequence[Lookup], pairs: Mapping[str, Tensor], rows: Mapping[str, Tensor], consts: Mapping[str, Tensor]
) -> None:
    """pairs: inputs at all pairs. rows: row consts of the rows that have a step. Raises IndexError."""
    for lookup in lookups:
        known = pairs if lookup.over == "pairs" else rows
        for start in range(0, max((len(t) for t in known.values()), default=0), AT_ONCE):
            parts = {name: tensor.detach()[start : start + AT_ONCE] for name, tensor in known.items()}
            env = {**consts, **parts}
            for node in lookup.nodes:
                env[node.name] = run_node(node, env, len(next(iter(parts.values()))))
            _check(env[lookup.index], lookup.entries)


def _check(ids: Tensor, entries: int) -> None:
    if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= entries):
        raise IndexError(
            f"dynamic_rnn: an id that looks up one of {entries} entries lies between 0 and {entries - 1}, "
            f"got {int(ids.min())} to {int(ids.max())}. Check the vocabulary, or the number of classes."
        )
