"""Row nodes and the values wanted of them -> a Program. Passes of one rank and space are one walk over a row."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from throughtime._errors import BackendError
from throughtime.capture.graph import Input, Node, Ref
from throughtime.loop.native.hazards import without_hazards
from throughtime.loop.native.program import (
    Buffer,
    Expression,
    Gather,
    Immediate,
    Kind,
    Load,
    Op,
    Operand,
    Pass,
    Product,
    Program,
    Store,
    SubPass,
    Weight,
    is_whole,
)
from throughtime.loop.native.ranks import in_register, rank_items, store_rank, stored_on_the_way
from throughtime.loop.native.resolve import Item, Resolved, Want, is_rounded, same_elements
from throughtime.loop.native.views import Features, View, contiguous, feature_shape, squeeze, view_as, walked

__all__ = ["Assembly", "Want"]


class Assembly:
    """Collects where the inputs of a program lie, then makes it."""

    def __init__(self, values: dict[str, Input | Node]) -> None:
        self.values = dict(values)
        self.sources: dict[str, View] = {}
        self.buffers: dict[str, Buffer] = {}

    def copy(self) -> "Assembly":
        twin = Assembly(dict(self.values))
        twin.sources, twin.buffers = dict(self.sources), dict(self.buffers)
        return twin

    def buffer(self, name: str, kind: Kind, value: str, *, local: bool = False) -> Buffer:
        """Room for a value."""
        like = self.values[value]
        return Buffer(name, kind, math.prod(feature_shape(like.shape)), local, is_whole(like.dtype))

    def read(self, value: str, name: str, kind: Kind, *, local: bool = False) -> None:
        """The value lies in the buffer `name`."""
        self.buffers[name] = self.buffer(name, kind, value, local=local)
        self.sources[value] = contiguous(name, feature_shape(self.values[value].shape))

    def want(self, value: str, name: str, kind: Kind, *, local: bool = False) -> Want:
        """The value, stored in the buffer `name`."""
        buffer = self.buffer(name, kind, value, local=local)
        return Want(value, buffer, contiguous(name, feature_shape(self.values[value].shape)))

    def program(self, nodes: Sequence[Node], wants: Sequence[Want], *, reverse: bool) -> Program:
        buffers = {**self.buffers, **{want.buffer.name: want.buffer for want in wants}}
        resolved = Resolved(dict(self.values), dict(self.sources), buffers, list(wants))
        resolved.take(_live(nodes, wants))
        rank_items(resolved)
        return _Assembler(resolved).program(reverse)


def _live(nodes: Sequence[Node], wants: Sequence[Want]) -> list[Node]:
    """Those that something wanted is computed from."""
    live = {want.value for want in wants}
    for node in reversed(nodes):
        if node.name in live:
            live.update(node.operands)
    return [node for node in nodes if node.name in live]


class _Assembler:
    def __init__(self, resolved: Resolved) -> None:
        self.r = resolved
        self.weights: dict[str, Weight] = {}
        self.homes: dict[str, View] = {}

    def program(self, reverse: bool) -> Program:
        self._choose_homes()
        ops = without_hazards(self._ops(), self.r.buffers)
        used = {name for op in ops for name in _buffers_of(op)}
        buffers = {name: buffer for name, buffer in self.r.buffers.items() if name in used}
        return Program(buffers, tuple(_merged(ops)), reverse, self.weights)

    # --- places

    def _choose_homes(self) -> None:
        """Where each computed value is read from by those that do not have it in a register."""
        for want in self.r.wants:
            if isinstance(want.value, str) and self._can_be_home(want):
                self.homes.setdefault(self.r.sources[want.value].base, want.to)
        needed = self._read_from_storage()
        for name, item in self.r.items.items():
            if name not in self.homes and (name in needed or not item.is_pass):
                shape = feature_shape(item.node.shape)
                buffer = self.r.scratch(name)
                self.homes[name] = contiguous(buffer.name, shape)
                if item.is_pass:
                    self.r.wants.append(Want(name, buffer, self.homes[name]))

    def _can_be_home(self, want: Want) -> bool:
        item = self.r.base_item(str(want.value))
        if item is None or want.add or not same_elements(self.r.sources[str(want.value)], item):
            return False
        whole = want.to.is_whole and want.to.offset == 0 and want.buffer.width == math.prod(want.to.shape)
        return whole and (want.buffer.kind in ("pair", "block") or self._only_stored(item))

    def _only_stored(self, item: Item) -> bool:
        """A product may write a state in place only if nothing else reads its value: the place holds the old one."""
        name = item.node.name
        wants = [w for w in self.r.wants if self._base(w) == name]
        read = any(self.r.sources[o].base == name for i in self.r.items.values() for o in _sources_of(i, self.r))
        return not item.is_pass and len(wants) == 1 and not read

    def _read_from_storage(self) -> set[str]:
        needed = set()
        for item in self.r.items.values():
            for operand in item.node.operands:
                source = self.r.base_item(operand)
                if source is not None and not (in_register(self.r, operand, item) and source.rank == item.rank):
                    needed.add(source.node.name)
        for want in self.r.wants:
            item = self.r.base_item(want.value) if isinstance(want.value, str) else None
            if item is not None and not stored_on_the_way(self.r, want):
                needed.add(item.node.name)
        return needed

    # --- walks and products, in order

    def _ops(self) -> list[Op]:
        walks: dict[tuple[int, Features], tuple[list[Item], list[Want]]] = {}
        products: dict[int, list[Item]] = {}
        for item in self.r.items.values():
            if item.is_pass:
                walks.setdefault((item.rank, item.space), ([], []))[0].append(item)
            else:
                products.setdefault(item.rank, []).append(item)
        for want in self.r.wants:
            if not self._stored_by_product(want):
                walks.setdefault(self._place(want), ([], []))[1].append(want)
        ops: list[Op] = []
        for rank in sorted({rank for rank, _ in walks} | set(products)):
            for (_, space), (items, wants) in [(key, walk) for key, walk in walks.items() if key[0] == rank]:
                ops += [Pass((part,)) for part in self._sub_passes(space, items, wants)]
            ops += [op for item in products.get(rank, []) for op in self._product_ops(item)]
        return ops

    def _stored_by_product(self, want: Want) -> bool:
        item = self.r.base_item(want.value) if isinstance(want.value, str) else None
        return item is not None and not item.is_pass and self.homes[item.node.name] is want.to

    def _place(self, want: Want) -> tuple[int, Features]:
        if stored_on_the_way(self.r, want):
            item = self.r.base_item(str(want.value))
            assert item is not None
            return item.rank, item.space
        return store_rank(self.r, want), squeeze(want.to.shape)

    def _sub_passes(self, space: Features, items: list[Item], wants: list[Want]) -> Iterator[SubPass]:
        """One walk; several where reductions over different axes meet, each with the elementwise items again."""
        plain = [item for item in items if not item.reduced]
        reduced = {item.node.name for item in items if item.reduced}
        axes = list(dict.fromkeys(item.axes for item in items if item.reduced)) or [()]
        for i, own_axes in enumerate(axes):
            own = [item for item in items if item.reduced and item.axes == own_axes]
            names = {item.node.name for item in own}
            stored = [w for w in wants if self._base(w) in names or (i == 0 and self._base(w) not in reduced)]
            yield self._sub_pass(space, [*plain, *own], stored)

    def _base(self, want: Want) -> str | None:
        return self.r.sources[want.value].base if isinstance(want.value, str) else None

    def _sub_pass(self, space: Features, items: list[Item], wants: list[Want]) -> SubPass:
        order = {name: i for i, name in enumerate(self.r.items)}
        items = sorted(items, key=lambda item: order[item.node.name])
        here = {item.node.name for item in items}
        expressions = []
        for item in items:
            operands = tuple(self._operand(arg, item, here) for arg in item.node.args)
            expressions.append(Expression(item.node, operands, item.axes))
        stores = [Store(self._stored(want, here), walked(want.to, want.to.shape), want.add) for want in wants]
        return SubPass(space, tuple(expressions), tuple(stores))

    def _operand(self, arg: Any, item: Item, here: set[str]) -> Operand:
        if not isinstance(arg, Ref):
            return Immediate(arg)
        if arg.name in self.r.immediates:
            return self.r.immediates[arg.name]
        base = self.r.sources[arg.name].base
        if base in here and in_register(self.r, arg.name, item):
            return base
        return self._load(arg.name, item.walk)

    def _stored(self, want: Want, here: set[str]) -> Operand:
        if isinstance(want.value, Immediate):
            return want.value
        base = self.r.sources[want.value].base
        if base in here and stored_on_the_way(self.r, want):
            return base
        return self._load(want.value, want.to.shape)

    def _load(self, name: str, walk: Features) -> Load:
        return Load(walked(self._located(name), walk), self.r.values[name].dtype == torch.bool)

    def _located(self, name: str) -> View:
        """A view of a computed value is one of the buffer that the value is stored in."""
        view = self.r.sources[name]
        if view.base not in self.r.items:
            return view
        return replace(view, base=self.homes[view.base].base)

    # --- products and lookups

    def _product_ops(self, item: Item) -> Iterator[Op]:
        node, home = item.node, self.homes[item.node.name].base
        if node.op == "embedding":
            yield self._gather(node, home)
            return
        bias, *pairs = node.args
        init = None if bias is None else self._located(bias.name)
        n = feature_shape(node.shape)[-1]
        vectors = math.prod(item.walk) // n
        for x, w in zip(pairs[::2], pairs[1::2]):
            k = feature_shape(self.r.values[x.name].shape)[-1]
            rounded = is_rounded(x.name, self.r.values) and is_rounded(w.name, self.r.values)
            weight = Weight(w.name, k, n, rounded)
            self.weights[weight.label] = weight
            yield Product(self._located(x.name), weight.label, home, init, k, n, vectors)
            init = contiguous(home, (math.prod(item.walk),))

    def _gather(self, node: Node, home: str) -> Gather:
        table, index = node.operands
        rows, width = self.r.values[table].shape
        places = self._located(index)
        line = view_as(places, (math.prod(places.shape),))
        if line is None:
            raise BackendError(f"'embedding' ({node}) looks up a transposed index")
        return Gather(self._located(table).base, line, home, int(width), int(rows))


def _sources_of(item: Item, resolved: Resolved) -> list[str]:
    return [operand for operand in item.node.operands if operand in resolved.sources]


def _merged(ops: Sequence[Op]) -> list[Op]:
    """Passes without a product between them share one loop over the rows."""
    merged: list[Op] = []
    for op in ops:
        if isinstance(op, Pass) and merged and isinstance(merged[-1], Pass):
            merged[-1] = Pass(merged[-1].parts + op.parts)
        else:
            merged.append(op)
    return merged


def _buffers_of(op: Op) -> Iterator[str]:
    if isinstance(op, Pass):
        for part in op.parts:
            operands = [o for e in part.expressions for o in e.operands] + [s.value for s in part.stores]
            yield from (o.view.base for o in operands if isinstance(o, Load))
            yield from (s.to.base for s in part.stores)
    elif isinstance(op, Product):
        yield op.a.base
        yield op.to
        if op.init is not None:
            yield op.init.base
    else:
        yield from (op.table, op.index.base, op.to)
