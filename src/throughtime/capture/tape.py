"""A call of the step -> the ATen operators it ran, in order, with what went in and came out.

The tensors have a shape and no numbers (`shapes.py`). Operators that write in place are removed by running the tape a
second time under `torch.func.functionalize`; most cells have none.
"""

import linecache
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import functionalize

from throughtime._nested import leaves, map_leaves
from throughtime.capture.formulas import FORMULAS
from throughtime.capture.shapes import Mode, is_shape

__all__ = ["Call", "Tape", "functional", "is_framework", "shown_line", "user_line"]

_LIFTS = (torch.ops.aten.lift_fresh.default, torch.ops.aten.lift_fresh_copy.default)
_NO_TENSORS = ("prim::device", "aten::sym_size", "aten::sym_stride", "aten::sym_numel", "aten::is_same_size")
_PACKAGE = os.path.dirname(os.path.dirname(__file__))
_CALLER_OF_THE_CELL = os.path.join(os.path.dirname(__file__), "recording.py")
_FRAMEWORK = (os.path.dirname(torch.__file__), os.path.dirname(__file__))


@dataclass(frozen=True, slots=True)
class Call:
    """One operator that ran."""

    operator: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any
    line: str

    @property
    def name(self) -> str:
        """Without the namespace of PyTorch's own operators."""
        return self.operator._schema.name.removeprefix("aten::")

    def read(self) -> list[Tensor]:
        return [a for a in leaves((self.args, self.kwargs)) if isinstance(a, Tensor)]

    def written(self) -> list[Tensor]:
        """Those that it writes on in place."""
        if not self.operator._schema.is_mutable:
            return []
        names = [a.name for a in self.operator._schema.arguments]
        written = {a.name for a in self.operator._schema.arguments if a.alias_info and a.alias_info.is_write}
        by_name = {**dict(zip(names, self.args)), **self.kwargs}
        return [t for name in by_name if name in written for t in leaves(by_name[name]) if isinstance(t, Tensor)]

    def made(self) -> list[Tensor]:
        return [r for r in leaves(self.result) if isinstance(r, Tensor)]


class Tape(Mode):
    """Records while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.line: str | None = None
        """Of the user's code, when a tape runs again; else it is looked up."""

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if func._schema.name.startswith(_NO_TENSORS):
            return func(*args, **kwargs)
        if func not in _LIFTS:
            args, kwargs = self._lifted((args, kwargs))
        with self:
            result = (FORMULAS.get(func) or func.decompose)(*args, **kwargs)
        if result is not NotImplemented:
            return result
        result = func(*args, **kwargs)
        line = user_line() if self.line is None else self.line
        self.calls.append(Call(func, args, kwargs, result, line))
        return result

    def _lifted(self, arguments: Any) -> Any:
        """PyTorch makes some numbers into real tensors by itself; they are recorded as constants."""
        if all(is_shape(leaf) or not isinstance(leaf, Tensor) for leaf in leaves(arguments)):
            return arguments

        def lift(leaf: Any) -> Any:
            is_number = isinstance(leaf, Tensor) and not leaf.is_meta and not leaf.dim()
            return torch.ops.aten.lift_fresh_copy(leaf) if is_number else leaf

        with self:
            return map_leaves(lift, arguments)


def functional(calls: Sequence[Call], inputs: list[Tensor], outputs: list[Tensor]) -> tuple[list[Call], list[Tensor]]:
    """The same computation without operators that write in place, and its outputs."""
    if not any(c.operator._schema.is_mutable for c in calls):
        return list(calls), outputs
    tape = Tape()
    with torch.no_grad(), tape:
        results = functionalize(_replay(tape, calls, inputs, outputs), remove="mutations")(*inputs)
    return tape.calls, list(results)


def _replay(
    tape: Tape, calls: Sequence[Call], inputs: list[Tensor], outputs: list[Tensor]
) -> Callable[..., list[Tensor]]:
    def run(*values: Tensor) -> list[Tensor]:
        now = {id(old): new for old, new in zip(inputs, values)}

        def lookup(leaf: Any) -> Any:
            return now.get(id(leaf), leaf) if isinstance(leaf, Tensor) else leaf

        for call in calls:
            args, kwargs = map_leaves(lookup, (call.args, call.kwargs))
            tape.line = call.line
            made = call.operator(*args, **kwargs)
            for old, new in zip(leaves(call.result), leaves(made)):
                if isinstance(old, Tensor):
                    now[id(old)] = new
        return [lookup(o) for o in outputs]

    return run


def is_framework(file: str) -> bool:
    """PyTorch, or ours: but not our cells."""
    return file.startswith(_FRAMEWORK) or os.path.dirname(file) == _PACKAGE


def user_line() -> str:
    """`cell.py:12` of the innermost line that is not PyTorch's or ours; empty in a backward pass of PyTorch's own."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename != _CALLER_OF_THE_CELL:
        if not is_framework(frame.f_code.co_filename):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def shown_line(line: str) -> str:
    """The user's own line of code, where known."""
    if not line:
        return ""
    file, _, number = line.rpartition(":")
    code = linecache.getline(file, int(number)).strip()
    return f"\n  {line}: {code if len(code) <= 120 else code[:117] + '...'}"
