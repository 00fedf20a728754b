"""Ops -> ops in which no state is overwritten while its old value is still to be read.

Before: carry = next; ...; other = f(carry)
After:  scratch = next; ...; other = f(carry); carry = scratch
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from throughtime.loop.native.program import Buffer, Load, Op, Pass, Product, Store, SubPass
from throughtime.loop.native.views import View, contiguous, walked

__all__ = ["without_hazards"]


def without_hazards(ops: Sequence[Op], buffers: dict[str, Buffer]) -> list[Op]:
    """Adds scratch buffers to `buffers`."""
    last_read = _last_reads(ops, buffers)
    result: list[Op] = []
    late: list[Op] = []
    moved = {
        op.to
        for place, op in enumerate(ops)
        if isinstance(op, Product) and _is_state(op.to, buffers) and last_read.get(op.to, -1) >= place
    }
    for place, op in enumerate(ops):
        if isinstance(op, Pass):
            result.append(Pass(tuple(_safe_part(part, place, last_read, buffers, late) for part in op.parts)))
        elif isinstance(op, Product) and op.to in moved:
            scratch = _scratch_for(op.to, buffers)
            init = op.init if op.init is None or op.init.base != op.to else replace(op.init, base=scratch)
            result.append(replace(op, to=scratch, init=init))
            late = [copy for copy in late if not _writes(copy, op.to)]
            late.append(_copy(scratch, contiguous(op.to, (buffers[op.to].width,))))
        else:
            result.append(op)
    return result + late


def _safe_part(
    part: SubPass, place: int, last_read: Mapping[str, int], buffers: dict[str, Buffer], late: list[Op]
) -> SubPass:
    stores = []
    for store in part.stores:
        base = store.to.base
        if not _is_state(base, buffers) or store.add or not _is_read_later(store, part, place, last_read):
            stores.append(store)
            continue
        scratch = _scratch_for(base, buffers)
        stores.append(replace(store, to=replace(store.to, base=scratch)))
        late.append(_copy(scratch, store.to))
    return replace(part, stores=tuple(stores))


def _is_read_later(store: Store, part: SubPass, place: int, last_read: Mapping[str, int]) -> bool:
    """Reads of the same element in the same walk come before its store; any other read in or after it does not."""
    last = last_read.get(store.to.base, -1)
    if last != place:
        return last > place
    return any(load.view != store.to for load in _loads(part) if load.view.base == store.to.base)


def _last_reads(ops: Sequence[Op], buffers: Mapping[str, Buffer]) -> dict[str, int]:
    found: dict[str, int] = {}
    for place, op in enumerate(ops):
        for base in _reads(op):
            if _is_state(base, buffers):
                found[base] = place
    return found


def _reads(op: Op) -> Iterator[str]:
    if isinstance(op, Pass):
        yield from (load.view.base for part in op.parts for load in _loads(part))
    elif isinstance(op, Product):
        yield op.a.base
        if op.init is not None and op.init.base != op.to:
            yield op.init.base
    else:
        yield op.index.base


def _loads(part: SubPass) -> Iterator[Load]:
    for operand in (*(o for e in part.expressions for o in e.operands), *(s.value for s in part.stores)):
        if isinstance(operand, Load):
            yield operand


def _is_state(base: str, buffers: Mapping[str, Buffer]) -> bool:
    return base in buffers and buffers[base].kind == "row"


def _scratch_for(base: str, buffers: dict[str, Buffer]) -> str:
    name = f"scratch:next {base}"
    buffers[name] = replace(buffers[base], name=name, kind="block")
    return name


def _copy(scratch: str, to: View) -> Pass:
    to = walked(to, to.shape)
    part = SubPass(to.shape, (), (Store(Load(replace(to, base=scratch)), to),))
    return Pass((part,))


def _writes(op: Op, base: str) -> bool:
    return isinstance(op, Pass) and any(s.to.base == base for part in op.parts for s in part.stores)
