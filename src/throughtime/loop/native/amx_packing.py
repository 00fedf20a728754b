"""float32 numbers that are rounded to bfloat16 -> the tiles that AMX multiplies.

    step    32 numbers along k
    block   up to 32 rows of A, as tiles [K/32][2][16][32], zeros past K
    panel   32 columns of B, as tiles [K/32][2][16][16][2], zeros past K and N: pairs along k lie side by side

A row of a tile is 16 pairs of 32 bits. Pairs are made of two rows of a matrix or of neighbours in a row; where they
belong into a column of the tile, 16 rows of 16 pairs are transposed in registers.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from throughtime.loop.native.ir import F32, I8, I32, I64, PTR, Emitter, Value, define
from throughtime.loop.native.packing import PACK_B
from throughtime.loop.native.target import Target
from throughtime.loop.native.tiles import once

__all__ = [
    "BLOCK",
    "SIDE",
    "STEP",
    "STEP_BYTES",
    "TILE_BYTES",
    "amx_pack_b",
    "amx_packed_size",
    "constant_bytes",
    "lay_out_block",
    "lay_out_panels",
    "round_rows",
]

SIDE, STEP, BLOCK = 16, 32, 32
TILE_BYTES = 1024
STEP_BYTES = 2 * TILE_BYTES
"""Of a block or of a panel."""

_I16 = ir.IntType(16)
_PAIRS = ir.VectorType(I32, SIDE)
_FILL = {"source": PTR, "ld": I64, "rows": I64, "columns": I64, "out": PTR}


def amx_packed_size(k: int, n: int) -> int:
    """Numbers of float32 that take the room of what `amx_pack_b` writes for a matrix [k, n]."""
    return -(-k // STEP) * STEP * (-(-n // BLOCK) * BLOCK) // 2


@once("amx_pack_b")
def amx_pack_b(module: ir.Module, target: Target, element: ir.Type, *, name: str) -> ir.Function:
    """void amx_pack_b(i64 k, i64 n, w, i64 stride_k, i64 stride_n, out)

    As `pack_b`, but one of the two strides is 1.
    """
    e = define(module, name, PACK_B, target)
    k, n, w, stride_k, stride_n, out = e.arguments
    e.choose(
        e.compare("==", stride_n, 1),
        lambda: lay_out_panels(e, k, n, w, stride_k, out),
        lambda: _lay_out(e, _neighbours_turned(module, target, element), n, k, w, stride_n, out, turned=True),
    )
    return e.done()


def lay_out_panels(e: Emitter, k: Value, n: Value, b: Value, ldb: Value, out: Value) -> None:
    """out: the panels of b[k, n]."""
    _lay_out(e, _pairs_of_rows(e.module, e.target, F32, 0), k, n, b, ldb, out)


def lay_out_block(e: Emitter, k: Value, rows: Value, a: Value, lda: Value, out: Value) -> None:
    """out: the blocks of the transpose of a[k, rows]."""
    _lay_out(e, _pairs_of_rows(e.module, e.target, F32, 1), k, rows, a, lda, out)


def _lay_out(
    e: Emitter,
    fill: ir.Function,
    rows: Value,
    columns: Value,
    source: Value,
    ld: Value,
    out: Value,
    *,
    turned: bool = False,
) -> None:
    """k runs along the rows or, `turned`, along the columns of source[rows, columns]."""
    k, n = (columns, rows) if turned else (rows, columns)
    steps = e.ceil_div(k, STEP)

    def one_step(step: Value, _: list[Value]) -> None:
        def one_tile(tile: Value, _: list[Value]) -> None:
            row, column = e.mul(step, STEP), e.mul(tile, SIDE)
            if turned:
                row, column = column, row
            here = e.offset(source, e.add(e.mul(row, ld), column), F32)
            panel, half = e.div(tile, 2), e.rem(tile, 2)
            place = e.add(e.mul(e.add(e.mul(panel, steps), step), STEP_BYTES), e.mul(half, TILE_BYTES))
            to = e.offset(out, place, I8)
            e.call(fill, [here, ld, e.sub(rows, row), e.sub(columns, column), to])

        e.loop(e.mul(e.ceil_div(n, BLOCK), 2), one_tile)

    e.loop(steps, one_step)


def constant_bytes(e: Emitter, name: str, content: bytes) -> Value:
    """The address of constant bytes."""
    known: Any = e.module.globals.get(name)
    if known is None:
        type_ = ir.ArrayType(I8, len(content))
        known = ir.GlobalVariable(e.module, type_, name)
        known.initializer, known.global_constant = ir.Constant(type_, bytearray(content)), True
        known.linkage, known.align = "internal", 64
    return e.b.bitcast(known, PTR)


@once("amx_pairs_of_rows")
def _pairs_of_rows(module: ir.Module, target: Target, element: ir.Type, turned: int, *, name: str) -> ir.Function:
    """32 rows of 16 numbers, of which `rows` and `columns` are there -> a tile of B or, `turned`, of A."""
    e = define(module, name, _FILL, target, internal=True, inline=False)
    zero_low = ir.Constant(_PAIRS, [0xFFFF0000] * SIDE)
    low_half = ir.Constant(_PAIRS, [16] * SIDE)

    def one_row(load: Callable[[int, int], Value], i: int) -> Value:
        even, odd = (e.b.bitcast(load(2 * i + j, 0), _PAIRS) for j in (0, 1))
        return e.b.or_(e.b.lshr(even, low_half), e.b.and_(odd, zero_low))

    return _fill(e, one_row, 2 * SIDE, SIDE, bool(turned))


@once("amx_neighbours")
def _neighbours_turned(module: ir.Module, target: Target, element: ir.Type, *, name: str) -> ir.Function:
    """16 rows of 32 numbers, of which `rows` and `columns` are there -> a tile of B."""
    e = define(module, name, _FILL, target, internal=True, inline=False)

    def one_row(load: Callable[[int, int], Value], i: int) -> Value:
        return _upper_halves(e, load(i, 0), load(i, SIDE))

    return _fill(e, one_row, SIDE, 2 * SIDE, True)


def _fill(
    e: Emitter, one_row: Callable[[Callable[[int, int], Value], int], Value], rows: int, columns: int, turned: bool
) -> ir.Function:
    """one_row(load, i): the i-th 16 pairs; load(row, column): 16 numbers, zeros where there are none."""
    source, ld, rows_left, columns_left, out = e.arguments

    def load(row: int, column: int) -> Value:
        return e.load_vector(e.offset(source, e.mul(ld, row), F32), F32, index=column, lanes=SIDE)

    zeros = constant_bytes(e, f"amx_zeros_{columns}", bytes(4 * columns))
    masks = {x: e.tail_mask(columns_left, F32, first=x, lanes=SIDE) for x in range(0, columns, SIDE)}

    def load_masked(row: int, column: int) -> Value:
        there = e.b.select(e.compare(">", rows_left, row), e.offset(source, e.mul(ld, row), F32), zeros)
        return e.load_vector(there, F32, masks[column], index=column, lanes=SIDE)

    def pairs_by(loader: Callable[[int, int], Value]) -> list[Value]:
        return [one_row(loader, i) for i in range(SIDE)]

    whole = e.b.and_(e.compare(">=", rows_left, rows), e.compare(">=", columns_left, columns))
    pairs = e.choose(whole, lambda: pairs_by(load), lambda: pairs_by(load_masked))
    for i, row in enumerate(_transposed(e, pairs) if turned else pairs):
        e.store_vector(row, out, index=i * SIDE)
    return e.done()


def _transposed(e: Emitter, rows: list[Value]) -> list[Value]:
    """16 x 16. To lay the halves' rows over each other like the cards of two stacks turns the place's bits by one."""
    half = SIDE // 2
    for _ in range(4):
        pairs = list(zip(rows[:half], rows[half:]))
        rows = [_interleaved(e, a, b, first) for a, b in pairs for first in (0, half)]
    return rows


def _interleaved(e: Emitter, a: Value, b: Value, first: int) -> Value:
    """a[first], b[first], a[first + 1], ..."""
    places = [first + i // 2 + (i % 2) * SIDE for i in range(SIDE)]
    return e.b.shuffle_vector(a, b, ir.Constant(_PAIRS, places))


def round_rows(e: Emitter, rows: Value, steps: Value, a: Value, lda: Value, k: Value, out: Value) -> None:
    """out: the block of a[rows, k]; tiles of so many steps, zeros past k."""

    def one_row(row: Value, _: list[Value]) -> None:
        source, to = e.offset(a, e.mul(row, lda), F32), e.offset(out, e.mul(row, 2 * STEP), I8)

        def put(step: Value, left: Value | None) -> None:
            first = e.mul(step, STEP)
            masks = [None if left is None else e.tail_mask(left, F32, first=x, lanes=SIDE) for x in (0, SIDE)]
            parts = [
                e.load_vector(e.offset(source, first, F32), F32, mask, index=x, lanes=SIDE)
                for x, mask in zip((0, SIDE), masks)
            ]
            e.store_vector(_upper_halves(e, *parts), e.offset(to, e.mul(step, STEP_BYTES), I8))

        whole = e.min(e.div(k, STEP), steps)
        e.loop(whole, lambda step, _: put(step, None))
        e.loop(steps, lambda step, _: put(step, e.sub(k, e.mul(step, STEP))), start=whole)

    e.loop(rows, one_row)


def _upper_halves(e: Emitter, low: Value, high: Value) -> Value:
    """32 numbers of float32 -> as many of bfloat16, as 16 pairs."""
    halves = ir.VectorType(_I16, 2 * SIDE)
    places = ir.Constant(ir.VectorType(I32, 2 * SIDE), [2 * i + 1 for i in range(2 * SIDE)])
    return e.b.bitcast(e.b.shuffle_vector(e.b.bitcast(low, halves), e.b.bitcast(high, halves), places), _PAIRS)
