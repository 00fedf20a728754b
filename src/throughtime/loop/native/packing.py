"""A matrix -> panels, or tiles, that a microkernel reads from one end to the other."""

from llvmlite import ir

from throughtime.loop.native.ir import Emitter, Value, bits_of, define
from throughtime.loop.native.target import Target
from throughtime.loop.native.tiles import copy_rows, once, panel_width, signature

__all__ = [
    "PACK_B",
    "columns_packed_at_once",
    "pack_b",
    "pack_panels",
    "pack_tiles",
    "packed_size",
    "rows_packed_at_once",
]

PACK_B = signature("k n w stride_k stride_n out")
# Bytes of a row that are packed at once, measured: smaller pieces cost more, as rows lie on pages of their own. With
# `outer`'s 256 pairs they are 400 KB, which the second cache nearly holds.
_BYTES_OF_A = 1152
_BYTES_OF_G = 512


def packed_size(k: int, n: int, target: Target, element: ir.Type) -> int:
    """Elements that `pack_b` writes for a matrix [k, n]."""
    width = panel_width(target, element)
    return -(-n // width) * width * k


def rows_packed_at_once(target: Target, element: ir.Type) -> int:
    """Whole tiles of A's columns, which are rows of C."""
    rows = target.tile(bits_of(element)).rows
    return _BYTES_OF_A * 8 // bits_of(element) // rows * rows


def columns_packed_at_once(target: Target, element: ir.Type) -> int:
    """Whole panels of G's columns."""
    width = panel_width(target, element)
    return _BYTES_OF_G * 8 // bits_of(element) // width * width


@once("pack_b")
def pack_b(module: ir.Module, target: Target, element: ir.Type, *, name: str) -> ir.Function:
    """void pack_b(i64 k, i64 n, w, i64 stride_k, i64 stride_n, out)

    Element (k, n) lies at w[k * stride_k + n * stride_n], so a transpose needs no copy. A range of columns that starts
    at a multiple of NR is a call of its own: offset w by column * stride_n and out by column * k.
    """
    e = define(module, name, PACK_B, target)
    k, n, w, stride_k, stride_n, out = e.arguments
    at_once = columns_packed_at_once(target, element)

    def one_group(column: Value, _: list[Value]) -> None:
        w_here, out_here = e.offset(w, e.mul(column, stride_n), element), e.offset(out, e.mul(column, k), element)
        left = e.min(e.sub(n, column), at_once)
        e.choose(
            e.compare("==", stride_n, 1),
            lambda: pack_panels(e, element, k, left, w_here, stride_k, out_here),
            lambda: _gather_panels(e, element, left, w_here, out_here),
        )

    e.loop(n, one_group, step=at_once)
    return e.done()


def pack_panels(e: Emitter, element: ir.Type, k: Value, columns: Value, w: Value, ldw: Value, out: Value) -> None:
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
        copy_rows(e, element, width, k, w_here, ldw, left, place, step, fill=True)

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


def pack_tiles(e: Emitter, element: ir.Type, pairs: Value, rows: Value, a: Value, lda: Value, out: Value) -> None:
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
