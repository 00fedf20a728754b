"""Products of values that are rounded to bfloat16, on the tiles of AMX, with sums in float32.

    tile    16 rows of 64 bytes: of A 16 rows of 32 numbers along k, of B 16 pairs along k of 16 columns, of C 16 x 16

`TDPBF16PS` multiplies one step, 32 numbers along k: it sums the products with even k and those with odd k, both
upwards, adds the two and adds that to C. So an element's bits depend on its own row and column and on where steps
begin, on nothing else: a row has the same bits alone or among others, and `amx_outer` the same for any split of its
pairs at whole steps.

A thread configures its tiles in every call and releases them before it returns, so that nobody else on the thread finds
them in use.

Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18, and volume 2, TDPBF16PS.
"""

import functools
from typing import NamedTuple

from llvmlite import ir

from throughtime.loop.native.amx_packing import (
    BLOCK,
    SIDE,
    STEP,
    STEP_BYTES,
    TILE_BYTES,
    amx_pack_b,
    amx_packed_size,
    constant_bytes,
    lay_out_block,
    lay_out_panels,
    round_rows,
)
from throughtime.loop.native.ir import F32, I8, I64, PTR, VOID, Emitter, Value, define, new_module
from throughtime.loop.native.jit import CompiledModule, compile_module
from throughtime.loop.native.packing import PACK_B
from throughtime.loop.native.target import Target
from throughtime.loop.native.tiles import copy_rows, full_name, once, signature

__all__ = [
    "AMX_SCRATCH",
    "FACTOR_WORDS",
    "AmxProducts",
    "amx_library",
    "amx_outer",
    "amx_packed_size",
    "amx_product",
    "declare_amx",
    "emit_amx",
]

_STEPS_AT_ONCE = 8
"""Of a block of A, 16 KB: the nearest cache holds it while as much of B passes by."""
_PAIRS_AT_ONCE, _ROWS_AT_ONCE, _COLUMNS_AT_ONCE = 256, 512, 1024
"""`amx_outer` packs as much, of A 256 KB and of G 512, which the second cache holds."""
AMX_SCRATCH = _PAIRS_AT_ONCE * (_ROWS_AT_ONCE + _COLUMNS_AT_ONCE) // 2
"""Numbers of float32 that one call of `amx_outer` needs; each thread needs its own."""
FACTOR_WORDS = 5

_SIGNATURES = {
    "amx_pack_b": PACK_B,
    "amx_product": signature("rows k n a lda b c ldc init init_ld"),
    "amx_outer": {**signature("p n g ldg scratch count"), "factors": PTR},
}
_SUMS = signature("steps a b panel c ldc init init_ld")


def _amx(e: Emitter, name: str, *arguments: Value | int) -> None:
    """An instruction; integers are numbers of tiles."""
    values = [e.integer(x, I8) if isinstance(x, int) else x for x in arguments]
    e.intrinsic(f"llvm.x86.{name}", VOID, values)


# --- a block times a panel


def _configure(e: Emitter, rows: Value) -> None:
    """Tiles for a block of 1 to 32 rows."""
    table = constant_bytes(e, "amx_configurations", b"".join(map(_configuration, range(1, BLOCK + 1))))
    _amx(e, "ldtilecfg", e.offset(table, e.mul(e.sub(rows, 1), 64), I8))


def _configuration(rows: int) -> bytes:
    """C has the tiles 0 to 3, in one or two rows of tiles; A the one or two that follow, B the rest.

    The format: palette 1; from byte 16 on the tiles' bytes in a row, 16 bits each; from byte 48 on their rows.
    """
    low, high = min(rows, SIDE), rows - SIDE
    of_tiles = [low] * 5 + [SIDE] * 3 if high <= 0 else [low, low, high, high, low, high, SIDE, SIDE]
    table = bytearray(64)
    table[0] = 1
    table[16:32:2] = bytes([64] * 8)
    table[48:56] = bytes(of_tiles)
    return bytes(table)


@once("amx_sums")
def _sums(module: ir.Module, target: Target, element: ir.Type, heights: int, panels: int, *, name: str) -> ir.Function:
    """C = init + A @ B, where C has `heights` rows of tiles, two in each panel. `panel`: bytes from one to the next."""
    e = define(module, name, _SUMS, target, internal=True, inline=False)
    steps, a, b, panel, c, ldc, init, init_ld = e.arguments
    width = 2 * panels
    of_b = range(4 + heights, 8)

    def each_sum(act: str, pointer: Value, ld: Value) -> None:
        for i in range(heights):
            for j in range(width):
                place = e.offset(pointer, e.add(e.mul(ld, SIDE * i), SIDE * j), element)
                _amx(e, act, i * width + j, place, e.mul(ld, 4))

    def load(tile: int, pointer: Value, start: Value, number: int) -> None:
        place = e.offset(pointer, e.add(start, TILE_BYTES * number), I8)
        _amx(e, "tileloadd64", tile, place, e.integer(64))

    def one_step(step: Value, _: list[Value]) -> None:
        start = e.mul(step, STEP_BYTES)
        for j in range(width):
            b_tile = of_b[j % len(of_b)]
            load(b_tile, b, e.add(start, e.mul(panel, j // 2)), j % 2)
            for i in range(heights):
                if j == 0:
                    load(4 + i, a, start, i)
                _amx(e, "tdpbf16ps", i * width + j, 4 + i, b_tile)

    each_sum("tileloadd64", init, init_ld)
    e.loop(steps, one_step)
    each_sum("tilestored64", c, ldc)
    return e.done()


@once("amx_panel")
def _whole_or_masked(module: ir.Module, target: Target, element: ir.Type, *, name: str) -> ir.Function:
    """A block times one panel, of which `columns` are wanted; fewer than 32 go through the stack."""
    e = define(module, name, {"rows": I64, "columns": I64} | _SUMS, target, internal=True, inline=False)
    rows, columns, *given = e.arguments
    low, high = (_sums(module, target, element, heights, 1) for heights in (1, 2))

    def run(arguments: list[Value]) -> None:
        is_low = e.compare("<=", rows, SIDE)
        e.choose(is_low, lambda: _do(e, low, arguments), lambda: _do(e, high, arguments))

    buffer, ld = e.stack(element, BLOCK * BLOCK), e.integer(BLOCK)

    def through_buffer() -> None:
        steps, a, b, panel, c, ldc, init, init_ld = given
        copy_rows(e, element, BLOCK, rows, init, init_ld, columns, buffer, ld, fill=True)
        run([steps, a, b, panel, buffer, ld, buffer, ld])
        copy_rows(e, element, BLOCK, rows, buffer, ld, columns, c, ldc)

    e.choose(e.compare(">=", columns, BLOCK), lambda: run(given), through_buffer)
    return e.done()


def _do(e: Emitter, function: ir.Function, arguments: list[Value]) -> None:
    e.call(function, arguments)


# --- C = init + A @ B


@once("amx_product")
def amx_product(module: ir.Module, target: Target, element: ir.Type, *, name: str) -> ir.Function:
    """void amx_product(i64 rows, i64 k, i64 n, a, i64 lda, b, c, i64 ldc, init, i64 init_ld)

    As `product`, with B packed by `amx_pack_b`.
    """
    e = define(module, name, _SIGNATURES["amx_product"], target)
    rows, k, _, a, lda, *_ = e.arguments
    steps = e.ceil_div(k, STEP)
    block = e.stack(I8, _STEPS_AT_ONCE * STEP_BYTES)

    def one_block(row: Value, _: list[Value]) -> None:
        height = e.min(e.sub(rows, row), BLOCK)
        _configure(e, height)

        def some_steps(first: Value, _: list[Value]) -> None:
            count, start = e.min(e.sub(steps, first), _STEPS_AT_ONCE), e.mul(first, STEP)
            a_here = e.offset(a, e.add(e.mul(row, lda), start), element)
            round_rows(e, height, count, a_here, lda, e.sub(k, start), block)
            _all_columns(e, element, row, height, steps, first, count, block)

        e.loop(e.max(steps, 1), some_steps, step=_STEPS_AT_ONCE)

    e.loop(rows, one_block, step=BLOCK)
    _amx(e, "tilerelease")
    return e.done()


def _all_columns(
    e: Emitter, element: ir.Type, row: Value, height: Value, steps: Value, first: Value, count: Value, block: Value
) -> None:
    """A block of some steps times all panels; a low block times two at once, to hide the latency of the sums."""
    _, _, n, _, _, b, c, ldc, init, init_ld = e.arguments
    together, alone = _sums(e.module, e.target, element, 1, 2), _whole_or_masked(e.module, e.target, element)
    none, begins = e.is_null(init), e.compare("==", first, 0)
    zeros = constant_bytes(e, "amx_zeros", bytes(4 * 2 * BLOCK))
    panel = e.mul(steps, STEP_BYTES)

    def at(column: Value) -> list[Value]:
        b_here = e.offset(b, e.add(e.mul(panel, e.div(column, BLOCK)), e.mul(first, STEP_BYTES)), I8)
        c_here = e.offset(c, e.add(e.mul(row, ldc), column), element)
        init_here = e.b.select(none, zeros, e.offset(init, e.add(e.mul(row, init_ld), column), element))
        first_ld = e.b.select(none, e.integer(0), init_ld)
        start, start_ld = (e.b.select(begins, *x) for x in ((init_here, c_here), (first_ld, ldc)))
        return [count, block, b_here, panel, c_here, ldc, start, start_ld]

    pairs = e.b.select(e.compare("<=", height, SIDE), e.sub(n, e.rem(n, 2 * BLOCK)), e.integer(0))
    e.loop(pairs, lambda column, _: _do(e, together, at(column)), step=2 * BLOCK)
    e.loop(n, lambda column, _: _do(e, alone, [height, e.sub(n, column), *at(column)]), start=pairs, step=BLOCK)


# --- C += A^T @ G, of several A


@once("amx_outer")
def amx_outer(module: ir.Module, target: Target, element: ir.Type, *, name: str) -> ir.Function:
    """void amx_outer(i64 p, i64 n, g, i64 ldg, scratch, i64 count, factors)

    C[m, n] += A[p, m]^T @ G[p, n] for each of so many `factors`: i64 m, a, i64 lda, c, i64 ldc, one after the other. G
    is read and packed once for all. The bits are the same for any split of p at multiples of 32, and of m and n.
    `scratch` has room for AMX_SCRATCH numbers.
    """
    e = define(module, name, _SIGNATURES["amx_outer"], target)
    p, n, g, ldg, scratch, count, factors = e.arguments
    a_packed = e.offset(scratch, _PAIRS_AT_ONCE * _COLUMNS_AT_ONCE // 2, element)

    def some_pairs(first_pair: Value, _: list[Value]) -> None:
        pairs = e.min(e.sub(p, first_pair), _PAIRS_AT_ONCE)

        def some_columns(first: Value, _: list[Value]) -> None:
            columns = e.min(e.sub(n, first), _COLUMNS_AT_ONCE)
            g_here = e.offset(g, e.add(e.mul(first_pair, ldg), first), element)
            lay_out_panels(e, pairs, columns, g_here, ldg, scratch)

            def one_factor(i: Value, _: list[Value]) -> None:
                factor = _Factor(e, e.offset(factors, e.mul(i, FACTOR_WORDS), I64), element)
                factor.add(first_pair, pairs, first, columns, a_packed, scratch)

            e.loop(count, one_factor)

        e.loop(n, some_columns, step=_COLUMNS_AT_ONCE)

    e.loop(p, some_pairs, step=_PAIRS_AT_ONCE)
    _amx(e, "tilerelease")
    return e.done()


class _Factor:
    """One of A, with its C."""

    def __init__(self, e: Emitter, words: Value, element: ir.Type) -> None:
        self.e, self.element = e, element
        self.m, self.lda, self.ldc = (e.load(words, I64, i) for i in (0, 2, 4))
        self.a, self.c = (e.load_pointer(words, i) for i in (1, 3))

    def add(
        self, first_pair: Value, pairs: Value, first: Value, columns: Value, a_packed: Value, g_packed: Value
    ) -> None:
        e = self.e

        def some_rows(row: Value, _: list[Value]) -> None:
            rows = e.min(e.sub(self.m, row), _ROWS_AT_ONCE)
            a_here = e.offset(self.a, e.add(e.mul(first_pair, self.lda), row), self.element)
            c_here = e.offset(self.c, e.add(e.mul(row, self.ldc), first), self.element)
            lay_out_block(e, pairs, rows, a_here, self.lda, a_packed)
            self._add_packed(e.ceil_div(pairs, STEP), rows, columns, a_packed, g_packed, c_here)

        e.loop(self.m, some_rows, step=_ROWS_AT_ONCE)

    def _add_packed(
        self, steps: Value, rows: Value, columns: Value, a_packed: Value, g_packed: Value, c: Value
    ) -> None:
        """A panel in the nearest cache, all blocks pass by."""
        e, size = self.e, self.e.mul(steps, STEP_BYTES)
        tile = _whole_or_masked(e.module, e.target, self.element)

        def one_panel(column: Value, _: list[Value]) -> None:
            b_here = e.offset(g_packed, e.mul(size, e.div(column, BLOCK)), I8)

            def one_block(row: Value, _: list[Value]) -> None:
                height = e.min(e.sub(rows, row), BLOCK)
                # The tiles are those of the block before unless it was higher.
                other = e.b.or_(e.compare("==", row, 0), e.compare("<", height, BLOCK))
                e.choose(other, lambda: _configure(e, height))
                a_here = e.offset(a_packed, e.mul(size, e.div(row, BLOCK)), I8)
                to = e.offset(c, e.add(e.mul(row, self.ldc), column), self.element)
                e.call(tile, [height, e.sub(columns, column), steps, a_here, b_here, size, to, self.ldc, to, self.ldc])

            e.loop(rows, one_block, step=BLOCK)

        e.loop(columns, one_panel, step=BLOCK)


# --- all of them, compiled once


class AmxProducts(NamedTuple):
    """The functions of this file, as one module sees them."""

    pack_b: ir.Function
    product: ir.Function
    outer: ir.Function


def emit_amx(module: ir.Module, target: Target) -> AmxProducts:
    """Emit all of them into a module."""
    return AmxProducts(*(emit(module, target, F32) for emit in (amx_pack_b, amx_product, amx_outer)))


@functools.cache
def amx_library(target: Target) -> CompiledModule:
    """All of them as machine code, compiled once per process."""
    module = new_module("amx_products", target)
    emit_amx(module, target)
    return compile_module(module, target)


def declare_amx(module: ir.Module) -> AmxProducts:
    """Declare them in a module that will be compiled with `amx_library(target)`."""

    def declare(name: str) -> ir.Function:
        symbol = full_name(name, F32)
        type_ = ir.FunctionType(VOID, list(_SIGNATURES[name].values()))
        return module.globals.get(symbol) or ir.Function(module, type_, name=symbol)

    return AmxProducts(*map(declare, _SIGNATURES))
