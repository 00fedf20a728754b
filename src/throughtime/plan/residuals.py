"""Forward values that the backward pass needs -> those to store, and the nodes to compute again.

Inputs, outputs and states are there anyway. What is cheap to compute from them is computed again: a value that is
stored and loaded costs more than a handful of arithmetic. A saved value is stored for every (row, step) pair.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from throughtime.capture.graph import Input, Node
from throughtime.plan.editor import has_rows
from throughtime.plan.stages import HEAVY

__all__ = ["Residuals", "choose_residuals"]

VIEWS = frozenset({"view", "permute", "expand", "slice", "full", "constant"})
TRANSCENDENTAL = frozenset({"tanh", "sigmoid", "exp", "expm1", "log", "log1p", "erf", "sin", "cos", "pow", "atan2"})
REDUCTIONS = frozenset({"sum", "amax", "amin", "prod", "argmax", "argmin", "cumsum"})

LIMIT = 12.0
"""Recompute what costs at most this per element: one transcendental function and a little arithmetic."""


@dataclass(frozen=True, slots=True)
class Residuals:
    """saved: stored per pair. recomputed: forward nodes that the backward pass runs again, in order."""

    saved: tuple[str, ...]
    recomputed: tuple[Node, ...]


def choose_residuals(forward: Mapping[str, Node], needed: Iterable[str], kept: Iterable[str]) -> Residuals:
    """forward: the row nodes of the forward step, in order. needed: what backward nodes refer to.

    kept: values that are there without being stored (xs, carries before and after the step, row consts, noise,
    outputs, consts and what depends on them only).
    """
    available = set(kept)
    wanted = set(needed)
    _want_below_views(forward, wanted, available)
    saved: list[str] = []
    again: set[str] = set()
    for name in [n for n in forward if n in wanted and n not in available]:
        if _cost(name, forward, available) <= LIMIT:
            again |= _between(name, forward, available)
        else:
            saved.append(name)
            available.add(name)
    return Residuals(tuple(saved), tuple(node for name, node in forward.items() if name in again))


def _want_below_views(forward: Mapping[str, Node], wanted: set[str], available: set[str]) -> None:
    """A view is not stored; what it looks at is."""
    for name in reversed(list(forward)):
        if name in wanted and name not in available and forward[name].op in VIEWS:
            wanted.update(forward[name].operands)


def _cost(name: str, forward: Mapping[str, Node], available: set[str]) -> float:
    """Arithmetic per element to compute a value from the available ones, each node in between once."""
    return sum(_node_cost(forward[n]) for n in _between(name, forward, available))


def _between(name: str, forward: Mapping[str, Node], available: set[str]) -> set[str]:
    found: set[str] = set()
    pending = [name]
    while pending:
        current = pending.pop()
        if current not in forward or current in available or current in found:
            continue
        found.add(current)
        pending.extend(forward[current].operands)
    return found


def _node_cost(node: Node | Input) -> float:
    if not isinstance(node, Node) or node.op in VIEWS:
        return 0.0
    if node.op in HEAVY or node.op in REDUCTIONS or not has_rows(node):
        return float("inf")
    if node.op in TRANSCENDENTAL:
        return 8.0
    return 3.0 if node.op in ("div", "sqrt", "rsqrt", "reciprocal") else 1.0
