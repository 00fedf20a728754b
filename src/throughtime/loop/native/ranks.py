"""Items -> ranks: the least number of stores and loads that must lie before each.

Elementwise items over the same space have each other's values in registers, and share a rank. Everything else reads
what an earlier rank has stored.
"""

from throughtime.loop.native.program import Immediate
from throughtime.loop.native.resolve import Item, Resolved, Want, same_elements

__all__ = ["in_register", "rank_items", "store_rank", "stored_on_the_way"]


def rank_items(resolved: Resolved) -> None:
    """Sets `rank` of every item: as early as its operands allow, then as late as its readers allow.

    Operands come before their readers in `items`, so one walk is enough for each direction.
    """
    for item in resolved.items.values():
        operands = [o for o in item.node.operands if o in resolved.sources]
        item.rank = max((_rank_after(resolved, o, item) for o in operands), default=0)
    _sink(resolved)


def in_register(resolved: Resolved, operand: str, reader: Item) -> bool:
    """Whether a reader of the same rank has the operand in a register."""
    source = resolved.base_item(operand)
    return (
        source is not None
        and source.is_pass
        and reader.is_pass
        and not source.axes
        and not source.reduced
        and source.space == reader.space
        and same_elements(resolved.sources[operand], source)
    )


def store_rank(resolved: Resolved, want: Want) -> int:
    """The rank of the walk (or product) that stores a wanted value."""
    if isinstance(want.value, Immediate):
        return 0
    item = resolved.base_item(want.value)
    if item is not None:
        return item.rank if stored_on_the_way(resolved, want) else item.rank + 1
    base = resolved.sources[want.value].base
    return _rank_of_buffer(resolved, base) + 1 if base in resolved.joined else 0


def stored_on_the_way(resolved: Resolved, want: Want) -> bool:
    """Whether a pass stores the value while it has it in a register."""
    item = resolved.base_item(want.value) if isinstance(want.value, str) else None
    return item is not None and item.is_pass and same_elements(resolved.sources[str(want.value)], item)


def _rank_after(resolved: Resolved, operand: str, reader: Item) -> int:
    source = resolved.base_item(operand)
    if source is not None:
        return source.rank if in_register(resolved, operand, reader) else source.rank + 1
    base = resolved.sources[operand].base
    return _rank_of_buffer(resolved, base) + 1 if base in resolved.joined else 0


def _rank_of_buffer(resolved: Resolved, buffer: str) -> int:
    """When all parts of a concatenation are stored."""
    return max((store_rank(resolved, want) for want in resolved.wants if want.buffer.name == buffer), default=0)


def _sink(resolved: Resolved) -> None:
    """An elementwise item that nobody stores moves to its first reader: what stays in a register costs nothing."""
    wanted = {resolved.sources[w.value].base for w in resolved.wants if isinstance(w.value, str)}
    latest: dict[str, list[int]] = {name: [] for name in resolved.items}
    for name, item in reversed(list(resolved.items.items())):
        if item.is_pass and not item.reduced and name not in wanted and latest[name]:
            item.rank = max(item.rank, min(latest[name]))
        for operand in item.node.operands:
            source = resolved.base_item(operand)
            if source is not None:
                late = item.rank if in_register(resolved, operand, item) else item.rank - 1
                latest[source.node.name].append(late)
