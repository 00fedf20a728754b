"""A graph with its feedback edges -> strongly connected components: the only true loops of a step.

Source: Tarjan 1972, "Depth-first search and linear graph algorithms", without recursion.
"""

from collections.abc import Iterator, Mapping, Sequence

__all__ = ["strong_components"]


def strong_components(successors: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Components in topological order: one comes before those that it leads to."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    on_stack: set[str] = set()
    found: list[list[str]] = []
    for root in successors:
        if root in index:
            continue
        path: list[tuple[str, Iterator[str]]] = []
        _enter(root, successors, index, low, stack, on_stack, path)
        while path:
            node, remaining = path[-1]
            following = next(remaining, None)
            if following is None:
                path.pop()
                if path:
                    low[path[-1][0]] = min(low[path[-1][0]], low[node])
                if low[node] == index[node]:
                    found.append(_pop_component(node, stack, on_stack))
            elif following not in index:
                _enter(following, successors, index, low, stack, on_stack, path)
            elif following in on_stack:
                low[node] = min(low[node], index[following])
    return found[::-1]


def _enter(
    node: str,
    successors: Mapping[str, Sequence[str]],
    index: dict[str, int],
    low: dict[str, int],
    stack: list[str],
    on_stack: set[str],
    path: list[tuple[str, Iterator[str]]],
) -> None:
    index[node] = low[node] = len(index)
    stack.append(node)
    on_stack.add(node)
    path.append((node, iter(successors[node])))


def _pop_component(node: str, stack: list[str], on_stack: set[str]) -> list[str]:
    component = []
    while True:
        member = stack.pop()
        on_stack.discard(member)
        component.append(member)
        if member == node:
            return component[::-1]
