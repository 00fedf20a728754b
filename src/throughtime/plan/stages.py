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

__all__ = ["HEAVY", "make_stages"]

HEAVY = frozenset({"mm", "bmm", "convolution", "convolution_backward", "embedding"})
"""Operators that are worth batching over steps."""


def make_stages(nodes: Sequence[Node], feedback: Mapping[str, str], paths: Mapping[str, str]) -> tuple[Stage, ...]:
    """Stages in the order they run.

    nodes: the row nodes of one direction, in an order that respects their operands.
    feedback: for each carry (an input's name) the value that becomes it at the following step.
    paths: what to call a carry.
    """
    loops = _loops(nodes, feedback)
    levels = _levels(nodes, loops, feedback)
    _sink(nodes, levels, loops)
    stages = []
    for level in range(max(levels.values(), default=-1) + 1):
        members = tuple(node for node in nodes if levels[node.name] == level)
        if not members:
            continue
        carries = {c for node in members for c in loops.get(node.name, ())}
        kind = "loop" if level % 2 else "batched"
        stages.append(Stage(kind, members, tuple(sorted(paths[c] for c in carries))))
    return tuple(stages)


def _loops(nodes: Sequence[Node], feedback: Mapping[str, str]) -> dict[str, frozenset[str]]:
    """For each node in a true loop: the carries of that loop."""
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


def _levels(nodes: Sequence[Node], loops: Mapping[str, frozenset[str]], feedback: Mapping[str, str]) -> dict[str, int]:
    """The least level of each node. A carry that no loop owns is a delay: it is known once its next value is.

    Levels only grow, and are bounded by twice the number of nodes, so the fixed point is reached.
    """
    levels: dict[str, int] = {node.name: 0 for node in nodes}
    carry_level: dict[str, int] = {}
    changed = True
    while changed:
        changed = False
        for node in nodes:
            level = _level(node, levels, carry_level, loops)
            if level != levels[node.name]:
                levels[node.name] = level
                changed = True
        changed |= _level_loops(levels, loops)
        for carry, following in feedback.items():
            known = levels.get(following, carry_level.get(following, 0)) | 1
            if known != carry_level.get(carry, 1):
                carry_level[carry] = known
                changed = True
    return levels


def _level(
    node: Node,
    levels: Mapping[str, int],
    carry_level: Mapping[str, int],
    loops: Mapping[str, frozenset[str]],
) -> int:
    own = loops.get(node.name)
    level = levels[node.name]
    for operand in node.operands:
        if operand in levels:
            level = max(level, levels[operand])
        elif operand in carry_level and operand not in (own or ()):
            level = max(level, carry_level[operand])
    if own is not None:
        return level | 1
    if node.op in HEAVY:
        return level + level % 2
    return level


def _level_loops(levels: dict[str, int], loops: Mapping[str, frozenset[str]]) -> bool:
    """All nodes of one loop stand at one level."""
    top: dict[frozenset[str], int] = {}
    for name, carries in loops.items():
        top[carries] = max(top.get(carries, 1), levels.get(name, 1))
    changed = False
    for name, carries in loops.items():
        if name in levels and levels[name] != top[carries]:
            levels[name] = top[carries]
            changed = True
    return changed


def _sink(nodes: Sequence[Node], levels: dict[str, int], loops: Mapping[str, frozenset[str]]) -> None:
    """Cheap free nodes move to the one loop that uses them."""
    users: dict[str, set[int]] = {node.name: set() for node in nodes}
    for node in reversed(nodes):
        used_at = users[node.name]
        if node.op not in HEAVY and node.name not in loops and len(used_at) == 1:
            levels[node.name] = max(levels[node.name], *used_at)
        for operand in node.operands:
            if operand in users:
                users[operand].add(levels[node.name])
