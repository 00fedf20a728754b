"""Where each value of a step stands: in which loop, or at no step in particular. What a rewrite is decided by."""

from collections.abc import Sequence
from itertools import groupby

from throughtime.capture.graph import Node
from throughtime.plan.editor import GraphEditor, has_rows
from throughtime.plan.per_row import find_still
from throughtime.plan.stages import find_loops

__all__ = ["Places", "Run"]

Run = tuple[int, int, list[Node]]
"""Slices of one value that touch: (first, end, slices)."""


class Places:
    def __init__(self, graph: GraphEditor) -> None:
        self._loops = find_loops(list(graph.where(has_rows)), graph.feedback)
        self._still = find_still(graph)

    def follow(self, name: str, stand_in: str) -> None:
        """A value that takes the place of another stands where that stood."""
        if name in self._loops:
            self._loops[stand_in] = self._loops[name]

    def groups(self, names: Sequence[str], product: str) -> list[list[str]]:
        """Neighbours that are in the product's loop, that are free of it, that are the same at all steps."""

        def place(name: str) -> tuple[bool, bool]:
            return name in self._still, self._shares_loop(name, product)

        return [list(group) for _, group in groupby(names, place)]

    def runs_of(self, graph: GraphEditor, product: Node, axis: int) -> list[Run]:
        """The slices that are all that is used of a product, by where they stand; none if it is as it should be."""
        cuts = graph.users(product.name)
        if not all(_is_slice_of(cut, axis) for cut in cuts):
            return []
        runs: list[Run] = []
        inside = None
        for cut in sorted(cuts, key=lambda c: (c.attributes["start"], c.attributes["end"])):
            start, end = cut.attributes["start"], cut.attributes["end"]
            side = self._shares_loop(cut.name, product.name)
            if runs and side == inside and start <= runs[-1][1]:
                first, last, members = runs[-1]
                runs[-1] = (first, max(last, end), [*members, cut])
            else:
                runs.append((start, end, [cut]))
            inside = side
        used, whole = sum(end - start for start, end, _ in runs), int(product.shape[axis])
        return runs if used < whole or (len(runs) > 1 and used == whole) else []

    def _shares_loop(self, name: str, product: str) -> bool:
        return product in self._loops and self._loops.get(name) == self._loops[product]


def _is_slice_of(node: Node, axis: int) -> bool:
    return node.op == "slice" and node.attributes["dim"] == axis and node.attributes["step"] == 1
