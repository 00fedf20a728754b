"""LLVM values -> arithmetic that reads like mathematics.

`Lanes` wraps one vector value and the builder that is writing code; each operator emits exactly one
instruction, in the order of the text, without fast-math flags: nothing is contracted or reordered unless `fma`
says so. Python numbers next to a `Lanes` become splatted constants of its type.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Union

from llvmlite import ir

__all__ = [
    "FLOAT32",
    "FLOAT64",
    "Format",
    "Lanes",
    "copysign",
    "fma",
    "format_of",
    "intrinsic",
    "is_nan",
    "where",
]

Operand = Union["Lanes", float, int]


@dataclass(frozen=True)
class Format:
    """An IEEE number format as bit tricks see it."""

    name: str
    element: ir.Type
    integer: ir.IntType
    fraction_bits: int
    bias: int

    @property
    def sign_bit(self) -> int:
        return 1 << (self.integer.width - 1)

    @property
    def smallest_normal(self) -> float:
        return 2.0 ** (1 - self.bias)

    @property
    def epsilon(self) -> float:
        return 2.0**-self.fraction_bits

    def bits(self, number: float) -> int:
        """The bit pattern of `number`, rounded to this format."""
        kind, integer = ("<f", "<I") if self.integer.width == 32 else ("<d", "<Q")
        return struct.unpack(integer, struct.pack(kind, number))[0]


FLOAT32 = Format("f32", ir.FloatType(), ir.IntType(32), fraction_bits=23, bias=127)
FLOAT64 = Format("f64", ir.DoubleType(), ir.IntType(64), fraction_bits=52, bias=1023)


def format_of(vector: ir.Type) -> Format:
    """The number format of a vector type."""
    for known in (FLOAT32, FLOAT64):
        if isinstance(vector, ir.VectorType) and vector.element in (known.element, known.integer):
            return known
    raise TypeError(
        f"vector math works on vectors of float or double, got the type {vector}.\n"
        "Splat a scalar into a vector, or convert the elements first."
    )


class _SplatConstant(ir.Constant):
    """`splat (float 0x…)`, where llvmlite would repeat the number for each lane."""

    def __init__(self, vector: ir.VectorType, number: float | int) -> None:
        self.type = vector
        self.constant = f"splat ({ir.Constant(vector.element, number)})"

    def _to_string(self) -> str:
        return f"{self.type} {self.constant}"

    def _get_reference(self) -> str:
        return self.constant


class Lanes:
    """A vector in a register: floats, integers of the same width, or a mask."""

    __slots__ = ("builder", "value")

    def __init__(self, builder: Any, value: Any) -> None:  # llvmlite carries no type hints
        self.builder = builder
        self.value = value

    @property
    def type(self) -> ir.VectorType:
        return self.value.type

    @property
    def format(self) -> Format:
        return format_of(self.type)

    @property
    def lanes(self) -> int:
        return self.type.count

    @property
    def is_float(self) -> bool:
        return isinstance(self.type.element, (ir.FloatType, ir.DoubleType))

    def splat(self, number: float | int) -> "Lanes":
        """`number` in every lane, in this value's type."""
        return Lanes(self.builder, _SplatConstant(self.type, number))

    def _both(self, other: Operand) -> tuple[Any, Any]:
        if not isinstance(other, Lanes):
            other = self.splat(other)
        return self.value, other.value

    def _emit(self, of_floats: str, of_integers: str, other: Operand, swapped: bool = False) -> "Lanes":
        left, right = self._both(other)
        if swapped:
            left, right = right, left
        make = getattr(self.builder, of_floats if self.is_float else of_integers)
        return Lanes(self.builder, make(left, right))

    def __add__(self, other: Operand) -> "Lanes":
        return self._emit("fadd", "add", other)

    def __sub__(self, other: Operand) -> "Lanes":
        return self._emit("fsub", "sub", other)

    def __rsub__(self, other: Operand) -> "Lanes":
        return self._emit("fsub", "sub", other, swapped=True)

    def __mul__(self, other: Operand) -> "Lanes":
        return self._emit("fmul", "mul", other)

    def __truediv__(self, other: Operand) -> "Lanes":
        return self._emit("fdiv", "sdiv", other)

    def __rtruediv__(self, other: Operand) -> "Lanes":
        return self._emit("fdiv", "sdiv", other, swapped=True)

    __radd__ = __add__
    __rmul__ = __mul__

    def __neg__(self) -> "Lanes":
        return Lanes(self.builder, self.builder.fneg(self.value))

    def __and__(self, other: Operand) -> "Lanes":
        return self._emit("and_", "and_", other)

    def __or__(self, other: Operand) -> "Lanes":
        return self._emit("or_", "or_", other)

    def __xor__(self, other: Operand) -> "Lanes":
        return self._emit("xor", "xor", other)

    def __lshift__(self, other: Operand) -> "Lanes":
        return self._emit("shl", "shl", other)

    def shifted_down(self, bits: int) -> "Lanes":
        """Zeros fill up from the left. AVX2 has no other shift of 64-bit integers to the right."""
        return Lanes(self.builder, self.builder.lshr(*self._both(bits)))

    def _compare(self, how: str, other: Operand) -> "Lanes":
        left, right = self._both(other)
        if self.is_float:
            return Lanes(self.builder, self.builder.fcmp_ordered(how, left, right))
        return Lanes(self.builder, self.builder.icmp_signed(how, left, right))

    def __lt__(self, other: Operand) -> "Lanes":
        return self._compare("<", other)

    def __gt__(self, other: Operand) -> "Lanes":
        return self._compare(">", other)

    def __le__(self, other: Operand) -> "Lanes":
        return self._compare("<=", other)

    def __ge__(self, other: Operand) -> "Lanes":
        return self._compare(">=", other)

    def equals(self, other: Operand) -> "Lanes":
        """A mask; false where either is not a number."""
        return self._compare("==", other)

    def and_not(self, other: "Lanes") -> "Lanes":
        """A mask: set here and not in `other`."""
        return Lanes(self.builder, self.builder.and_(self.value, self.builder.not_(other.value)))

    def as_bits(self) -> "Lanes":
        """The same bits, read as integers."""
        return Lanes(self.builder, self.builder.bitcast(self.value, self._vector(self.format.integer)))

    def as_float(self) -> "Lanes":
        """The same bits, read as floats."""
        return Lanes(self.builder, self.builder.bitcast(self.value, self._vector(self.format.element)))

    def to(self, target: Format) -> "Lanes":
        """The same numbers in another format."""
        if target is self.format:
            return self
        convert = self.builder.fpext if target is FLOAT64 else self.builder.fptrunc
        return Lanes(self.builder, convert(self.value, self._vector(target.element)))

    def _vector(self, element: ir.Type) -> ir.VectorType:
        return ir.VectorType(element, self.lanes)

    def abs(self) -> "Lanes":
        return intrinsic("fabs", self)

    def at_least(self, bound: float) -> "Lanes":
        """max(bound, self) that keeps NaN; one instruction on x86."""
        return where(self < bound, self.splat(bound), self)

    def at_most(self, bound: float) -> "Lanes":
        """min(bound, self) that keeps NaN; one instruction on x86."""
        return where(self > bound, self.splat(bound), self)

    def polynomial(self, coefficients: Sequence[float]) -> "Lanes":
        """c[0] + x*(c[1] + x*(c[2] + …)) by Horner's rule; Estrin's was no faster in a loop over many vectors."""
        total = self.splat(coefficients[-1])
        for coefficient in reversed(coefficients[:-1]):
            total = fma(total, self, coefficient)
        return total


def fma(a: Lanes, b: Operand, c: Operand) -> Lanes:
    """a*b + c, rounded once."""
    return intrinsic("fma", a, b, c)


def where(mask: Lanes, yes: Operand, no: Operand) -> Lanes:
    """yes where the mask is set, no elsewhere."""
    if not isinstance(yes, Lanes):
        assert isinstance(no, Lanes), "one side of a choice gives the type"
        yes = no.splat(yes)
    return Lanes(mask.builder, mask.builder.select(mask.value, *yes._both(no)))


def copysign(magnitude: Lanes, sign: Lanes) -> Lanes:
    return intrinsic("copysign", magnitude, sign)


def is_nan(x: Lanes) -> Lanes:
    return Lanes(x.builder, x.builder.fcmp_unordered("uno", x.value, x.value))


def intrinsic(name: str, first: Lanes, *others: Operand) -> Lanes:
    """Call `llvm.<name>` of vectors that all have the type of `first`."""
    module = first.builder.module
    full_name = f"llvm.{name}.v{first.lanes}{first.format.name}"
    function = module.globals.get(full_name)
    if function is None:
        signature = ir.FunctionType(first.type, [first.type] * (1 + len(others)))
        function = ir.Function(module, signature, name=full_name)
    arguments = [first.value, *(first._both(other)[1] for other in others)]
    return Lanes(first.builder, first.builder.call(function, arguments))
