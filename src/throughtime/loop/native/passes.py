"""Pass -> one loop over the rows of a block, in which each sub-pass walks over a row by vectors.

The axes of a walk are put in order: kept axes, then reduced ones; neighbours whose elements follow each other in all
that is read and written become one. The last axis is walked by vectors, its tail under a mask. Where a reduction runs
over other axes than the last, the vectors lie along the last kept axis and the reduced axes are loops inside.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from llvmlite import ir

from throughtime.capture.graph import Node
from throughtime.loop.native.ir import I64, Emitter, Value
from throughtime.loop.native.operators import TRUTH, apply, combine, convert, identity, scalar_type
from throughtime.loop.native.program import INDEX, Buffer, Expression, Immediate, Load, Operand, Pass, Store, SubPass
from throughtime.loop.native.views import View

__all__ = ["emit_pass"]

VECTORS_AT_ONCE = 2
"""Where nothing is reduced: one vector's chain of operations waits for itself most of the time."""


def emit_pass(
    e: Emitter, element: ir.Type, op: Pass, buffers: dict[str, Buffer], bases: dict[str, Value], count: Value
) -> None:
    """bases: where the block's first entry lies in each buffer."""

    def one_row(i: Value, _: list[Value]) -> None:
        rows = _Rows(e, element, buffers, bases, i)
        for part in op.parts:
            _emit_walk(e, element, part, rows)

    e.loop(count, one_row)


class _Rows:
    """The row at hand: where it begins in each buffer, and the type of what lies there."""

    def __init__(
        self, e: Emitter, element: ir.Type, buffers: dict[str, Buffer], bases: dict[str, Value], i: Value
    ) -> None:
        self.types = {name: I64 if buffers[name].integer else element for name in bases}
        self.pointers: dict[str, Value] = {}
        for name, base in bases.items():
            first = e.mul(i, buffers[name].width)
            self.pointers[name] = base if buffers[name].kind == "const" else e.offset(base, first, self.types[name])


def _emit_walk(e: Emitter, element: ir.Type, part: SubPass, rows: _Rows) -> None:
    reduced = next((x.reduced for x in part.expressions if x.reduced), ())
    order, kept = _order(len(part.space), reduced)
    part = _reorder(part, order)
    part, kept = _collapse(part, kept)
    if not part.space:
        part = _reorder(replace(part, space=(1,)), (0,), grow=True)
        kept = 1 if not reduced else 0
    _Walk(e, element, part, rows, kept, bool(reduced)).emit()


def _order(rank: int, reduced: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    kept = [axis for axis in range(rank) if axis not in reduced]
    return (*kept, *reduced), len(kept)


def _reorder(part: SubPass, order: tuple[int, ...], grow: bool = False) -> SubPass:
    def turn(view: View) -> View:
        if grow:
            return View(view.base, (1,), (1,), view.offset)
        if len(view.shape) != len(order):  # the place of a reduced value has kept axes only
            return view
        return replace(view, shape=tuple(view.shape[a] for a in order), strides=tuple(view.strides[a] for a in order))

    space = part.space if grow else tuple(part.space[a] for a in order)
    return _map_views(replace(part, space=space), turn)


def _map_views(part: SubPass, change: Callable[[View], View]) -> SubPass:
    def operand(o: Operand) -> Operand:
        return replace(o, view=change(o.view)) if isinstance(o, Load) else o

    expressions = tuple(replace(x, operands=tuple(map(operand, x.operands))) for x in part.expressions)
    stores = tuple(replace(s, value=operand(s.value), to=change(s.to)) for s in part.stores)
    return SubPass(part.space, expressions, stores)


def _collapse(part: SubPass, kept: int) -> tuple[SubPass, int]:
    """Neighbouring axes of the same sort become one where every view allows it."""
    axis = len(part.space) - 2
    while axis >= 0:
        if axis + 1 != kept and _follows(part, axis):
            part = _map_views(part, lambda view, a=axis: _join(view, a))
            part = replace(
                part, space=(*part.space[:axis], part.space[axis] * part.space[axis + 1], *part.space[axis + 2 :])
            )
            if axis < kept:
                kept -= 1
        axis -= 1
    return part, kept


def _follows(part: SubPass, axis: int) -> bool:
    views = [o.view for x in part.expressions for o in x.operands if isinstance(o, Load)]
    views += [s.to for s in part.stores] + [s.value.view for s in part.stores if isinstance(s.value, Load)]
    return all(len(v.shape) <= axis + 1 or v.strides[axis] == v.strides[axis + 1] * v.shape[axis + 1] for v in views)


def _join(view: View, axis: int) -> View:
    if len(view.shape) <= axis + 1:
        return view
    shape = (*view.shape[:axis], view.shape[axis] * view.shape[axis + 1], *view.shape[axis + 2 :])
    return View(view.base, shape, (*view.strides[:axis], *view.strides[axis + 1 :]), view.offset)


class _Walk:
    """Writes the loops of one sub-pass. `kept` axes stand first; the rest are reduced."""

    def __init__(self, e: Emitter, element: ir.Type, part: SubPass, rows: _Rows, kept: int, reducing: bool) -> None:
        self.e, self.element, self.part, self.rows, self.kept = e, element, part, rows, kept
        self.reductions = [x for x in part.expressions if x.reduced] if reducing else []
        self.lanes = e.lanes(element)
        names = {x.node.name for x in self.reductions}
        self.results = [s for s in part.stores if isinstance(s.value, str) and s.value in names]
        self.on_the_way = [s for s in part.stores if s not in self.results]
        innermost = len(part.space) - 1
        self.horizontal = bool(self.reductions) and (kept == 0 or self._lies_along(innermost))
        self.vector_axis = innermost if self.horizontal or not self.reductions else kept - 1

    def emit(self) -> None:
        self._kept_axes(0, [])

    def _lies_along(self, axis: int) -> bool:
        """Whether vectors lie better along the reduced axis: its elements follow each other where they are read."""
        loads = [o.view for x in self.part.expressions for o in x.operands if isinstance(o, Load)]
        along = sum(v.strides[axis] == 1 for v in loads)
        beside = sum(v.strides[self.kept - 1] == 1 for v in loads)
        return along >= beside

    def _kept_axes(self, axis: int, at: list[Value]) -> None:
        if axis == self.kept:
            self._reduce(at)
        elif axis == self.vector_axis:
            self._by_vectors(axis, at, lambda index, mask: self._reduce_lanes([*at, index], mask))
        else:
            self.e.loop(self.part.space[axis], lambda index, _: self._kept_axes(axis + 1, [*at, index]))

    def _reduce_lanes(self, at: list[Value], mask: Value | None) -> None:
        """Vectors along the last kept axis: no reduction, or reduced axes as loops inside."""
        sums = self._reduced_loops(self.kept, at, mask, self._identities()) if self.reductions else []
        if not self.reductions:
            self._elements(at, mask, [])
        for store in self.results:
            self._store(store, sums[self._place(store)], at, mask)

    def _reduce(self, at: list[Value]) -> None:
        """Vectors along the last reduced axis; the lanes are combined at the end."""
        sums = self._reduced_loops(self.kept, at, None, self._identities())
        totals = [self._across(x.node, total) for x, total in zip(self.reductions, sums)]
        for store in self.results:
            self._store_scalar(store, totals[self._place(store)], at)

    def _reduced_loops(self, axis: int, at: list[Value], mask: Value | None, sums: list[Value]) -> list[Value]:
        if axis == len(self.part.space):
            return self._elements(at, mask, sums)
        if axis == self.vector_axis:
            return self._by_vectors_carrying(axis, at, sums)
        return self.e.loop(
            self.part.space[axis], lambda index, old: self._reduced_loops(axis + 1, [*at, index], mask, old), sums
        )

    def _by_vectors(self, axis: int, at: list[Value], body: Callable[[Value, Value | None], None]) -> None:
        """`lanes` is for each of the loops what the body is to take."""
        size, start, own = self.part.space[axis], 0, self.lanes
        for lanes in (VECTORS_AT_ONCE * own, own) if not self.reductions else (own,):
            self.lanes = lanes
            whole = size - (size - start) % lanes
            if whole > start:
                self.e.loop(whole, lambda index, _: body(index, None), start=start, step=lanes)
            start = whole
        if size != start:
            body(self.e.integer(start), self._tail_mask(size - start))

    def _by_vectors_carrying(self, axis: int, at: list[Value], sums: list[Value]) -> list[Value]:
        size = self.part.space[axis]
        whole = size - size % self.lanes
        if whole:
            sums = self.e.loop(whole, lambda index, old: self._elements([*at, index], None, old), sums, step=self.lanes)
        if size != whole:
            sums = self._elements([*at, self.e.integer(whole)], self._tail_mask(size - whole), sums)
        return sums

    def _tail_mask(self, remaining: int) -> Value:
        bits = [1 if lane < remaining else 0 for lane in range(self.lanes)]
        return ir.Constant(ir.VectorType(ir.IntType(1), self.lanes), bits)

    def _identities(self) -> list[Value]:
        return [self._full(x, identity(x.node.op, self._type(x))) for x in self.reductions]

    def _type(self, x: Expression) -> ir.Type:
        """Of a reduction's running value; truth is counted as numbers."""
        type_ = scalar_type(x.node.dtype, self.element)
        return I64 if type_ == I64 else self.element

    def _full(self, x: Expression, number: float) -> Value:
        return convert(self.e, number, self._type(x), self.lanes)

    def _place(self, store: Store) -> int:
        return next(i for i, x in enumerate(self.reductions) if x.node.name == store.value)

    # --- one vector

    def _elements(self, at: list[Value], mask: Value | None, sums: Sequence[Value]) -> list[Value]:
        """Compute every expression for one vector, store on the way, add to the sums."""
        known: dict[str, Value] = {}
        loaded: dict[Load, Value] = {}
        new: dict[str, Value] = {}
        for x in self.part.expressions:
            operands = [self._value(o, known, loaded, at, mask) for o in self._typed(x)]
            if x.reduced:
                new[x.node.name] = self._accumulate(x, operands[0], mask, sums)
            else:
                known[x.node.name] = apply(self.e, self.element, x.node, operands, self.lanes)
        values = [(s, self._value(s.value, known, loaded, at, mask)) for s in self.on_the_way]
        for store, value in values:
            self._store(store, value, at, mask)
        return [new[x.node.name] for x in self.reductions]

    def _typed(self, x: Expression) -> tuple[Operand, ...]:
        return x.operands[:1] if x.reduced else x.operands

    def _accumulate(self, x: Expression, value: Value, mask: Value | None, sums: Sequence[Value]) -> Value:
        value = convert(self.e, value, self._type(x), self.lanes)
        if mask is not None and self.horizontal:
            value = self.e.b.select(mask, value, self._full(x, identity(x.node.op, self._type(x))))
        return combine(self.e, x.node, sums[self.reductions.index(x)], value)

    def _value(
        self, operand: Operand, known: dict[str, Value], loaded: dict[Load, Value], at: list[Value], mask: Value | None
    ) -> Value | float:
        if isinstance(operand, str):
            return known[operand]
        if isinstance(operand, Immediate):
            return operand.value
        if operand not in loaded:
            value = self._load(operand.view, at, mask)
            loaded[operand] = convert(self.e, value, TRUTH, self.lanes) if operand.boolean else value
        return loaded[operand]

    # --- memory

    def _place_in_row(self, view: View, at: list[Value]) -> Value:
        index: Value = self.e.integer(view.offset)
        for i, stride in zip(at, view.strides):
            if stride:
                index = self.e.add(index, self.e.mul(i, stride))
        return index

    def _address(self, view: View, at: list[Value]) -> Value:
        return self.e.offset(self.rows.pointers[view.base], self._place_in_row(view, at), self.rows.types[view.base])

    def _load(self, view: View, at: list[Value], mask: Value | None) -> Value:
        stride = view.strides[self.vector_axis]
        if view.base == INDEX:
            first = self.e.splat(self._place_in_row(view, at), self.lanes)
            return self.e.add(first, ir.Constant(first.type, [lane * stride for lane in range(self.lanes)]))
        pointer, type_ = self._address(view, at), self.rows.types[view.base]
        if stride == 1:
            return self.e.load_vector(pointer, type_, mask, lanes=self.lanes)
        if stride == 0:
            return self.e.splat(self.e.load(pointer, type_), self.lanes)
        return self._gathered(pointer, type_, stride, self._known_lanes(mask))

    def _gathered(self, pointer: Value, type_: ir.Type, stride: int, known: int) -> Value:
        """Lane by lane; lanes past the tail read the first one's place."""
        vector: Value = self.e.zero(self.e.vector(type_, self.lanes))
        for lane in range(self.lanes):
            scalar = self.e.load(pointer, type_, (lane if lane < known else 0) * stride)
            vector = self.e.b.insert_element(vector, scalar, self.e.integer(lane, ir.IntType(32)))
        return vector

    def _known_lanes(self, mask: Value | None) -> int:
        return self.lanes if mask is None else self.part.space[self.vector_axis] % self.lanes

    def _store(self, store: Store, value: Value | float, at: list[Value], mask: Value | None) -> None:
        type_ = self.rows.types[store.to.base]
        value = convert(self.e, value, type_, self.lanes)
        pointer = self._address(store.to, at)
        stride = store.to.strides[self.vector_axis]
        if stride != 1 and self.part.space[self.vector_axis] != 1:
            self._scatter(store, value, pointer, stride, self._known_lanes(mask))
            return
        if store.add:
            value = self.e.b.fadd(self.e.load_vector(pointer, type_, mask, lanes=self.lanes), value)
        self.e.store_vector(value, pointer, mask)

    def _scatter(self, store: Store, value: Value, pointer: Value, stride: int, known: int) -> None:
        for lane in range(known):
            scalar = self.e.b.extract_element(value, self.e.integer(lane, ir.IntType(32)))
            if store.add:
                scalar = self.e.b.fadd(self.e.load(pointer, self.element, lane * stride), scalar)
            self.e.store(scalar, pointer, lane * stride)

    def _store_scalar(self, store: Store, value: Value, at: list[Value]) -> None:
        pointer = self._address(store.to, at)
        if store.add:
            value = self.e.b.fadd(self.e.load(pointer, self.element), value)
        self.e.store(value, pointer)

    def _across(self, node: Node, value: Value) -> Value:
        """Combine the lanes by halves, always in the same order."""
        count = self.lanes
        undefined = ir.Constant(value.type, ir.Undefined)
        while count > 1:
            count //= 2
            lanes = [count + i if i < count else 0 for i in range(self.lanes)]
            moved = self.e.b.shuffle_vector(
                value, undefined, ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), lanes)
            )
            value = combine(self.e, node, value, moved)
        return self.e.b.extract_element(value, self.e.integer(0, ir.IntType(32)))
