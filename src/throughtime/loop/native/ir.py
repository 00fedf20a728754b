"""A comfortable layer over llvmlite's IR builder, used by every emitter of this folder.

An `Emitter` writes one function. Counted loops carry values; the tail of a row is a mask, never a scalar
loop, so that an element's arithmetic is one instruction family wherever it stands in its row. No fast-math
flag is ever set here: what is written is what runs, which makes results reproducible to the bit.
"""

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

from throughtime.loop.native.target import Target

__all__ = [
    "BITS",
    "F32",
    "F64",
    "I1",
    "I8",
    "I32",
    "I64",
    "PTR",
    "VOID",
    "Emitter",
    "bits_of",
    "define",
    "new_module",
]

I1, I8, I32, I64 = ir.IntType(1), ir.IntType(8), ir.IntType(32), ir.IntType(64)
F32, F64 = ir.FloatType(), ir.DoubleType()
PTR, VOID = ir.PointerType(), ir.VoidType()

# llvmlite carries no type hints for its values and builder.
Value = Any
Body = Callable[[Value, list[Value]], Sequence[Value] | None]

BITS = {F32: 32, F64: 64, I8: 8, I32: 32, I64: 64}


def bits_of(element: ir.Type) -> int:
    """The size of a scalar type in bits."""
    return BITS[element]


def new_module(name: str, target: Target) -> ir.Module:
    """An empty module for one target."""
    module = ir.Module(name=name, context=ir.Context())
    module.triple = target.triple
    return module


def define(
    module: ir.Module,
    name: str,
    arguments: dict[str, ir.Type],
    target: Target,
    result: ir.Type = VOID,
    *,
    internal: bool = False,
    inline: bool | None = None,
) -> "Emitter":
    """Open a new function; `inline` True or False forces the matter, None leaves it to LLVM."""
    function = ir.Function(module, ir.FunctionType(result, list(arguments.values())), name=name)
    for argument, argument_name in zip(function.args, arguments, strict=True):
        argument.name = argument_name
    function.attributes.add("nounwind")
    if inline is not None:
        function.attributes.add("alwaysinline" if inline else "noinline")
    if internal:
        function.linkage = "internal"
    return Emitter(function, target)


class Emitter:
    """Writes one function: arithmetic through `b`, llvmlite's builder; the rest through these methods."""

    def __init__(self, function: ir.Function, target: Target) -> None:
        self.function = function
        self.module: ir.Module = function.module
        self.target = target
        self.b: Any = ir.IRBuilder(function.append_basic_block("entry"))

    @property
    def arguments(self) -> tuple[Value, ...]:
        """The function's arguments, in order."""
        return self.function.args

    # --- types and constants

    def lanes(self, element: ir.Type) -> int:
        """How many elements a vector of the target holds."""
        return self.target.lanes(bits_of(element))

    def vector(self, element: ir.Type, lanes: int | None = None) -> ir.VectorType:
        """The target's vector of `element`."""
        return ir.VectorType(element, lanes or self.lanes(element))

    def integer(self, value: int, type_: ir.Type = I64) -> ir.Constant:
        """An integer constant."""
        return ir.Constant(type_, value)

    def constant(self, element: ir.Type, value: float, lanes: int | None = None) -> ir.Constant:
        """A vector constant with `value` in every lane."""
        vector = self.vector(element, lanes)
        return ir.Constant(vector, [value] * vector.count)

    def zero(self, type_: ir.Type) -> ir.Constant:
        """All bits zero, of any type."""
        return ir.Constant(type_, None)

    # --- integers

    def add(self, left: Value, right: Value | int) -> Value:
        """left + right, of integers."""
        return self.b.add(left, self._like(left, right))

    def sub(self, left: Value, right: Value | int) -> Value:
        """left - right, of integers."""
        return self.b.sub(left, self._like(left, right))

    def mul(self, left: Value, right: Value | int) -> Value:
        """left * right, of integers."""
        return self.b.mul(left, self._like(left, right))

    def div(self, left: Value, right: Value | int) -> Value:
        """left // right, of integers that are not negative."""
        return self.b.udiv(left, self._like(left, right))

    def rem(self, left: Value, right: Value | int) -> Value:
        """left % right, of integers that are not negative."""
        return self.b.urem(left, self._like(left, right))

    def ceil_div(self, left: Value, right: int) -> Value:
        """The number of blocks of `right` that cover `left`."""
        return self.div(self.add(left, right - 1), right)

    def min(self, left: Value, right: Value | int) -> Value:
        """The smaller of two signed integers."""
        other = self._like(left, right)
        return self.b.select(self.b.icmp_signed("<", left, other), left, other)

    def max(self, left: Value, right: Value | int) -> Value:
        """The larger of two signed integers."""
        other = self._like(left, right)
        return self.b.select(self.b.icmp_signed(">", left, other), left, other)

    def compare(self, operator: str, left: Value, right: Value | int) -> Value:
        """A signed comparison: one of <, <=, ==, !=, >=, >."""
        return self.b.icmp_signed(operator, left, self._like(left, right))

    def is_null(self, pointer: Value) -> Value:
        """Whether a pointer is null."""
        return self.b.icmp_unsigned("==", pointer, ir.Constant(PTR, None))

    def _like(self, model: Value, value: Value | int) -> Value:
        return ir.Constant(model.type, value) if isinstance(value, int) else value

    # --- memory

    def offset(self, pointer: Value, index: Value | int, element: ir.Type) -> Value:
        """&pointer[index], counted in elements."""
        return self.b.gep(pointer, [self._like(self.integer(0), index)], source_etype=element)

    def load(self, pointer: Value, type_: ir.Type, index: Value | int = 0) -> Value:
        """The scalar pointer[index]."""
        return self.b.load(self._at(pointer, index, type_), typ=type_, align=max(1, bits_of(type_) // 8))

    def store(self, value: Value, pointer: Value, index: Value | int = 0) -> None:
        """Store a scalar into pointer[index]."""
        self.b.store(value, self._at(pointer, index, value.type), align=max(1, bits_of(value.type) // 8))

    def load_pointer(self, pointer: Value, index: Value | int = 0) -> Value:
        """The pointer that lies at pointer[index]; pointers have 8 bytes on every target."""
        return self.b.load(self._at(pointer, index, I64), typ=PTR, align=8)

    def load_vector(
        self,
        pointer: Value,
        element: ir.Type,
        mask: Value | None = None,
        *,
        index: Value | int = 0,
        lanes: int | None = None,
        aligned: bool = False,
    ) -> Value:
        """The vector from pointer[index] on; lanes that `mask` leaves out are not read, and are zero."""
        vector = self.vector(element, lanes)
        pointer = self._at(pointer, index, element)
        align = self._alignment(vector, aligned)
        if mask is None:
            return self.b.load(pointer, typ=vector, align=align)
        name = f"llvm.masked.load.{_suffix(vector)}.p0"
        return self.intrinsic(name, vector, [pointer, self.integer(align, I32), mask, self.zero(vector)])

    def store_vector(
        self,
        value: Value,
        pointer: Value,
        mask: Value | None = None,
        *,
        index: Value | int = 0,
        aligned: bool = False,
    ) -> None:
        """Store a vector from pointer[index] on; lanes that `mask` leaves out are not written."""
        pointer = self._at(pointer, index, value.type.element)
        align = self._alignment(value.type, aligned)
        if mask is None:
            self.b.store(value, pointer, align=align)
            return
        name = f"llvm.masked.store.{_suffix(value.type)}.p0"
        self.intrinsic(name, VOID, [value, pointer, self.integer(align, I32), mask])

    def tail_mask(self, remaining: Value, element: ir.Type, *, first: int = 0, lanes: int | None = None) -> Value:
        """The mask of the lanes `first + lane < remaining`; `remaining` is signed and of any size."""
        count = lanes or self.lanes(element)
        # Compared in integers as wide as the elements, which is the form that the hardware's masks have.
        width = I64 if bits_of(element) == 64 else I32
        clipped = self.max(self.min(remaining, first + count), 0)
        left = self.splat(self.b.trunc(clipped, width) if width is I32 else clipped, count)
        lane = ir.Constant(ir.VectorType(width, count), [first + i for i in range(count)])
        return self.b.icmp_signed("<", lane, left)

    def prefetch(self, pointer: Value, *, write: bool = False, locality: int = 3) -> None:
        """Ask for a cache line; a hint only, any address will do."""
        hints = [self.integer(int(write), I32), self.integer(locality, I32), self.integer(1, I32)]
        self.intrinsic("llvm.prefetch.p0", VOID, [pointer, *hints])

    def stack(self, element: ir.Type, count: int, align: int = 64) -> Value:
        """Room for `count` elements in the function's frame."""
        with self.b.goto_entry_block():
            slot = self.b.alloca(ir.ArrayType(element, count))
        slot.align = align
        # llvmlite would keep the array's type on the pointer and refuse to store an element through it.
        slot.type = PTR
        return slot

    def _at(self, pointer: Value, index: Value | int, element: ir.Type) -> Value:
        return pointer if isinstance(index, int) and index == 0 else self.offset(pointer, index, element)

    def _alignment(self, vector: ir.VectorType, aligned: bool) -> int:
        size = bits_of(vector.element) // 8
        return size * vector.count if aligned else size

    # --- vectors

    def splat(self, scalar: Value, lanes: int | None = None) -> Value:
        """A vector with `scalar` in every lane."""
        count = lanes or self.lanes(scalar.type)
        vector = ir.VectorType(scalar.type, count)
        first = self.b.insert_element(ir.Constant(vector, ir.Undefined), scalar, self.integer(0, I32))
        lanes_zero = ir.Constant(ir.VectorType(I32, count), None)
        return self.b.shuffle_vector(first, ir.Constant(vector, ir.Undefined), lanes_zero)

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """a * b + c, rounded once where the target can; rounded twice where it would need a library call."""
        if not self.target.fma:
            return self.b.fadd(self.b.fmul(a, b), c)
        return self.intrinsic(f"llvm.fma.{_suffix(a.type)}", a.type, [a, b, c])

    def intrinsic(self, name: str, result: ir.Type, arguments: Sequence[Value]) -> Value:
        """Call an LLVM intrinsic (or any function by name), declaring it at its first use."""
        callee = self.module.globals.get(name)
        if callee is None:
            callee = ir.Function(self.module, ir.FunctionType(result, [a.type for a in arguments]), name=name)
        return self.b.call(callee, list(arguments))

    # --- control

    def loop(
        self,
        stop: Value | int,
        body: Body,
        carried: Sequence[Value] = (),
        *,
        start: Value | int = 0,
        step: Value | int = 1,
    ) -> list[Value]:
        """for index in range(start, stop, step): carried = body(index, carried). Returns the last."""
        first = self._like(self.integer(0), start)
        before = self.b.block
        head = self.function.append_basic_block("head")
        inside = self.function.append_basic_block("body")
        after = self.function.append_basic_block("after")
        self.b.branch(head)
        self.b.position_at_end(head)
        index = self.b.phi(first.type)
        index.add_incoming(first, before)
        phis = [self._phi(value, before) for value in carried]
        self.b.cbranch(self.compare("<", index, stop), inside, after)
        self.b.position_at_end(inside)
        new = list(body(index, list(phis)) or ())
        if len(new) != len(phis):
            raise ValueError(f"a loop's body must return its {len(phis)} carried values, got {len(new)}")
        index.add_incoming(self.add(index, step), self.b.block)
        for phi, value in zip(phis, new, strict=True):
            phi.add_incoming(value, self.b.block)
        self.b.branch(head)
        self.b.position_at_end(after)
        return phis

    def each_vector(self, count: Value, element: ir.Type, body: Callable[[Value, Value | None], None]) -> None:
        """Run body(index, mask) over `count` elements by vectors: no mask, then once with the tail's."""
        lanes = self.lanes(element)
        whole = self.sub(count, self.rem(count, lanes))
        self.loop(whole, lambda index, _: body(index, None), step=lanes)
        rest = self.sub(count, whole)
        self.choose(self.compare(">", rest, 0), lambda: body(whole, self.tail_mask(rest, element, lanes=lanes)))

    def while_(self, condition: Callable[[], Value], body: Callable[[], None]) -> None:
        """while condition(): body(). State lives in memory."""
        head = self.function.append_basic_block("head")
        inside = self.function.append_basic_block("body")
        after = self.function.append_basic_block("after")
        self.b.branch(head)
        self.b.position_at_end(head)
        self.b.cbranch(condition(), inside, after)
        self.b.position_at_end(inside)
        body()
        self.b.branch(head)
        self.b.position_at_end(after)

    def choose(
        self,
        condition: Value,
        then: Callable[[], Sequence[Value] | None],
        otherwise: Callable[[], Sequence[Value] | None] = lambda: None,
    ) -> list[Value]:
        """Run one of two pieces of code; both return the same number of values, joined after them."""
        arms = [self.function.append_basic_block(name) for name in ("then", "else")]
        after = self.function.append_basic_block("join")
        self.b.cbranch(condition, *arms)
        results, ends = [], []
        for arm, write in zip(arms, (then, otherwise), strict=True):
            self.b.position_at_end(arm)
            results.append(list(write() or ()))
            ends.append(self.b.block)
            self.b.branch(after)
        self.b.position_at_end(after)
        joined = []
        for left, right in zip(*results, strict=True):
            phi = self._phi(left, ends[0])
            phi.add_incoming(right, ends[1])
            joined.append(phi)
        return joined

    def switch(self, value: Value, cases: dict[int, Callable[[], None]]) -> None:
        """Run the case that `value` names; a value without a case runs nothing."""
        after = self.function.append_basic_block("join")
        jump = self.b.switch(value, after)
        for key, write in cases.items():
            block = self.function.append_basic_block(f"case{key}")
            jump.add_case(ir.Constant(value.type, key), block)
            self.b.position_at_end(block)
            write()
            self.b.branch(after)
        self.b.position_at_end(after)

    def call(self, function: ir.Function, arguments: Sequence[Value]) -> Value:
        """Call a function of this module."""
        return self.b.call(function, list(arguments))

    def done(self, result: Value | None = None) -> ir.Function:
        """Close the function with its return."""
        if result is None:
            self.b.ret_void()
        else:
            self.b.ret(result)
        return self.function

    def _phi(self, value: Value, block: Value) -> Value:
        phi = self.b.phi(value.type)
        phi.add_incoming(value, block)
        return phi


def _suffix(type_: Any) -> str:
    if isinstance(type_, ir.VectorType):
        return f"v{type_.count}{_suffix(type_.element)}"
    return type_.intrinsic_name
