"""Matrix products whose bits do not depend on how the work is cut.

A row of `product` has the same bits alone or among others, and `outer` the same for any split of its pairs, because
every output element has one accumulator, whose sum runs over k upwards (see `tiles`).

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
from throughtime.loop.native.packing import (
    PACK_B,
    columns_packed_at_once,
    pack_b,
    pack_panels,
    pack_tiles,
    packed_size,
    rows_packed_at_once,
)
from throughtime.loop.native.target import Target
from throughtime.loop.native.tiles import (
    MOST_PANELS,
    full_name,
    microkernel,
    once,
    panel_width,
    panels_at_once,
    signature,
    whole_or_masked_tile,
)

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

_SIGNATURES = {
    "pack_b": PACK_B,
    "product": signature("rows k n a lda b c ldc init init_ld"),
    "outer": signature("p m n a lda g ldg c ldc scratch"),
    "column_sums": signature("p n g ldg out"),
}
# `product` takes its rows in groups of this many blocks, so that their part of A stays in the second cache.
_ROW_BLOCKS_AT_ONCE = 16
# `outer` takes its pairs in blocks of this many at most, packed.
_PAIRS_AT_ONCE = 256
_ROWS_AT_ONCE = 8


def outer_scratch(target: Target, element: ir.Type) -> int:
    """Elements of scratch that one call of `outer` needs; each thread needs its own."""
    packed = rows_packed_at_once(target, element) + columns_packed_at_once(target, element)
    return _PAIRS_AT_ONCE * packed + target.lanes(bits_of(element))


# --- C = init + A @ B


@once("product")
def product(module: ir.Module, target: Target, element: ir.Type, *, name: str) -> ir.Function:
    """void product(i64 rows, i64 k, i64 n, a, i64 lda, b, c, i64 ldc, init, i64 init_ld)

    C[rows, n] = init + A[rows, k] @ B, B packed by `pack_b`. `init` is null (zeros), a bias vector with init_ld 0, C
    itself with init_ld ldc (adds to C), or any other matrix. Rows of A are contiguous. A range of columns that starts
    at a multiple of NR is a call of its own: offset b by column * k elements, c and init by the column.
    """
    e = define(module, name, _SIGNATURES["product"], target)
    most = target.tile(bits_of(element)).rows
    rows = e.arguments[0]
    cases = {r: lambda r=r: _few_rows(e, element, r) for r in range(1, most + 1) if panels_at_once(r, e, element) > 1}
    e.choose(
        e.compare("<=", rows, max(cases, default=0)),
        lambda: e.switch(rows, cases),
        lambda: _many_rows(e, element),
    )
    return e.done()


def _few_rows(e: Emitter, element: ir.Type, few: int) -> None:
    """All columns for 1, 2, ... rows: several panels at once, then the last ones singly."""
    n = e.arguments[2]
    width, at_once = panel_width(e.target, element), panels_at_once(few, e, element)
    kernel = microkernel(e.module, e.target, element, few, at_once, e.target.tile(bits_of(element)).vectors)
    tile = whole_or_masked_tile(e.module, e.target, element)

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
    tile = whole_or_masked_tile(e.module, e.target, element)

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
    row = ir.ArrayType(element, MOST_PANELS * panel_width(e.target, element))
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


# --- C += A^T @ G


@once("outer")
def outer(module: ir.Module, target: Target, element: ir.Type, *, name: str) -> ir.Function:
    """void outer(i64 p, i64 m, i64 n, a, i64 lda, g, i64 ldg, c, i64 ldc, scratch)

    C[m, n] += A[p, m]^T @ G[p, n]: sums over pairs, upwards, through C, so any split of p into successive calls gives
    the same bits. So does any split of m (offset a and c) or n (offset g and c), which is how threads share a call.
    `scratch` has room for `outer_scratch` elements.
    """
    e = define(module, name, _SIGNATURES["outer"], target)
    p, m, *_ = e.arguments
    chunk = rows_packed_at_once(target, element)

    def pairs(first_pair: Value, _: list[Value]) -> None:
        count = e.min(e.sub(p, first_pair), _PAIRS_AT_ONCE)
        e.loop(m, lambda row, _: _outer_block(e, element, first_pair, count, row, chunk), step=chunk)

    e.loop(p, pairs, step=_PAIRS_AT_ONCE)
    return e.done()


def _outer_block(e: Emitter, element: ir.Type, first_pair: Value, pairs: Value, first_row: Value, chunk: int) -> None:
    """One block of pairs and of A's columns, with all columns of G."""
    _, m, n, a, lda, g, ldg, c, ldc, scratch = e.arguments
    width, at_once = panel_width(e.target, element), columns_packed_at_once(e.target, element)
    rows = e.min(e.sub(m, first_row), chunk)
    a_here = e.offset(a, e.add(e.mul(first_pair, lda), first_row), element)
    g_packed = scratch
    a_packed = e.offset(scratch, _PAIRS_AT_ONCE * at_once, element)
    pack_tiles(e, element, pairs, rows, a_here, lda, a_packed)

    def one_group(first: Value, _: list[Value]) -> None:
        left = e.min(e.sub(n, first), at_once)
        g_here = e.offset(g, e.add(e.mul(first_pair, ldg), first), element)
        pack_panels(e, element, pairs, left, g_here, ldg, g_packed)

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
    tile = whole_or_masked_tile(e.module, e.target, element)

    def one_tile(row: Value, _: list[Value]) -> None:
        a_here, c_here = e.offset(a_packed, e.mul(row, pairs), element), e.offset(c, e.mul(row, ldc), element)
        size = e.min(e.sub(rows, row), most)
        one, step = e.integer(1), e.integer(most)
        e.call(tile, [size, columns, pairs, a_here, one, step, g_packed, c_here, ldc, c_here, ldc])

    e.loop(rows, one_tile, step=most)


# --- out += column sums of G


@once("column_sums")
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
    module = new_module(full_name("products", element), target)
    emit_products(module, target, element)
    return compile_module(module, target)


def declare_products(module: ir.Module, element: ir.Type) -> Products:
    """Declare them in a module that will be compiled with `libraries=[products_library(target, element)]`."""

    def declare(name: str) -> ir.Function:
        symbol = full_name(name, element)
        type_ = ir.FunctionType(VOID, list(_SIGNATURES[name].values()))
        return module.globals.get(symbol) or ir.Function(module, type_, name=symbol)

    return Products(*map(declare, Products._fields))
