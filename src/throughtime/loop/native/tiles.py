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
    module: ir.Module, target: Target, element: ir.Type, rows: int, panels: int, *, name: str
) -> ir.Function:
    """C[rows, panels * NR] = init + A @ B. Element (i, k) of A lies at a[i * lda + k * a_step].

    Whole tiles only, so that it stays short: it is compiled once for each number of rows.
    """
    e = define(module, name, TILE_ARGUMENTS, target, internal=True, inline=False)
    k, a, lda, a_step, b, c, ldc, init, init_ld = e.arguments
    width, lanes = panel_width(target, element), target.lanes(bits_of(element))
    starts = range(0, panels * width, lanes)

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

    A masked tile goes through the stack: its arithmetic is the same microkernel's.
    """
    arguments = {"rows": I64, "columns": I64} | TILE_ARGUMENTS
    e = define(module, name, arguments, target, internal=True, inline=False)
    rows, columns, *given = e.arguments
    most, width = target.tile(bits_of(element)).rows, panel_width(target, element)
    kernels = {r: microkernel(module, target, element, r, 1) for r in range(1, most + 1)}

    def run(values: list[Value]) -> None:
        e.switch(rows, {r: lambda r=r: e.call(kernels[r], values) for r in kernels})

    buffer = e.stack(element, most * width)

    def through_buffer() -> None:
        k, a, lda, a_step, b, c, ldc, init, init_ld = given
        copy_rows(e, element, width, rows, init, init_ld, columns, buffer, e.integer(width), fill=True)
        run([k, a, lda, a_step, b, buffer, e.integer(width), buffer, e.integer(width)])
        copy_rows(e, element, width, rows, buffer, e.integer(width), columns, c, ldc)

    e.choose(e.compare(">=", columns, width), lambda: run(given), through_buffer)
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
    """out[row, :columns] = source[row, :columns], masked; `fill` writes zeros up to `width`."""
    starts = range(0, width, e.lanes(element))
    masks = [e.tail_mask(columns, element, first=x) for x in starts]

    def row(index: Value, _: list[Value]) -> None:
        from_row = e.offset(source, e.mul(index, source_ld), element)
        to_row = e.offset(out, e.mul(index, out_ld), element)
        for x, mask in zip(starts, masks, strict=True):
            value = e.load_vector(from_row, element, mask, index=x)
            e.store_vector(value, to_row, None if fill else mask, index=x)

    e.loop(rows, row)
