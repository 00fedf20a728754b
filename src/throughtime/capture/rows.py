"""Where the rows are in a value as the cell sees it, and the same value with its rows first.

The cell may put the row axis anywhere, or merge it with its neighbours (`[B, S, H]` viewed as `[B*S, H]` for a
product). A graph holds every value with its rows first and whole; a `Place` says how the two belong together. As the
cell sees it, axis `axis` has `before * B * after` entries; in the graph the shape is
`(B, axes in front, before, after, axes behind)`, where a `before` or `after` of 1 is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from throughtime.capture.graph import ROWS, Shape

__all__ = [
    "FRONT",
    "MixedRows",
    "Place",
    "Sizes",
    "find_place",
    "graph_axes",
    "graph_shape",
    "list_sizes",
    "moved",
    "row_axis",
]

Sizes = tuple[int, ...]


class MixedRows(Exception):
    """An operator lets one row see another, or the batch size; the message says how."""


@dataclass(frozen=True, slots=True)
class Place:
    axis: int
    before: int = 1
    after: int = 1

    @property
    def parts(self) -> Sizes:
        """What is left of the row axis when its rows are taken out."""
        return tuple(n for n in (self.before, self.after) if n != 1)


FRONT = Place(0)


def graph_shape(sizes: Sizes, place: Place | None) -> Shape:
    if place is None:
        return sizes
    return (ROWS, *sizes[: place.axis], *place.parts, *sizes[place.axis + 1 :])


def graph_axes(axis: int, place: Place | None) -> tuple[int, ...]:
    """The axes in the graph of the cell's axis: several, with the rows, for the row axis."""
    if place is None:
        return (axis,)
    if axis < place.axis:
        return (axis + 1,)
    parts = len(place.parts)
    if axis == place.axis:
        return (0, *range(axis + 1, axis + 1 + parts))
    return (axis + parts,)


def moved(sizes: Sizes, place: Place, new_sizes: Sizes, rows: int) -> Place:
    """Where the rows are after a view that keeps the order of the elements."""
    behind = place.after * prod(sizes[place.axis + 1 :])
    axis = row_axis(new_sizes, rows)
    if axis is None:
        raise MixedRows("it views away the row axis")
    new_behind = prod(new_sizes[axis + 1 :])
    count = new_sizes[axis] // rows
    after, rest = divmod(behind, new_behind) if new_behind else (0, 1)
    if rest or not after or count % after:
        raise MixedRows(
            f"it views {list_sizes(sizes, rows)} as {list_sizes(new_sizes, rows)}, which cuts the row axis; move it to "
            "the front with transpose before viewing"
        )
    return Place(axis, count // after, after)


def find_place(sizes: Sizes, rows: int) -> Place | None:
    """Of a value made inside the step with the batch size among its sizes, such as zeros(B, 4)."""
    axis = row_axis(sizes, rows)
    return None if axis is None else Place(axis, 1, sizes[axis] // rows)


def row_axis(sizes: Sequence[int], rows: int) -> int | None:
    found = [i for i, n in enumerate(sizes) if n and n % rows == 0]
    if len(found) > 1:
        raise MixedRows(f"its result {list_sizes(sizes, rows)} has two axes of rows: every row meets every other")
    return found[0] if found else None


def list_sizes(sizes: Sequence[int], rows: int) -> str:
    """`[B, 4*B, 5]`, for messages."""

    def word(n: int) -> str:
        if not n or n % rows:
            return str(n)
        return ROWS if n == rows else f"{n // rows}*{ROWS}"

    return "[" + ", ".join(map(word, sizes)) + "]"
