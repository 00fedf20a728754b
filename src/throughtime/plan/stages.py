"""Row nodes of one direction -> stages. What must be sequential, and in which order the rest stands around it.

The step's dependencies, with an edge from each next state to its state, have strongly connected components: the only
true loops. Every other node is free of the state to come. Free products run over all steps of a chunk at once; cheap
free nodes stand where their values are used, since a value that is computed in a pass costs less than one that is
stored and loaded.

Even levels are batched, odd levels are loops: a node stands at the least level that its operands allow.
"""

from collections.abc import Mapping, Sequence

from throughtime.capture.graph import Node
from throughtime.plan.components import strong_components
from throughtime.plan.loop_plan import Stage
from throughtime.plan.operators import BATCHED, REDUCTIONS

__all__ = ["Loops", "find_loops", "make_stages"]

Loops = Mapping[str, frozenset[str]]
"""For each node and carry in a true loop: the carries of that loop."""


def make_stages(nodes: Sequence[Node], feedback: Mapping[str, str], paths: Mapping[str, str]) -> tuple[Stage, ...]:
    """Stages in the order they run.

    nodes: the row nodes of one direction, in an order that respects their operands.
    feedback: for each carry (an input's name) the value that becomes it at the following step.
    paths: what to call a carry.
    """
    loops = find_loops(nodes, feedback)
    levels = _levels(nodes, loops, feedback)
    _sink(nodes, levels, set(feedback.values()))
    stages = []
    for level in sorted(set(levels.values())):
        members = tuple(node for node in nodes if levels[node.name] == level)
        carries = {c for node in members for c in loops.get(node.name, ())}
        kind = "loop" if level % 2 else "batched"
        stages.append(Stage(kind, members, tuple(sorted(paths[c] for c in carries))))
    return tuple(stages)


def find_loops(nodes: Sequence[Node], feedback: Mapping[str, str]) -> dict[str, frozenset[str]]:
    successors: dict[str, list[str]] = {name: [] for name in [*feedback, *(node.name for node in nodes)]}
    for node in nodes:
        for operand in dict.fromkeys(node.operands):
            if operand in successors:
                successors[operand].append(node.name)
    for carry, following in feedback.items():
        if following in successors:
            successors[following].append(carry)
    found: dict[str, frozenset[str]] = {}
    for component in strong_components(successors):
        if len(component) > 1:
            carries = frozenset(component) & set(feedback)
            found.update((name, carries) for name in component)
    return found


def _levels(nodes: Sequence[Node], loops: Loops, feedback: Mapping[str, str]) -> dict[str, int]:
    """The least level of each node.

    Levels only grow, and are bounded by twice the number of nodes and carries, so the fixed point is reached.
    """
    levels = dict.fromkeys((node.name for node in nodes), 0)
    known = dict.fromkeys(feedback, 0)
    changed = True
    while changed:
        before = {**levels, **known}
        for node in nodes:
            levels[node.name] = _level(node, levels, known, loops)
        _level_loops(levels, loops)
        for carry, following in feedback.items():
            known[carry] = _level_behind(following, levels, known)
        changed = {**levels, **known} != before
    return levels


def _level(node: Node, levels: Mapping[str, int], known: Mapping[str, int], loops: Loops) -> int:
    own = loops.get(node.name, frozenset())
    level = levels[node.name]
    for operand in node.operands:
        if operand not in own:
            level = max(level, levels.get(operand, 0), known.get(operand, 0))
    if own:
        return level | 1
    return level + level % 2 if node.op in BATCHED else level


def _level_behind(following: str, levels: Mapping[str, int], known: Mapping[str, int]) -> int:
    """Where a carry can be read: one step behind the value that becomes it.

    In a loop's own stage; in the next batched stage after a batched one; anywhere if it becomes an input.
    """
    if following in levels:
        return levels[following] if levels[following] % 2 else levels[following] + 2
    return known.get(following, 0)


def _level_loops(levels: dict[str, int], loops: Loops) -> None:
    """All nodes of one loop stand at one level."""
    top: dict[frozenset[str], int] = {}
    for name, carries in loops.items():
        top[carries] = max(top.get(carries, 1), levels.get(name, 1))
    for name, carries in loops.items():
        if name in levels:
            levels[name] = top[carries]


def _sink(nodes: Sequence[Node], levels: dict[str, int], delayed: set[str]) -> None:
    """Cheap batched nodes move to the one stage that uses them.

    Not what becomes a carry: it is used there too, one step later. Not what follows from a reduction: it waits for the
    whole row, which is better done for many pairs at once. Nor what a loop computes on the way: to move it would store
    its operands in its stead.
    """
    fixed = delayed | _after_reductions(nodes, levels)
    users: dict[str, set[int]] = {node.name: set() for node in nodes}
    for node in reversed(nodes):
        used_at = users[node.name]
        movable = node.op not in BATCHED and levels[node.name] % 2 == 0 and node.name not in fixed
        if movable and len(used_at) == 1:
            (levels[node.name],) = used_at
        for operand in node.operands:
            if operand in users:
                users[operand].add(levels[node.name])


def _after_reductions(nodes: Sequence[Node], levels: Mapping[str, int]) -> set[str]:
    """Reductions, and what is computed from them at the same level."""
    found: set[str] = set()
    for node in nodes:
        follows = any(o in found and levels[o] == levels[node.name] for o in node.operands)
        if node.op in REDUCTIONS or (follows and node.op not in BATCHED):
            found.add(node.name)
    return found
