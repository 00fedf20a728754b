"""Program: what one step of one direction does on a block of rows, with every value's place. Pure data.

Places of values, by kind:

| kind | one entry per | lies at |
|---|---|---|
| pair | (row, step) pair | base + pair * width |
| previous | row: a state before the step, out of its trace | the pairs of the step before; the initial state at first |
| row | row of the batch: states, row consts, sums per row | base + row * width |
| block | row of the block at hand: scratch of a thread | base + i * width |
| const | call | base |
"""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch

from throughtime.capture.graph import Node
from throughtime.loop.native.views import Features, View

__all__ = [
    "INDEX",
    "Buffer",
    "Expression",
    "Gather",
    "Immediate",
    "Kind",
    "Load",
    "Operand",
    "Pass",
    "Product",
    "Program",
    "Store",
    "SubPass",
    "Weight",
    "is_whole",
]

Kind = Literal["pair", "previous", "row", "block", "const"]


@dataclass(frozen=True, slots=True)
class Buffer:
    """Storage of `width` numbers per entry; truth is stored as 1 or 0.

    local: of a chunk only, not of the whole call. integer: of int64, not of the program's own real type.
    """

    name: str
    kind: Kind
    width: int
    local: bool = False
    integer: bool = False


def is_whole(dtype: torch.dtype) -> bool:
    """Whether values are stored as int64."""
    return not dtype.is_floating_point and dtype != torch.bool


@dataclass(frozen=True, slots=True)
class Immediate:
    """A number that stands in the code."""

    value: float | int


@dataclass(frozen=True, slots=True)
class Load:
    """An element that is stored; `boolean`: stored as 0 or 1."""

    view: View
    boolean: bool = False


INDEX = "(index)"
"""The base of a view whose elements are their own places: a view of strides (0, 1) has the column in each element."""

Operand = str | Load | Immediate
"""Of an expression: a value of the same sub-pass (in a register), a load, or a number."""


@dataclass(frozen=True, slots=True)
class Expression:
    """A node with its operands resolved; loads are views in the sub-pass's space.

    reduced: the axes of the space that it reduces, () if it is elementwise.
    """

    node: Node
    operands: tuple[Operand, ...]
    reduced: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Store:
    """Put an operand where `to` says (a view of a buffer); `add` to what is there."""

    value: Operand
    to: View
    add: bool = False


@dataclass(frozen=True, slots=True)
class SubPass:
    """One walk over the elements of a row: expressions in order, then the stores."""

    space: Features
    expressions: tuple[Expression, ...]
    stores: tuple[Store, ...]

    def __str__(self) -> str:
        lines = [f"    over {list(self.space)}"]
        lines += [f"      {e.node.name} = {e.node.op}({', '.join(map(_word, e.operands))})" for e in self.expressions]
        lines += [f"      {_word(s.to)} {'+=' if s.add else '='} {_word(s.value)}" for s in self.stores]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Pass:
    """Sub-passes run one after the other on each row of the block."""

    parts: tuple[SubPass, ...]

    def __str__(self) -> str:
        return "\n".join(["  pass", *map(str, self.parts)])


@dataclass(frozen=True, slots=True)
class Product:
    """to[rows, N] = init + a[rows, K] @ weight[K, N]; a row of the block may hold `vectors` rows of the product."""

    a: View
    weight: str
    to: str
    init: View | None
    k: int
    n: int
    vectors: int = 1

    def __str__(self) -> str:
        init = "" if self.init is None else f"{_word(self.init)} + "
        return f"  product {self.to} = {init}{_word(self.a)} @ {self.weight}[{self.k}, {self.n}]"


class Weight(NamedTuple):
    """A const [K, N] that products read, packed into panels. rounded: to bfloat16, as is what it is multiplied with."""

    const: str
    k: int
    n: int
    rounded: bool

    @property
    def label(self) -> str:
        return f"rounded {self.const}" if self.rounded else self.const


@dataclass(frozen=True, slots=True)
class Gather:
    """to[row, j] = table[index[row, j]], a table of so many `rows`. The index has one axis; it is cut to its bounds."""

    table: str
    index: View
    to: str
    width: int
    rows: int

    def __str__(self) -> str:
        return f"  gather {self.to} = {self.table}[{_word(self.index)}]"


Op = Pass | Product | Gather


@dataclass(frozen=True, slots=True)
class Program:
    """One step of one direction, on a block of rows; `over` pairs: on a block of any pairs of a chunk."""

    buffers: dict[str, Buffer]
    ops: tuple[Op, ...]
    reverse: bool = False
    weights: dict[str, Weight] = field(default_factory=dict)
    """By label."""
    over: Literal["steps", "pairs"] = "steps"

    def __str__(self) -> str:
        lines = [f"{'backward' if self.reverse else 'forward'} program"]
        lines += [f"  {b.kind:<9}{b.name} [{b.width}]{' per chunk' if b.local else ''}" for b in self.buffers.values()]
        return "\n".join([*lines, *map(str, self.ops)])


def _word(operand: Operand | View) -> str:
    if isinstance(operand, Load):
        operand = operand.view
    if isinstance(operand, View):
        whole = operand.offset == 0 and operand.is_whole
        return operand.base if whole else f"{operand.base}[{operand.offset}; {list(operand.strides)}]"
    return str(operand.value) if isinstance(operand, Immediate) else operand
