"""Matrix products whose bits do not depend on how the work is cut.

Every output element has one accumulator; its sum runs over k upwards, by fused multiply-adds, and is never split. So
a row of `product` has the same bits alone or among others, and `outer` the same for any split of its pairs.

    panel        NR = vectors * lanes columns of B for all k, stored [K][NR], zeros past column N
    microkernel  up to MR rows of A times one panel (several for few rows, to hide the latency of the additions)

Columns past N are masked where C is read or written. All strides and offsets count elements. Emitters return the
function of that name if the module has it already, so any number of stages may ask for the same one.

Source of the scheme: Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from llvmlite import ir

from throughtime.loop.native.ir import I64, PTR, VOID, Emitter, Value, bits_of, define, new_module
from throughtime.loop.native.jit import CompiledModule, compile_module
from throughtime.loop.native.target import Target

__all__ = [
    "Products",
    "column_sums",
    "declare_products",
    "emit_products",
    "outer",
    "outer_scratch",
    "pack_b",
    "packed_size",
    "panel_width",
    "product",
    "products_library",
]


def _signature(names: str) -> dict[str, ir.Type]:
    pointers = ("a", "b", "c", "g", "w", "init", "out", "scratch")
    return {name: PTR if name in pointers else I64 for name in names.split()}


_TILE_ARGUMENTS = _signature("k a lda a_step b c ldc init init_ld")
_SIGNATURES = {
    "pack_b": _signature("k n w stride_k stride_n out"),
    "product": _signature("rows k n a lda b c ldc init init_ld"),
    "outer": _signature("p m n a lda g ldg c ldc scratch"),
    "column_sums": _signature("p n g ldg out"),
}
# Additions to one accumulator follow each other every 4 cycles, and two additions start in each cycle.
_ACCUMULATORS_TO_HIDE_LATENCY = 8
_MOST_PANELS = 4
# `product` takes its rows in groups of this many blocks, so that their part of A stays in the second cache.
_ROW_BLOCKS_AT_ONCE = 16
# What `outer` packs at once, measured: pairs, and bytes of each pair's row of A and of G. 400 KB in all, which the
# second cache nearly holds; smaller blocks are packed again too often, and rows lie on pages of their own.
_PAIRS_AT_ONCE = 256
_BYTES_OF_A = 1152
_BYTES_OF_G = 512


def panel_width(target: Target, element: ir.Type) -> int:
    """NR: the columns of one panel."""
    bits = bits_of(element)
    return target.tile(bits).vectors * target.lanes(bits)


def packed_size(k: int, n: int, target: Target, element: ir.Type) -> int:
    """Elements that `pack_b` writes for a matrix [k, n]."""
    width = panel_width(target, element)
    return -(-n // width) * width * k


def outer_scratch(target: Target, element: ir.Type) -> int:
    """Elements of scratch that one call of `outer` needs; each thread needs its own."""
    packed = _rows_packed_at_once(target, element) + _columns_packed_at_once(target, element)
    return _PAIRS_AT_ONCE * packed + target.lanes(bits_of(element))


def _rows_packed_at_once(target: Target, element: ir.Type) -> int:
    """Whole tiles of A's columns, which are rows of C."""
    rows = target.tile(bits_of(element)).rows
    return _BYTES_OF_A * 8 // bits_of(element) // rows * rows


def _columns_packed_at_once(target: Target, element: ir.Type) -> int:
    """Whole panels of G's columns."""
    width = panel_width(target, element)
    return _BYTES_OF_G * 8 // bits_of(element) // width * width


def _full_name(name: str, element: ir.Type, *key: int) -> str:
    return "_".join([name, f"f{bits_of(element)}", *map(str, key)])


def _once(name: str) -> Callable[[Callable], Callable[..., ir.Function]]:
    """An emitter's function is emitted once per module and element type, under this name."""

    def wrap(emit: Callable) -> Callable[..., ir.Function]:
        def emit_once(module: ir.Module, target: Target, element: ir.Type, *key: int) -> ir.Function:
            full_name = _full_name(name, element, *key)
            known = module.globals.get(full_name)
            return known or emit(module, target, element, *key, name=full_name)

        emit_once.__doc__ = emit.__doc__
        return emit_once

    return wrap


def _panels(rows: int, e: Emitter, element: ir.Type) -> int:
    """How many panels a microkernel of few rows works on to have enough independent accumulators."""
    target = e.target
    vectors = target.tile(bits_of(element)).vectors
    panels = 1
    while panels < _MOST_PANELS and rows * vectors * panels < _ACCUMULATORS_TO_HIDE_LATENCY:
        panels += 1
    # Beside the sums: B's vectors or the rows' numbers, whichever are fewer, and one of the others.
    while panels > 1 and rows * vectors * panels + min(rows, vectors * panels) + 1 > target.vector_registers:
        panels -= 1
    return panels


# --- the microkernel


@_once("microkernel")
def _microkernel(
    module: ir.Module, target: Target, element: ir.Type, rows: int, panels: int, *, name: str
) -> ir.Function:
    """C[rows, panels * NR] = init + A @ B. Element (i, k) of A lies at a[i * lda + k * a_step].

    Whole tiles only, so that it stays short: it is compiled once for each number of rows.
    """
    e = define(module, name, _TILE_ARGUMENTS, target, internal=True, inline=False)
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


@_once("tile")
def _tile(module: ir.Module, target: Target, element: ir.Type, *, name: str) -> ir.Function:
    """The microkernel of one panel for `rows` rows, 1 to MR; `columns` below NR are masked.

    A masked tile goes through the stack: its arithmetic is the same microkernel's.
    """
    arguments = {"rows": I64, "columns": I64} | _TILE_ARGUMENTS
    e = define(module, name, arguments, target, internal=True, inline=False)
    rows, columns, *given = e.arguments
    most, width = target.tile(bits_of(element)).rows, panel_width(target, element)
    kernels = {r: _microkernel(module, target, element, r, 1) for r in range(1, most + 1)}

    def run(values: list[Value]) -> None:
        e.switch(rows, {r: lambda r=r: e.call(kernels[r], values) for r in kernels})

    buffer = e.stack(element, most * width)

    def through_buffer() -> None:
        k, a, lda, a_step, b, c, ldc, init, init_ld = given
        _copy_rows(e, element, width, rows, init, init_ld, columns, buffer, e.integer(width))
        run([k, a, lda, a_step, b, buffer, e.integer(width), buffer, e.integer(width)])
        _copy_rows(e, element, width, rows, buffer, e.integer(width), columns, c, ldc)

    e.choose(e.compare(">=", columns, width), lambda: run(given), through_buffer)
    return e.done()


def _copy_rows(
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


# --- C = init + A @ B


@_once("product")
def product(module: ir.Module, target: Target, element: ir.Type, *, name: str) -> ir.Function:
    """void product(i64 rows, i64 k, i64 n, a, i64 lda, b, c, i64 ldc, init, i64 init_ld)

    C[rows, n] = init + A[rows, k] @ B, B packed by `pack_b`. `init` is null (zeros), a bias vector with init_ld 0, C
    itself with init_ld ldc (adds to C), or any other matrix. Rows of A are contiguous. A range of columns that starts
    at a multiple of NR is a call of its own: offset b by column * k elements, c and init by the column.
    """
    e = define(module, name, _SIGNATURES["product"], target)
    most = target.tile(bits_of(element)).rows
    rows = e.arguments[0]
    cases = {r: lambda r=r: _few_rows(e, element, r) for r in range(1, most + 1) if _panels(r, e, element) > 1}
    e.choose(
        e.compare("<=", rows, max(cases, default=0)),
        lambda: e.switch(rows, cases),
        lambda: _many_rows(e, element),
    )
    return e.done()


def _few_rows(e: Emitter, element: ir.Type, few: int) -> None:
    """All columns for 1, 2, ... rows: several panels at once, then the last ones singly."""
    n = e.arguments[2]
    width, at_once = panel_width(e.target, element), _panels(few, e, element)
    kernel = _microkernel(e.module, e.target, element, few, at_once)
    tile = _tile(e.module, e.target, element)

    def together(column: Value, _: list[Value]) -> None:
        e.call(kernel, _tile_at(e, element, e.integer(0), column))

    def alone(column: Value, _: list[Value]) -> None:
        e.call(tile, [e.integer(few), e.sub(n, column), *_tile_at(e, element, e.integer(0), column)])

    whole = e.sub(n, e.rem(n, width * at_once))
    e.loop(whole, together, step=width * at_once)
    e.loop(n, alone, start=whole, step=width)


def _many_rows(e: Emitter, element: ir.Type) -> None:
    """A group of rows that stays in the second cache, panels inside, a panel in the nearest cache for all its rows."""
    rows, _, n, *_ = e.arguments
    most = e.target.tile(bits_of(element)).rows
    tile = _tile(e.module, e.target, element)

    def one_group(first: Value, size: Value) -> None:
        def one_panel(column: Value, _: list[Value]) -> None:
            columns = e.sub(n, column)

            def one_block(row: Value, height: Value) -> None:
                e.call(tile, [height, columns, *_tile_at(e, element, e.add(first, row), column)])

            _even_blocks(e, size, most, one_block)

        e.loop(n, one_panel, step=panel_width(e.target, element))

    _even_blocks(e, rows, _ROW_BLOCKS_AT_ONCE * most, one_group)


def _tile_at(e: Emitter, element: ir.Type, row: Value, column: Value) -> list[Value]:
    """The microkernel's arguments for the tile of `product` that starts there."""
    _, k, _, a, lda, b, c, ldc, init, init_ld = e.arguments
    none = e.is_null(init)
    init_there = e.offset(init, e.add(e.mul(row, init_ld), column), element)
    return [
        k,
        e.offset(a, e.mul(row, lda), element),
        lda,
        e.integer(1),
        e.offset(b, e.mul(column, k), element),
        e.offset(c, e.add(e.mul(row, ldc), column), element),
        ldc,
        e.b.select(none, _zeros(e, element), init_there),
        e.b.select(none, e.integer(0), init_ld),
    ]


def _zeros(e: Emitter, element: ir.Type) -> Value:
    """A row of zeros as wide as the widest microkernel."""
    name = f"zeros_{bits_of(element)}"
    row = ir.ArrayType(element, _MOST_PANELS * panel_width(e.target, element))
    known: Any = e.module.globals.get(name)
    if known is None:
        known = ir.GlobalVariable(e.module, row, name)
        known.initializer, known.linkage, known.global_constant = ir.Constant(row, None), "internal", True
    return e.b.bitcast(known, PTR)


def _even_blocks(e: Emitter, rows: Value, most: int, body: Callable[[Value, Value], None]) -> None:
    """Cut rows into the fewest blocks of at most `most`, as equal as possible: body(first row, size)."""
    blocks = e.max(e.ceil_div(rows, most), 1)
    small, larger = e.div(rows, blocks), e.rem(rows, blocks)

    def block(index: Value, carried: list[Value]) -> list[Value]:
        size = e.add(small, e.b.zext(e.compare("<", index, larger), I64))
        body(carried[0], size)
        return [e.add(carried[0], size)]

    e.loop(blocks, block, [e.integer(0)])


# --- packing


@_once("pack_b")
def pack_b(module: ir.Module, target: Target, element: ir.Type, *, name: str) -> ir.Function:
    """void pack_b(i64 k, i64 n, w, i64 stride_k, i64 stride_n, out)

    Element (k, n) lies at w[k * stride_k + n * stride_n], so a transpose needs no copy. A range of columns that starts
    at a multiple of NR is a call of its own: offset w by column * stride_n and out by column * k.
    """
    e = define(module, name, _SIGNATURES["pack_b"], target)
    k, n, w, stride_k, stride_n, out = e.arguments
    at_once = _columns_packed_at_once(target, element)

    def one_group(column: Value, _: list[Value]) -> None:
        w_here, out_here = e.offset(w, e.mul(column, stride_n), element), e.offset(out, e.mul(column, k), element)
        left = e.min(e.sub(n, column), at_once)
        e.choose(
            e.compare("==", stride_n, 1),
            lambda: _pack_panels(e, element, k, left, w_here, stride_k, out_here),
            lambda: _gather_panels(e, element, left, w_here, out_here),
        )

    e.loop(n, one_group, step=at_once)
    return e.done()


def _pack_panels(e: Emitter, element: ir.Type, k: Value, columns: Value, w: Value, ldw: Value, out: Value) -> None:
    """out: panels [k][NR] of w[k, columns], zeros past the last column.

    Several panels side by side: rows of w tend to lie on pages of their own, which is what reading them costs.
    """
    width, lanes = panel_width(e.target, element), e.lanes(element)
    whole = e.sub(columns, e.rem(columns, width))

    def row(index: Value, _: list[Value]) -> None:
        source, place = e.offset(w, e.mul(index, ldw), element), e.offset(out, e.mul(index, width), element)

        def panel(column: Value, _: list[Value]) -> None:
            from_row, to_row = e.offset(source, column, element), e.offset(place, e.mul(column, k), element)
            for x in range(0, width, lanes):
                e.store_vector(e.load_vector(from_row, element, index=x), to_row, index=x)

        e.loop(whole, panel, step=width)

    def last() -> None:
        w_here, place = e.offset(w, whole, element), e.offset(out, e.mul(whole, k), element)
        left, step = e.sub(columns, whole), e.integer(width)
        _copy_rows(e, element, width, k, w_here, ldw, left, place, step, fill=True)

    e.loop(k, row)
    e.choose(e.compare("<", whole, columns), last)


def _gather_panels(e: Emitter, element: ir.Type, columns: Value, w: Value, out: Value) -> None:
    """The same for any strides, element by element."""
    k, _, _, stride_k, stride_n, _ = e.arguments
    width = panel_width(e.target, element)

    def panel(column: Value, _: list[Value]) -> None:
        left = e.sub(columns, column)
        w_here, out_here = e.offset(w, e.mul(column, stride_n), element), e.offset(out, e.mul(column, k), element)

        def row(index: Value, _: list[Value]) -> None:
            source = e.offset(w_here, e.mul(index, stride_k), element)
            place = e.offset(out_here, e.mul(index, width), element)

            def take(j: Value | int, _: list[Value] | None = None) -> None:
                e.store(e.load(source, element, e.mul(stride_n, j)), place, j)

            def all_columns() -> None:
                for j in range(width):
                    take(j)

            def some_columns() -> None:
                e.loop(left, take)
                e.loop(width, lambda j, _: e.store(e.zero(element), place, j), start=left)

            e.choose(e.compare(">=", left, width), all_columns, some_columns)

        e.loop(k, row)

    e.loop(columns, panel, step=width)


# --- C += A^T @ G


@_once("outer")
def outer(module: ir.Module, target: Target, element: ir.Type, *, name: str) -> ir.Function:
    """void outer(i64 p, i64 m, i64 n, a, i64 lda, g, i64 ldg, c, i64 ldc, scratch)

    C[m, n] += A[p, m]^T @ G[p, n]: sums over pairs, upwards, through C, so any split of p into successive calls gives
    the same bits. So does any split of m (offset a and c) or n (offset g and c), which is how threads share a call.
    `scratch` has room for `outer_scratch` elements.
    """
    e = define(module, name, _SIGNATURES["outer"], target)
    p, m, *_ = e.arguments
    chunk = _rows_packed_at_once(target, element)

    def pairs(first_pair: Value, _: list[Value]) -> None:
        count = e.min(e.sub(p, first_pair), _PAIRS_AT_ONCE)
        e.loop(m, lambda row, _: _outer_block(e, element, first_pair, count, row, chunk), step=chunk)

    e.loop(p, pairs, step=_PAIRS_AT_ONCE)
    return e.done()


def _outer_block(e: Emitter, element: ir.Type, first_pair: Value, pairs: Value, first_row: Value, chunk: int) -> None:
    """One block of pairs and of A's columns, with all columns of G."""
    _, m, n, a, lda, g, ldg, c, ldc, scratch = e.arguments
    width, at_once = panel_width(e.target, element), _columns_packed_at_once(e.target, element)
    rows = e.min(e.sub(m, first_row), chunk)
    a_here = e.offset(a, e.add(e.mul(first_pair, lda), first_row), element)
    g_packed = scratch
    a_packed = e.offset(scratch, _PAIRS_AT_ONCE * at_once, element)
    _pack_a(e, element, pairs, rows, a_here, lda, a_packed)

    def one_group(first: Value, _: list[Value]) -> None:
        left = e.min(e.sub(n, first), at_once)
        g_here = e.offset(g, e.add(e.mul(first_pair, ldg), first), element)
        _pack_panels(e, element, pairs, left, g_here, ldg, g_packed)

        def one_panel(column: Value, _: list[Value]) -> None:
            c_here = e.offset(c, e.add(e.mul(first_row, ldc), e.add(first, column)), element)
            b_here = e.offset(g_packed, e.mul(column, pairs), element)
            _outer_panel(e, element, pairs, rows, a_packed, b_here, c_here, ldc, e.sub(left, column))

        e.loop(left, one_panel, step=width)

    e.loop(n, one_group, step=at_once)


def _outer_panel(
    e: Emitter,
    element: ir.Type,
    pairs: Value,
    rows: Value,
    a_packed: Value,
    g_packed: Value,
    c: Value,
    ldc: Value,
    columns: Value,
) -> None:
    most = e.target.tile(bits_of(element)).rows
    tile = _tile(e.module, e.target, element)

    def one_tile(row: Value, _: list[Value]) -> None:
        a_here, c_here = e.offset(a_packed, e.mul(row, pairs), element), e.offset(c, e.mul(row, ldc), element)
        size = e.min(e.sub(rows, row), most)
        one, step = e.integer(1), e.integer(most)
        e.call(tile, [size, columns, pairs, a_here, one, step, g_packed, c_here, ldc, c_here, ldc])

    e.loop(rows, one_tile, step=most)


def _pack_a(e: Emitter, element: ir.Type, pairs: Value, rows: Value, a: Value, lda: Value, out: Value) -> None:
    """out: tiles [pairs][MR] of A's columns, zeros past the last column.

    A row of a tile is stored by whole vectors; what they write past MR is written again by the next row, so tiles are
    packed upwards and the scratch ends with one spare vector.
    """
    most = e.target.tile(bits_of(element)).rows

    def one_tile(row: Value, _: list[Value]) -> None:
        left = e.min(e.sub(rows, row), most)
        starts = range(0, most, e.lanes(element))
        masks = [e.tail_mask(left, element, first=start) for start in starts]
        tile = e.offset(out, e.mul(row, pairs), element)

        def one_pair(pair: Value, _: list[Value]) -> None:
            source = e.offset(a, e.add(e.mul(pair, lda), row), element)
            place = e.offset(tile, e.mul(pair, most), element)
            for start, mask in zip(starts, masks, strict=True):
                e.store_vector(e.load_vector(source, element, mask, index=start), place, index=start)

        e.loop(pairs, one_pair)

    e.loop(rows, one_tile, step=most)


# --- out += column sums of G


_ROWS_AT_ONCE = 8


@_once("column_sums")
def column_sums(module: ir.Module, target: Target, element: ir.Type, *, name: str) -> ir.Function:
    """void column_sums(i64 p, i64 n, g, i64 ldg, out): out[n] += sum over p, upwards, of G[p, n].

    The sums go through `out`, so any split of p into successive calls gives the same bits; so does any split of n.
    """
    e = define(module, name, _SIGNATURES["column_sums"], target)
    p, n, g, ldg, out = e.arguments

    def add_rows(first: Value, count: int) -> None:
        rows = [e.offset(g, e.mul(e.add(first, i), ldg), element) for i in range(count)]

        def columns(index: Value, mask: Value | None) -> None:
            total = e.load_vector(out, element, mask, index=index)
            for row in rows:
                total = e.b.fadd(total, e.load_vector(row, element, mask, index=index))
            e.store_vector(total, out, mask, index=index)

        e.each_vector(n, element, columns)

    grouped = e.sub(p, e.rem(p, _ROWS_AT_ONCE))
    e.loop(grouped, lambda first, _: add_rows(first, _ROWS_AT_ONCE), step=_ROWS_AT_ONCE)
    e.loop(p, lambda first, _: add_rows(first, 1), start=grouped)
    return e.done()


# --- all of them, compiled once


class Products(NamedTuple):
    """The functions of this file, as one module sees them."""

    pack_b: ir.Function
    product: ir.Function
    outer: ir.Function
    column_sums: ir.Function


def emit_products(module: ir.Module, target: Target, element: ir.Type) -> Products:
    """Emit all of them into a module."""
    return Products(*(emit(module, target, element) for emit in (pack_b, product, outer, column_sums)))


@functools.cache
def products_library(target: Target, element: ir.Type) -> CompiledModule:
    """All of them as machine code, compiled once per process: they depend on no plan."""
    module = new_module(_full_name("products", element), target)
    emit_products(module, target, element)
    return compile_module(module, target)


def declare_products(module: ir.Module, element: ir.Type) -> Products:
    """Declare them in a module that will be compiled with `libraries=[products_library(target, element)]`."""

    def declare(name: str) -> ir.Function:
        full_name = _full_name(name, element)
        type_ = ir.FunctionType(VOID, list(_SIGNATURES[name].values()))
        return module.globals.get(full_name) or ir.Function(module, type_, name=full_name)

    return Products(*map(declare, Products._fields))
