"""Program -> LLVM module: a worker that takes a share of the rows through the steps of a chunk.

A worker's block of arguments: the chunk's first and last step, the step whose state before it is the initial one,
the running rows and the pair offsets by step, the bounds of the shares, then a pointer for each buffer. Pointers to
pair buffers are such that a pair's index counts from the call's first pair, for buffers of a chunk too.
"""

from collections.abc import Sequence

import torch
from llvmlite import ir

from throughtime.loop.native.amx import declare_amx
from throughtime.loop.native.gemm import declare_products
from throughtime.loop.native.ir import F32, F64, I64, PTR, Emitter, Value, define, new_module
from throughtime.loop.native.passes import emit_pass
from throughtime.loop.native.program import Buffer, Gather, Op, Pass, Product, Program
from throughtime.loop.native.target import Target
from throughtime.loop.native.threads import FIRST_ARGUMENT, define_worker

__all__ = ["PAIRS_AT_ONCE", "arguments_of", "element_type", "emit_program"]

PAIRS_AT_ONCE = 48
"""Pairs in one block of a program that runs over pairs."""
MANY_VECTORS, VECTORS_AT_ONCE = 8, 128
"""Of a row, for a product to be as fast with few rows; of the rows that are worked on together then."""

CHUNK_ARGUMENTS = ("start", "stop", "first", "active", "offsets", "bounds")


def element_type(dtype: torch.dtype) -> ir.Type:
    return F64 if dtype == torch.float64 else F32


def arguments_of(program: Program) -> tuple[str, ...]:
    """The names of the block's arguments, in order: buffers, packed weights, the initial states."""
    initial = [f"initial {name}" for name, buffer in program.buffers.items() if buffer.kind == "previous"]
    weights = [f"packed {name}" for name in program.weights]
    return (*CHUNK_ARGUMENTS, *program.buffers, *weights, *initial)


def emit_program(program: Program, element: ir.Type, target: Target, name: str) -> ir.Module:
    """A module with the worker `name`."""
    module = new_module(name, target)
    step = _emit_step(module, program, element, target, f"{name}_step")
    emit_body = _emit_pairs_body if program.over == "pairs" else _emit_body
    body = emit_body(module, program, target, f"{name}_body", step)
    define_worker(module, target, name, body)
    return module


def _emit_body(module: ir.Module, program: Program, target: Target, name: str, step: ir.Function) -> ir.Function:
    """For each step of the chunk: the rows of this share that still run."""
    e = define(module, name, {"block": PTR, "share": I64}, target, internal=True)
    block, share = e.arguments
    argument = _Arguments(e, block, arguments_of(program))
    bounds, active, offsets = argument.pointer("bounds"), argument.pointer("active"), argument.pointer("offsets")
    low, high = e.load(bounds, I64, share), e.load(bounds, I64, e.add(share, 1))
    start, stop = argument.integer("start"), argument.integer("stop")

    def one_step(index: Value, _: list[Value]) -> None:
        t = e.sub(e.sub(stop, 1), index) if program.reverse else e.add(start, index)
        count = e.sub(e.min(e.load(active, I64, t), high), low)
        pair = e.add(e.load(offsets, I64, t), low)
        at_once = _rows_at_once(program)
        if at_once is None:
            _call_if_any(e, count, step, [block, t, low, count, pair, low])
            return

        def some_rows(first: Value, _: list[Value]) -> None:
            rows = e.min(e.sub(count, first), at_once)
            e.call(step, [block, t, e.add(low, first), rows, e.add(pair, first), low])

        e.loop(count, some_rows, step=at_once)

    e.loop(e.sub(stop, start), one_step)
    return e.done()


def _rows_at_once(program: Program) -> int | None:
    """Where every product has many vectors of each row, a few rows are enough, and their scratch stays in the cache:
    a convolutional LSTM trains 1.5 times as fast.
    """
    vectors = [op.vectors for op in program.ops if isinstance(op, Product)]
    return -(-VECTORS_AT_ONCE // min(vectors)) if vectors and min(vectors) >= MANY_VECTORS else None


def _emit_pairs_body(module: ir.Module, program: Program, target: Target, name: str, step: ir.Function) -> ir.Function:
    """The share's pairs, block by block. Each share has scratch for one block."""
    e = define(module, name, {"block": PTR, "share": I64}, target, internal=True)
    block, share = e.arguments
    bounds = _Arguments(e, block, arguments_of(program)).pointer("bounds")
    low, high = e.load(bounds, I64, share), e.load(bounds, I64, e.add(share, 1))
    scratch_row = e.mul(share, PAIRS_AT_ONCE)

    def one_block(pair: Value, _: list[Value]) -> None:
        count = e.min(e.sub(high, pair), PAIRS_AT_ONCE)
        e.call(step, [block, e.integer(0), scratch_row, count, pair, scratch_row])

    e.loop(high, one_block, start=low, step=PAIRS_AT_ONCE)
    return e.done()


def _emit_step(module: ir.Module, program: Program, element: ir.Type, target: Target, name: str) -> ir.Function:
    signature = {"block": PTR, "t": I64, "row": I64, "count": I64, "pair": I64, "scratch": I64}
    e = define(module, name, signature, target, internal=True, inline=False)
    place = _Places(e, program, element)
    for op in program.ops:
        _emit_op(e, element, op, program, place)
    return e.done()


def _emit_op(e: Emitter, element: ir.Type, op: Op, program: Program, place: "_Places") -> None:
    if isinstance(op, Pass):
        emit_pass(e, element, op, program.buffers, place.bases, place.count)
    elif isinstance(op, Product):
        _emit_product(e, element, op, program, place)
    else:
        _emit_gather(e, element, op, place, program.buffers)


def _emit_product(e: Emitter, element: ir.Type, op: Product, program: Program, place: "_Places") -> None:
    on_tiles = e.target.has_amx_bf16 and program.weights[op.weight].rounded
    product = declare_amx(e.module).product if on_tiles else declare_products(e.module, element).product
    lda = op.k if op.vectors > 1 else program.buffers[op.a.base].width
    ldc = op.n if op.vectors > 1 else program.buffers[op.to].width
    to = place.bases[op.to]
    init, init_ld = e.zero(PTR), 0
    if op.init is not None:
        init = e.offset(place.bases[op.init.base], op.init.offset, element)
        init_ld = 0 if program.buffers[op.init.base].kind == "const" else ldc
    a = e.offset(place.bases[op.a.base], op.a.offset, element)
    sizes = [e.integer(n) for n in (op.k, op.n)]
    packed = place.argument.pointer(f"packed {op.weight}")
    rows = e.mul(place.count, op.vectors)
    e.call(product, [rows, *sizes, a, e.integer(lda), packed, to, e.integer(ldc), init, e.integer(init_ld)])


def _emit_gather(e: Emitter, element: ir.Type, op: Gather, place: "_Places", buffers: dict[str, Buffer]) -> None:
    """Copy rows of the table for each row of the block. An index that was computed may lie anywhere: it is cut."""
    index, table, to = place.bases[op.index.base], place.bases[op.table], place.bases[op.to]
    (count,), (stride,) = op.index.shape, op.index.strides

    def one_row(i: Value, _: list[Value]) -> None:
        first = e.offset(index, e.add(e.mul(i, buffers[op.index.base].width), op.index.offset), I64)
        row = e.offset(to, e.mul(i, buffers[op.to].width), element)

        def one_entry(j: Value, _: list[Value]) -> None:
            chosen = e.max(e.min(e.load(first, I64, e.mul(j, stride)), op.rows - 1), 0)
            source = e.offset(table, e.mul(chosen, op.width), element)
            _copy_vectors(e, element, source, e.offset(row, e.mul(j, op.width), element), op.width)

        e.loop(count, one_entry)

    e.loop(place.count, one_row)


def _copy_vectors(e: Emitter, element: ir.Type, source: Value, to: Value, width: int) -> None:
    def move(column: Value, mask: Value | None) -> None:
        e.store_vector(e.load_vector(source, element, mask, index=column), to, mask, index=column)

    e.each_vector(e.integer(width), element, move)


class _Arguments:
    """Reads a worker's block."""

    def __init__(self, e: Emitter, block: Value, names: Sequence[str]) -> None:
        self.e, self.block = e, block
        self.places = {name: FIRST_ARGUMENT + i for i, name in enumerate(names)}

    def pointer(self, name: str) -> Value:
        return self.e.load_pointer(self.block, self.places[name])

    def integer(self, name: str) -> Value:
        return self.e.load(self.block, I64, self.places[name])


class _Places:
    """Where the block's first entry lies in every buffer."""

    def __init__(self, e: Emitter, program: Program, element: ir.Type) -> None:
        block, self.t, self.row, self.count, self.pair, self.scratch = e.arguments
        self.argument = _Arguments(e, block, arguments_of(program))
        self.bases = {buffer.name: self._base(e, buffer, element) for buffer in program.buffers.values()}

    def _base(self, e: Emitter, buffer: Buffer, element: ir.Type) -> Value:
        pointer = self.argument.pointer(buffer.name)
        type_ = I64 if buffer.integer else element
        if buffer.kind == "const":
            return pointer
        if buffer.kind == "pair":
            return e.offset(pointer, e.mul(self.pair, buffer.width), type_)
        if buffer.kind == "previous":
            return self._previous(e, buffer, pointer, type_)
        entry = self.scratch if buffer.kind == "block" else self.row
        return e.offset(pointer, e.mul(entry, buffer.width), type_)

    def _previous(self, e: Emitter, buffer: Buffer, trace: Value, element: ir.Type) -> Value:
        """The pairs of the step before; before the first step the initial state."""
        initial = self.argument.pointer(f"initial {buffer.name}")
        is_first = e.compare("==", self.t, self.argument.integer("first"))
        before = e.max(e.sub(self.t, 1), 0)
        pair = e.add(e.load(self.argument.pointer("offsets"), I64, before), self.row)
        from_trace = e.offset(trace, e.mul(pair, buffer.width), element)
        from_initial = e.offset(initial, e.mul(self.row, buffer.width), element)
        return e.b.select(is_first, from_initial, from_trace)


def _call_if_any(e: Emitter, size: Value, function: ir.Function, arguments: Sequence[Value]) -> None:
    def call() -> None:
        e.call(function, arguments)

    e.choose(e.compare(">", size, 0), call)
