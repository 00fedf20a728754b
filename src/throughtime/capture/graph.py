"""StepGraph and StepPair: one step of a cell as plain data, and its gradient beside it.

Every value that belongs to rows has the row axis first, once, and whole: its shape is `("B", ...)`, never
`(4, "B")` or `("4*B",)`. A value without "B" is the same for all rows. The one exception is `permute(a, (1, 0))` as
the first operand of an `mm` that contracts rows, in the backward part: the gradient of a const.

Operands (values and Python numbers, which stand for a tensor of the other operand's dtype) are in `args`,
attributes in `kwargs`. Operands of an elementwise operator have one dtype (`where`: all but the condition) and
broadcast as in PyTorch. Shapes are given in full; the axes of an attribute are never negative. Under autocast the
operands of mm, bmm and convolution are rounded by `to_dtype`, and their result is float32, as is all else.

| operator | operands | attributes | meaning |
|---|---|---|---|
| mm | x, w | | `x[..., K] @ w[K, N]`: w has two axes, x two or more (a row may hold several vectors) |
| bmm | a, b | | `a[..., M, K] @ b[..., K, N]` with the same leading axes |
| add sub mul div maximum minimum pow atan2 … | a, b | | elementwise |
| eq ne lt le gt ge logical_and logical_or logical_xor | a, b | | elementwise, bool |
| neg tanh sigmoid relu exp log sqrt erf logical_not … | a | | elementwise |
| where | condition, a, b | | elementwise |
| to_dtype | a | dtype | |
| sum amax amin prod | a | dims, keepdim | sum over axis 0 of a row value: backward part only |
| argmax argmin cumsum … | a | dim, … | along one feature axis |
| view | a | shape | keeps the order of the elements |
| permute | a | dims | |
| expand | a | shape | the same number of axes |
| slice | a | dim, start, end, step | |
| cat | a, b, … | dim | |
| full | | shape, value | |
| constant | | data | small table made inside the step, as nested tuples |
| gather scatter scatter_add | x, index, source | dim | along one feature axis, each row by its own index |
| index_select index_add index_copy | x, index, source | dim | along one feature axis, all rows by one index |
| embedding | table, index | | `table[index]` |
| embedding_dense_backward | gradient, index | num_weights, padding_idx, … | backward part only |
| convolution | x, w, bias or None | stride, padding, dilation, transposed, output_padding, groups | rows: batch |

Operators that are not in the table keep the name and the argument order that they have in ATen; with several
results, `output` in kwargs says which one this node is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

__all__ = ["ROWS", "Input", "InputKind", "Node", "Ref", "Shape", "StepGraph", "StepPair", "format_shape"]

ROWS: Literal["B"] = "B"
"""Marks the row axis in a shape."""

Shape = tuple[int | Literal["B"], ...]
InputKind = Literal["const", "row_const", "xs", "carry", "noise", "d_ys", "d_next_carry"]
Distribution = Literal["uniform", "normal"]


@dataclass(frozen=True, slots=True)
class Ref:
    """An argument that is a value: an input or a node, by name."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Input:
    """A value that comes from outside the graph."""

    name: str
    kind: InputKind
    path: str
    shape: Shape
    dtype: torch.dtype
    requires_grad: bool = False
    """Whether the pair has a gradient for it. Every floating carry has one."""
    distribution: Distribution | None = None
    """Of a noise: uniform in [0, 1) or standard normal."""

    def __str__(self) -> str:
        extra = self.distribution or ("grad" if self.requires_grad else "")
        typed = f"{_dtype_name(self.dtype)}{format_shape(self.shape)}"
        return f"{self.kind:<12} {self.name:<18} {typed:<22} {extra:<8} {self.path}".rstrip()


@dataclass(frozen=True, slots=True)
class Node:
    """A value that is computed."""

    name: str
    op: str
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]
    shape: Shape
    dtype: torch.dtype
    operands: tuple[str, ...] = field(init=False, repr=False, compare=False)
    """The names of the values that this one is computed from, in order, repeats included."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "operands", tuple(_refs(self.args)))

    @property
    def attributes(self) -> dict[str, Any]:
        return dict(self.kwargs)

    def __str__(self) -> str:
        words = [_format_value(a) for a in self.args]
        words += [f"{k}={_format_value(v)}" for k, v in self.kwargs]
        call = f"{self.name} = {self.op}({', '.join(words)})"
        return f"{call:<64} {_dtype_name(self.dtype)}{format_shape(self.shape)}"


@dataclass(frozen=True, slots=True)
class StepGraph:
    """One step: `ys, next_carry` from consts, xs, carry and noise."""

    inputs: tuple[Input, ...]
    nodes: tuple[Node, ...]
    ys: tuple[str, ...]
    next_carry: tuple[str, ...]

    def of_kind(self, kind: InputKind) -> tuple[Input, ...]:
        return tuple(i for i in self.inputs if i.kind == kind)

    def __str__(self) -> str:
        lines = ["step", *_indent(self.inputs), *_indent(self.nodes)]
        lines.append(f"  ys: {_names(self.ys)}")
        lines.append(f"  next_carry: {_names(self.next_carry)}")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class StepPair:
    """One step and its gradient, as one graph: backward nodes may refer to any value of the forward part.

    A node is in the backward part when it depends on a cotangent or when nothing but the backward part needs it.
    `d_consts` and so on name a value for each input of that kind, in the order of `forward.inputs`; None: none was
    asked for (frozen, or not floating), or it is zero.
    """

    forward: StepGraph
    backward_inputs: tuple[Input, ...]
    backward_nodes: tuple[Node, ...]
    d_consts: tuple[str | None, ...]
    d_row_consts: tuple[str | None, ...]
    d_xs: tuple[str | None, ...]
    d_carry: tuple[str | None, ...]

    def __str__(self) -> str:
        lines = [str(self.forward), "backward", *_indent(self.backward_inputs), *_indent(self.backward_nodes)]
        for kind in ("d_consts", "d_row_consts", "d_xs", "d_carry"):
            lines.append(f"  {kind}: {_names(getattr(self, kind))}")
        return "\n".join(lines)


def format_shape(shape: Shape) -> str:
    return "[" + ", ".join(str(n) for n in shape) + "]"


def _refs(args: Any) -> Iterable[str]:
    for a in args:
        if isinstance(a, Ref):
            yield a.name
        elif isinstance(a, tuple):
            yield from _refs(a)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _format_value(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_format_value(v) for v in value) + "]"
    return _dtype_name(value) if isinstance(value, torch.dtype) else str(value)


def _names(names: Iterable[str | None]) -> str:
    return ", ".join(n or "-" for n in names) or "(none)"


def _indent(items: Iterable[Any]) -> list[str]:
    return [f"  {item}" for item in items]
