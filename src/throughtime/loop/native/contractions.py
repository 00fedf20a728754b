"""Sums over pairs of the products of two values' vectors -> machine code.

A value's vectors are read where they lie, if they lie one after the other; one worker does all such sums, from a table,
and is compiled once per process. Else, as the overlapping windows of a convolution, they are copied for a few pairs at
a time, by a worker of the plan's own; so is what runs on tiles.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from llvmlite import ir

from throughtime.loop.native.amx import AMX_SCRATCH, FACTOR_WORDS, declare_amx
from throughtime.loop.native.amx_packing import BLOCK
from throughtime.loop.native.gemm import declare_products, outer_scratch, panel_width, products_library
from throughtime.loop.native.ir import I64, PTR, Emitter, Value, define, new_module
from throughtime.loop.native.jit import CompiledModule, compile_module
from throughtime.loop.native.passes import emit_pass
from throughtime.loop.native.program import Buffer, Load, Pass, Store, SubPass
from throughtime.loop.native.target import Target
from throughtime.loop.native.threads import FIRST_ARGUMENT, define_worker
from throughtime.loop.native.views import View, contiguous, walked

__all__ = [
    "Contraction",
    "Side",
    "are_plain",
    "contraction_scratch",
    "contractions_library",
    "emit_contractions",
]

VECTORS_AT_ONCE = 256
"""That are copied: as many as `outer` packs."""
PLAIN_WORDS = 8
"""Of one contraction in the table: its `row`, and three pointers."""
_LINE = 16
"""Numbers: what threads work with begins on cache lines of its own."""


@dataclass(frozen=True)
class Side:
    """One of the two values: its view of a buffer with `width` numbers per pair; so many vectors of `size`."""

    view: View
    width: int
    vectors: int
    size: int

    @property
    def is_copied(self) -> bool:
        if self.vectors > 1:
            return not (self.view.is_whole and self.width == self.vectors * self.size)
        return not (self.size == 1 or self.view.strides[-1] == 1)

    @property
    def step(self) -> int:
        """From a vector to the next."""
        return self.size if self.is_copied or self.vectors > 1 else self.width


@dataclass(frozen=True)
class Contraction:
    """sum over pairs of a[m]^T g[n], or of g[n] alone. rounded: both are, to bfloat16."""

    a: Side | None
    g: Side
    rounded: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.g.size,) if self.a is None else (self.a.size, self.g.size)

    def is_on_tiles(self, target: Target) -> bool:
        return target.has_amx_bf16 and self.rounded

    @property
    def copied(self) -> tuple[Side, ...]:
        return tuple(side for side in (self.a, self.g) if side is not None and side.is_copied)

    @property
    def pairs_at_once(self) -> int:
        return max(1, VECTORS_AT_ONCE // self.g.vectors)

    @property
    def room(self) -> int:
        """Numbers that are copied at once."""
        return self.pairs_at_once * sum(side.vectors * side.size for side in self.copied)

    @functools.cached_property
    def row(self) -> tuple[int, ...]:
        """Of the table, but for the pointers: m (0 without a), n, vectors of a pair, a's step and g's, downwards."""
        m, step = (0, 0) if self.a is None else (self.a.size, -self.a.step)
        return m, self.g.size, self.g.vectors, step, -self.g.step


def are_plain(contractions: Sequence[Contraction], target: Target) -> bool:
    """Whether the worker that reads a table can do them."""
    return not any(c.copied or c.is_on_tiles(target) for c in contractions)


def contraction_scratch(contractions: Sequence[Contraction], target: Target, element: ir.Type) -> int:
    """Elements that each share needs."""
    room = _packing_scratch(contractions, target, element) + max((c.room for c in contractions), default=0)
    return -(-room // _LINE) * _LINE


def _packing_scratch(contractions: Sequence[Contraction], target: Target, element: ir.Type) -> int:
    on_tiles = any(c.is_on_tiles(target) for c in contractions)
    return max(outer_scratch(target, element), AMX_SCRATCH if on_tiles else 0)


def emit_contractions(contractions: Sequence[Contraction], element: ir.Type, target: Target, name: str) -> ir.Module:
    """A module with the worker `name`: arguments p, scratch, then for each contraction the pointers a, g, c.

    Each share takes its part of the outputs of every contraction, so sums over pairs are never split.
    """
    module = new_module(name, target)
    e = define(module, f"{name}_body", {"block": PTR, "share": I64}, target, internal=True)
    block, share = e.arguments
    pairs = e.load(block, I64, FIRST_ARGUMENT)
    room = contraction_scratch(contractions, target, element)
    scratch = e.offset(e.load_pointer(block, FIRST_ARGUMENT + 1), e.mul(share, room), element)
    copies = e.offset(scratch, _packing_scratch(contractions, target, element), element)
    located = [
        _Located(contraction, *(e.load_pointer(block, FIRST_ARGUMENT + 2 + 3 * i + j) for j in range(3)))
        for i, contraction in enumerate(contractions)
    ]
    for group in _groups(located, target):
        _Part(e, element, group, scratch, copies, share, e.load(block, I64, 1)).emit(pairs)
    body = e.done()
    define_worker(module, target, name, body)
    return module


@functools.cache
def contractions_library(target: Target, element: ir.Type) -> CompiledModule:
    """The worker `plain`, compiled once per process."""
    module = _emit_plain(element, target, "plain")
    return compile_module(module, target, [products_library(target, element)])


def _emit_plain(element: ir.Type, target: Target, name: str) -> ir.Module:
    """A module with the worker `name`. Arguments: p, scratch, its elements for a share, the number of contractions; for
    each its `row` and the pointers a, g, c. Shares as in `emit_contractions`.
    """
    module = new_module(name, target)
    products = declare_products(module, element)
    e = define(module, f"{name}_body", {"block": PTR, "share": I64}, target, internal=True)
    block, share = e.arguments
    pairs, room, count = (e.load(block, I64, FIRST_ARGUMENT + i) for i in (0, 2, 3))
    scratch = e.offset(e.load_pointer(block, FIRST_ARGUMENT + 1), e.mul(share, room), element)
    grain = panel_width(target, element)

    def one(index: Value, _: list[Value]) -> None:
        row = e.offset(block, e.add(e.mul(index, PLAIN_WORDS), FIRST_ARGUMENT + 4), I64)
        m, n, vectors, a_step, g_step = (e.load(row, I64, i) for i in range(5))
        a, g, out = (e.load_pointer(row, 5 + i) for i in range(3))
        low, high = _range(e, n, grain, share, e.load(block, I64, 1))
        size, g_here, out_here = e.sub(high, low), e.offset(g, low, element), e.offset(out, low, element)
        all_vectors = e.mul(pairs, vectors)

        def sum_products() -> None:
            e.call(products.outer, [all_vectors, m, size, a, a_step, g_here, g_step, out_here, n, scratch])

        def sum_alone() -> None:
            e.call(products.column_sums, [pairs, size, g_here, g_step, out_here])

        e.choose(e.compare(">", size, 0), lambda: e.choose(e.compare(">", m, 0), sum_products, sum_alone))

    e.loop(count, one)
    define_worker(module, target, name, e.done())
    return module


class _Located(NamedTuple):
    """A contraction and where its values and its sums lie."""

    contraction: Contraction
    a: Value
    g: Value
    out: Value


def _groups(located: Sequence[_Located], target: Target) -> list[list[_Located]]:
    """On tiles, those that read the same g where it lies are summed together: it is packed once for all."""
    groups: dict[object, list[_Located]] = {}
    for i, one in enumerate(located):
        c = one.contraction
        groups.setdefault(c.g if c.is_on_tiles(target) and not c.copied else i, []).append(one)
    return list(groups.values())


class _Part:
    """A share's part of contractions with one g, or of one contraction: a range of columns."""

    def __init__(
        self,
        e: Emitter,
        element: ir.Type,
        group: list[_Located],
        scratch: Value,
        copies: Value,
        share: Value,
        shares: Value,
    ) -> None:
        self.e, self.element, self.group = e, element, group
        self.contraction, self.a, self.g, self.out = group[0]
        self.scratch, self.copies = scratch, copies
        self.on_tiles = self.contraction.is_on_tiles(e.target)
        grain = BLOCK if self.on_tiles else panel_width(e.target, element)
        self.low, self.high = _range(e, e.integer(self.contraction.g.size), grain, share, shares)

    def emit(self, pairs: Value) -> None:
        e = self.e
        size = e.sub(self.high, self.low)
        e.choose(e.compare(">", size, 0), lambda: self._sum(pairs, size))

    def _sum(self, pairs: Value, size: Value) -> None:
        e, c = self.e, self.contraction
        if c.a is None:
            g, out = self._from(self.g, e.add(self.low, c.g.view.offset)), self._from(self.out, self.low)
            e.call(declare_products(e.module, self.element).column_sums, [pairs, size, g, e.integer(c.g.step), out])
        elif not c.copied:
            self._outer(pairs, size, self._from(self.a, c.a.view.offset), self._from(self.g, c.g.view.offset))
        else:
            e.loop(pairs, lambda first, _: self._some_pairs(first, pairs, size), step=c.pairs_at_once)

    def _some_pairs(self, first: Value, pairs: Value, size: Value) -> None:
        e, c = self.e, self.contraction
        assert c.a is not None
        count = e.min(e.sub(pairs, first), c.pairs_at_once)
        room = self.copies
        found = []
        for side, pointer in ((c.a, self.a), (c.g, self.g)):
            here = self._from(pointer, e.mul(first, side.width))
            if side.is_copied:
                self._copy(side, here, room, count)
                found.append(room)
                room = self._from(room, c.pairs_at_once * side.vectors * side.size)
            else:
                found.append(self._from(here, side.view.offset))
        self._outer(count, size, *found)

    def _copy(self, side: Side, source: Value, to: Value, count: Value) -> None:
        """The vectors of some pairs, one after the other."""
        view = side.view
        numbers = side.vectors * side.size
        buffers = {"source": Buffer("source", "pair", side.width), "copy": Buffer("copy", "pair", numbers)}
        load = Load(walked(View("source", view.shape, view.strides, view.offset), view.shape))
        store = Store(load, walked(contiguous("copy", view.shape), view.shape))
        move = Pass((SubPass(store.to.shape, (), (store,)),))
        emit_pass(self.e, self.element, move, buffers, {"source": source, "copy": to}, count)

    def _outer(self, pairs: Value, size: Value, a: Value, g: Value) -> None:
        e, c = self.e, self.contraction
        assert c.a is not None
        vectors, step = e.mul(pairs, c.g.vectors), e.integer(c.g.step)
        g_here = self._from(g, self.low)
        if self.on_tiles:
            factors = [self._factor(self.group[0], a), *(self._factor(one, None) for one in self.group[1:])]
            table = e.stack(I64, FACTOR_WORDS * len(factors))
            for i, word in enumerate(word for factor in factors for word in factor):
                e.store(word, table, i)
            count = e.integer(len(factors))
            e.call(declare_amx(e.module).outer, [vectors, size, g_here, step, self.scratch, count, table])
        else:
            m, a_step, out = e.integer(c.a.size), e.integer(c.a.step), self._from(self.out, self.low)
            arguments = [vectors, m, size, a, a_step, g_here, step, out, e.integer(c.g.size), self.scratch]
            e.call(declare_products(e.module, self.element).outer, arguments)

    def _factor(self, one: _Located, a: Value | None) -> list[Value]:
        """As `amx_outer` reads it. a: where its vectors are, if not in the value itself."""
        e, c = self.e, one.contraction
        assert c.a is not None
        a = self._from(one.a, c.a.view.offset) if a is None else a
        first, out = (e.b.ptrtoint(pointer, I64) for pointer in (a, self._from(one.out, self.low)))
        return [e.integer(c.a.size), first, e.integer(c.a.step), out, e.integer(c.g.size)]

    def _from(self, pointer: Value, index: Value | int) -> Value:
        return self.e.offset(pointer, index, self.element)


def _range(e: Emitter, size: Value, grain: int, share: Value, shares: Value) -> tuple[Value, Value]:
    """The share's part of `size`, in whole grains."""
    grains = e.ceil_div(size, grain)

    def bound(i: Value) -> Value:
        return e.min(e.mul(e.div(e.mul(grains, i), shares), grain), size)

    return bound(share), bound(e.add(share, 1))
