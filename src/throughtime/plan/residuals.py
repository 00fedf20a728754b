"""Forward values that the backward pass needs -> those to store, and the nodes to compute again.

A value is either stored and loaded, which costs by its size, or computed again from values that are there, which costs
by its arithmetic; products are never computed again. The cheapest choice for all values together is a cut of the
step's graph: on the one side what only the forward pass has, on the other what the backward pass has. Each node has
two vertices. *Computed* stands with the backward pass if the node runs there again; *there* does if its value is known:

    source --arithmetic--> computed --size--> there ----> computed of each user
                                              there ----> sink, if the backward pass needs it

(The same cut chooses activations to save in PyTorch's compiler: Chen et al. 2016, arXiv 1604.06174, for the idea.)
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from throughtime.capture.graph import ROWS, Input, Node
from throughtime.plan.min_cut import FOREVER, Network
from throughtime.plan.operators import DIVISIONS, PRODUCTS, REDUCTIONS, TRANSCENDENTAL, VIEWS

__all__ = ["Residuals", "choose_residuals"]

STORE = 12
"""What it costs to write and to read back a number, counted in additions."""

_UNIT = 16
"""Of costs, so that a view can be dearer than what it looks at by less than any arithmetic."""


@dataclass(frozen=True, slots=True)
class Residuals:
    """saved: values stored per pair. traced: carries whose value after each step is stored, by index.
    recomputed: forward nodes that the backward pass runs again, in order.
    """

    saved: tuple[str, ...]
    traced: tuple[int, ...]
    recomputed: tuple[Node, ...]


def choose_residuals(
    forward: Sequence[Node],
    needed: Iterable[str],
    free: Iterable[str],
    inputs: Sequence[Input],
    next_carry: Sequence[str],
) -> Residuals:
    """The cheapest residuals that give the backward pass what it needs.

    forward: the row nodes of the forward step, in order.
    needed: the values that backward nodes refer to, carries among them.
    free: values that are there anyway: xs, noise, row consts, outputs, consts and what depends on them only.
    inputs, next_carry: of the step. To know a carry before a step is to have stored what became it at the step before;
    one that no step changes is there anyway.
    """
    nodes = {node.name: node for node in forward}
    carries = [i for i in inputs if i.kind == "carry"]
    by_name = {carry.name: i for i, carry in enumerate(carries)}
    wanted = set(needed)
    there = set(free) | {carry.name for carry, following in zip(carries, next_carry) if carry.name == following}
    traced = {i for name, i in by_name.items() if name in wanted and name not in there}
    there |= {carries[i].name for i in traced} | {next_carry[i] for i in traced}
    sizes = {value.name: _size(value) for value in (*inputs, *forward)}
    known = _cut(nodes, wanted, there, _trace_costs(carries, next_carry, there), sizes)
    saved, again = _between(nodes, wanted, there, known)
    traced |= {by_name[name] for name in saved if name in by_name}
    after = {next_carry[i] for i in traced}
    traced |= {next_carry.index(name) for name in saved if name in next_carry and name not in after}
    return Residuals(
        tuple(name for name in nodes if name in saved and name not in next_carry),
        tuple(sorted(traced)),
        tuple(node for name, node in nodes.items() if name in again),
    )


def _trace_costs(carries: Sequence[Input], next_carry: Sequence[str], there: set[str]) -> dict[str, int]:
    """What it costs to know a carry before each step; nothing when what becomes it is there."""
    return {
        carry.name: 0 if following in there else _store_cost(carry)
        for carry, following in zip(carries, next_carry)
        if carry.name not in there
    }


def _cut(
    nodes: Mapping[str, Node],
    wanted: set[str],
    there: set[str],
    trace_costs: Mapping[str, int],
    sizes: Mapping[str, int],
) -> set[tuple[str, str]]:
    """The vertices that stand with the backward pass."""
    network = Network()
    for name, node in nodes.items():
        if name in there:
            continue
        network.add("source", ("computed", name), _compute_cost(node, sizes))
        network.add(("computed", name), ("there", name), _store_cost(node))
        for operand in dict.fromkeys(node.operands):
            if operand not in there:
                network.add(("there", operand), ("computed", name), FOREVER)
        if name in wanted:
            network.add(("there", name), "sink", FOREVER)
    for name, cost in trace_costs.items():
        network.add("source", ("there", name), cost)
    return network.sink_side("source", "sink")  # type: ignore[return-value]


def _between(
    nodes: Mapping[str, Node], wanted: set[str], there: set[str], known: set[tuple[str, str]]
) -> tuple[set[str], set[str]]:
    """(stored, computed again), following what is wanted down to what is there."""
    saved: set[str] = set()
    again: set[str] = set()
    pending = sorted(wanted)
    while pending:
        name = pending.pop()
        if name in there or name in saved or name in again:
            continue
        if name in nodes and ("computed", name) in known:
            again.add(name)
            pending.extend(nodes[name].operands)
        else:
            saved.add(name)
    return saved, again


def _size(value: Input | Node) -> int:
    """Of a row, in numbers of four bytes (at least a quarter)."""
    return max(1, prod(n for n in value.shape if n != ROWS)) * value.dtype.itemsize


def _store_cost(value: Input | Node) -> int:
    """Rather what a view looks at than the view: it is there once for all views of it."""
    dearer = isinstance(value, Node) and value.op in VIEWS
    return (STORE * _UNIT + dearer) * _size(value)


def _compute_cost(node: Node, sizes: Mapping[str, int]) -> int:
    if node.op in PRODUCTS:
        return FOREVER
    if node.op in VIEWS:
        return 0
    if node.op in REDUCTIONS:
        return _UNIT * max(sizes.get(operand, 0) for operand in node.operands)
    return _UNIT * _size(node) * _arithmetic(node.op)


def _arithmetic(op: str) -> int:
    """Additions per element."""
    if op in TRANSCENDENTAL:
        return 8
    return 3 if op in DIVISIONS else 1
