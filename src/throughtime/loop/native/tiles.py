"""A target -> microkernels: the tile of a matrix product that is kept in registers.

    panel        NR = vectors * lanes columns of B for all k, stored [K][NR], zeros past column N
    microkernel  up to MR rows of A times one panel (several for few rows, to hide the latency of the additions)

Every output element has one accumulator; its sum runs over k upwards, by fused multiply-adds, and is never split.
"""

from collections.abc import Callable

from llvmlite import ir

from throughtime.loop.native.ir import I64, PTR, Emitter, Value, bits_of, define
from throughtime.loop.native.target import Target

__all__ = [
    "MOST_PANELS",
    "copy_rows",
    "full_name",
    "microkernel",
    "once",
    "panel_width",
    "panels_at_once",
    "signature",
    "whole_or_masked_tile",
]

# Additions to one accumulator follow each other every 4 cycles, and two additions start in each cycle.
_ACCUMULATORS_TO_HIDE_LATENCY = 8
MOST_PANELS = 4


def signature(names: str) -> dict[str, ir.Type]:
    pointers = ("a", "b", "c", "g", "w", "init", "out", "scratch")
    return {name: PTR if name in pointers else I64 for name in names.split()}


TILE_ARGUMENTS = signature("k a lda a_step b c ldc init init_ld")


def panel_width(target: Target, element: ir.Type) -> int:
    """NR: the columns of one panel."""
    bits = bits_of(element)
    return target.tile(bits).vectors * target.lanes(bits)


def full_name(name: str, element: ir.Type, *key: int) -> str:
    return "_".join([name, f"f{bits_of(element)}", *map(str, key)])


def once(name: str) -> Callable[[Callable], Callable[..., ir.Function]]:
    """An emitter's function is emitted once per module and element type, under this name."""

    def wrap(emit: Callable) -> Callable[..., ir.Function]:
        def emit_once(module: ir.Module, target: Target, element: ir.Type, *key: int) -> ir.Function:
            symbol = full_name(name, element, *key)
            known = module.globals.get(symbol)
            return known or emit(module, target, element, *key, name=symbol)

        emit_once.__doc__ = emit.__doc__
        return emit_once

    return wrap


def panels_at_once(rows: int, e: Emitter, element: ir.Type) -> int:
    """How many panels a microkernel of few rows works on to have enough independent accumulators."""
    target = e.target
    vectors = target.tile(bits_of(element)).vectors
    panels = 1
    while panels < MOST_PANELS and rows * vectors * panels < _ACCUMULATORS_TO_HIDE_LATENCY:
        panels += 1
    # Beside the sums: B's vectors or the rows' numbers, whichever are fewer, and one of the others.
    while panels > 1 and rows * vectors * panels + min(rows, vectors * panels) + 1 > target.vector_registers:
        panels -= 1
    return panels


@once("microkernel")
def microkernel(
    module: ir.Module, target: Target, element: ir.Type, rows: int, panels: int, vectors: int, *, name: str
) -> ir.Function:
    """C = init + A @ B for so many rows, and the first vectors of each panel. A(i, k) lies at a[i * lda + k * a_step].

    Whole vectors only, so that it stays short: it is compiled once for each number of rows.
    """
    e = define(module, name, TILE_ARGUMENTS, target, internal=True, inline=False)
    k, a, lda, a_step, b, c, ldc, init, init_ld = e.arguments
    width, lanes = panel_width(target, element), target.lanes(bits_of(element))
    starts = [panel * width + x * lanes for panel in range(panels) for x in range(vectors)]

    def rows_of(pointer: Value, stride: Value) -> list[Value]:
        return [e.offset(pointer, e.mul(stride, i), element) for i in range(rows)]

    a_rows = rows_of(a, lda)
    b_panels = [e.offset(b, e.mul(k, j * width), element) for j in range(panels)]

    def body(index: Value, carried: list[Value]) -> list[Value]:
        a_start, *sums = carried
        b_rows = [e.offset(panel, e.mul(index, width), element) for panel in b_panels]

        def of_b(j: int) -> Value:
            return e.load_vector(b_rows[starts[j] // width], element, index=starts[j] % width)

        def of_a(i: int) -> Value:
            return e.splat(e.load(a_rows[i], element, a_start))

        return [e.add(a_start, a_step), *_rank_one(e, rows, len(starts), of_a, of_b, sums)]

    first = [e.load_vector(row, element, index=x) for row in rows_of(init, init_ld) for x in starts]
    _, *sums = e.loop(k, body, [e.integer(0), *first])
    places = [(row, x) for row in rows_of(c, ldc) for x in starts]
    for (row, x), value in zip(places, sums, strict=True):
        e.store_vector(value, row, index=x)
    return e.done()


def _rank_one(
    e: Emitter,
    rows: int,
    vectors: int,
    of_a: Callable[[int], Value],
    of_b: Callable[[int], Value],
    sums: list[Value],
) -> list[Value]:
    """sums[i, j] + a[i] * b[j]. The fewer of a and b stay in registers, the others are loaded just before their use."""
    new = list(sums)
    if rows < vectors:
        factors = [of_a(i) for i in range(rows)]
        for j in range(vectors):
            b_vector = of_b(j)
            for i in range(rows):
                new[i * vectors + j] = e.fma(factors[i], b_vector, sums[i * vectors + j])
        return new
    b_vectors = [of_b(j) for j in range(vectors)]
    for i in range(rows):
        factor = of_a(i)
        for j in range(vectors):
            new[i * vectors + j] = e.fma(factor, b_vectors[j], sums[i * vectors + j])
    return new


@once("tile")
def whole_or_masked_tile(module: ir.Module, target: Target, element: ir.Type, *, name: str) -> ir.Function:
    """The microkernel of one panel for `rows` rows, 1 to MR; `columns` below NR are masked.

    A masked tile goes through the stack, and is as many vectors wide as it needs: its arithmetic is the same
    microkernel's.
    """
    arguments = {"rows": I64, "columns": I64} | TILE_ARGUMENTS
    e = define(module, name, arguments, target, internal=True, inline=False)
    rows, columns, *given = e.arguments
    shape, lanes = target.tile(bits_of(element)), target.lanes(bits_of(element))
    ld = e.integer(shape.vectors * lanes)
    buffer = e.stack(element, shape.rows * shape.vectors * lanes)

    def run(vectors: int, values: list[Value]) -> None:
        heights = {r: microkernel(module, target, element, r, 1, vectors) for r in range(1, shape.rows + 1)}
        e.switch(rows, {r: lambda r=r: e.call(heights[r], values) for r in heights})

    def through_buffer(vectors: int) -> None:
        k, a, lda, a_step, b, c, ldc, init, init_ld = given
        width = vectors * lanes
        copy_rows(e, element, width, rows, init, init_ld, columns, buffer, ld, fill=True)
        run(vectors, [k, a, lda, a_step, b, buffer, ld, buffer, ld])
        copy_rows(e, element, width, rows, buffer, ld, columns, c, ldc)

    def some_vectors(vectors: int) -> None:
        whole = e.compare(">=", columns, vectors * lanes)
        e.choose(whole, lambda: run(vectors, given), lambda: through_buffer(vectors))

    needed = e.min(e.ceil_div(columns, lanes), shape.vectors)
    e.switch(needed, {v: lambda v=v: some_vectors(v) for v in range(1, shape.vectors + 1)})
    return e.done()


def copy_rows(
    e: Emitter,
    element: ir.Type,
    width: int,
    rows: Value,
    source: Value,
    source_ld: Value,
    columns: Value,
    out: Value,
    out_ld: Value,
    fill: bool = False,
) -> None:
    """out[row, :columns] = source[row, :columns], of at most `width`; `fill` writes zeros up to `width`."""

    def row(index: Value, _: list[Value]) -> None:
        from_row = e.offset(source, e.mul(index, source_ld), element)
        to_row = e.offset(out, e.mul(index, out_ld), element)
        if fill or e.target.vector_bytes == 64:
            _copy_masked(e, element, width, from_row, columns, to_row, fill)
        else:
            _copy_by_halves(e, element, width, from_row, columns, to_row)

    e.loop(rows, row)


def _copy_masked(
    e: Emitter, element: ir.Type, width: int, source: Value, columns: Value, out: Value, fill: bool
) -> None:
    for x in range(0, width, e.lanes(element)):
        mask = e.tail_mask(columns, element, first=x)
        value = e.load_vector(source, element, mask, index=x)
        e.store_vector(value, out, None if fill else mask, index=x)


def _copy_by_halves(e: Emitter, element: ir.Type, width: int, source: Value, columns: Value, out: Value) -> None:
    """8, 4, 2 and 1 numbers at once: masked stores take some processors with AVX2 tens of cycles, and NEON has none."""
    place, size = e.integer(0), 1 << width.bit_length() - 1
    while size:
        is_there = e.compare("!=", e.b.and_(columns, e.integer(size)), 0)

        def copy(size: int = size, place: Value = place) -> list[Value]:
            here, there = (e.offset(row, place, element) for row in (source, out))
            for x in range(0, size, lanes := min(size, e.lanes(element))):
                e.store_vector(e.load_vector(here, element, index=x, lanes=lanes), there, index=x)
            return [e.add(place, size)]

        [place] = e.choose(is_there, copy, lambda place=place: [place])
        size //= 2
