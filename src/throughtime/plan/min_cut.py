"""A flow network -> its cheapest cut: what it costs least to take away so that no path is left from source to sink.

Source: Dinic 1970, "Algorithm for solution of a problem of maximum flow in networks with power estimation".
"""

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from itertools import pairwise

__all__ = ["FOREVER", "Network"]

FOREVER = 1 << 60
"""The capacity of an edge that is never cut."""

Vertex = Hashable


@dataclass
class Network:
    """Directed edges with whole-number capacities; what is left of each in `room`, both ways."""

    room: dict[Vertex, dict[Vertex, int]] = field(default_factory=dict)

    def add(self, tail: Vertex, head: Vertex, capacity: int) -> None:
        """Edges between the same two vertices add up."""
        for here, there, more in ((tail, head, capacity), (head, tail, 0)):
            edges = self.room.setdefault(here, {})
            edges[there] = edges.get(there, 0) + more

    def sink_side(self, source: Vertex, sink: Vertex) -> set[Vertex]:
        """What the cheapest cut leaves with the sink. Of several cuts, the one nearest to the sink."""
        self.room.setdefault(source, {})
        self.room.setdefault(sink, {})
        while sink in (depth := self._depths(source)):
            waiting = {vertex: list(edges) for vertex, edges in self.room.items()}
            while self._push(source, sink, depth, waiting):
                pass
        return self._leading_to(sink)

    def _depths(self, source: Vertex) -> dict[Vertex, int]:
        depth = {source: 0}
        queue = deque([source])
        while queue:
            tail = queue.popleft()
            for head, room in self.room[tail].items():
                if room and head not in depth:
                    depth[head] = depth[tail] + 1
                    queue.append(head)
        return depth

    def _push(
        self, source: Vertex, sink: Vertex, depth: dict[Vertex, int], waiting: dict[Vertex, list[Vertex]]
    ) -> bool:
        """One shortest path filled to its narrowest edge; False when none is left. `waiting`: edges not yet tried."""
        path = [source]
        while path and path[-1] != sink:
            tail = path[-1]
            while waiting[tail]:
                head = waiting[tail][-1]
                if self.room[tail][head] and depth.get(head) == depth[tail] + 1:
                    path.append(head)
                    break
                waiting[tail].pop()
            else:
                path.pop()
                if path:
                    waiting[path[-1]].pop()
        steps = list(pairwise(path))
        narrowest = min((self.room[tail][head] for tail, head in steps), default=0)
        for tail, head in steps:
            self.room[tail][head] -= narrowest
            self.room[head][tail] += narrowest
        return bool(steps)

    def _leading_to(self, sink: Vertex) -> set[Vertex]:
        found = {sink}
        queue = deque([sink])
        while queue:
            head = queue.popleft()
            for tail in self.room[head]:
                if tail not in found and self.room[tail][head]:
                    found.add(tail)
                    queue.append(tail)
        return found
