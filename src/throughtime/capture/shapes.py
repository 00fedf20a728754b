"""PyTorch's operators on tensors that have a shape and no numbers; the step takes them for tensors of the CPU.

They are on PyTorch's meta device. `FakeTensorMode` does the same for any device, at ten times the cost, and imports
PyTorch's whole compiler first.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from throughtime._errors import CaptureError
from throughtime._nested import leaves, map_leaves
from throughtime.capture.formulas import FORMULAS
from throughtime.capture.shape_rules import META, empty_like, shape_of_result

__all__ = ["AS_ON_CPU", "Mode", "NumbersNeeded", "Shapes", "SizeNeedsNumbers", "is_shape"]

aten = torch.ops.aten

AS_ON_CPU: dict[Any, Any] = {Tensor.device: torch.device("cpu"), Tensor.is_cpu: True, Tensor.is_meta: False}
"""Attributes of a shape, as the step sees them."""

MOST_KNOWN = 64
"""Numbers of a tensor that are worth knowing: a step may read a small table that it made itself."""

_LIFTS = frozenset({aten.lift_fresh.default, aten.lift_fresh_copy.default})


class NumbersNeeded(Exception):
    """A result depends on numbers. `operator`: what was to give it."""

    def __init__(self, operator: Any) -> None:
        super().__init__(str(operator))
        self.operator = operator


class SizeNeedsNumbers(NumbersNeeded):
    """The size of a result does."""


def is_shape(value: Any) -> bool:
    """Whether it is a tensor without numbers, whatever the step is told."""
    with torch._C.DisableTorchFunction():
        return isinstance(value, Tensor) and value.is_meta


class Mode(TorchDispatchMode):
    """Sees every operator: `run` is called in its place."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """PyTorch's compiler would be imported only to be told that it need not look in here."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunction():  # what the step is told of its tensors is not for this
            return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return func(*args, **kwargs)


class Shapes(Mode):
    """While active: every tensor that is made is a shape. The few numbers of a table made in the step stay known."""

    def __init__(self) -> None:
        super().__init__()
        self._lifted: dict[int, Tensor] = {}
        """Shapes of tensors that were made of numbers, by id."""
        self._known: dict[int, tuple[Tensor, Tensor]] = {}
        """By the id of a shape: itself, which keeps its id, and its numbers."""

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if func in _LIFTS:
            return self._shape_of(args[0])
        args, kwargs = map_leaves(self._shape_of_number, (args, kwargs))
        if func._schema.is_mutable:
            self._known.clear()
        known = self._numbers_of((args, kwargs))
        if func is aten._local_scalar_dense.default and known is not None:
            return known[0][0].item()
        _refuse_numbers(func, args)
        made = self._made(func, args, _on_meta(kwargs))
        is_small = isinstance(made, Tensor) and made.numel() <= MOST_KNOWN
        if known is not None and is_small and torch.Tag.nondeterministic_seeded not in func.tags:
            self._known[id(made)] = made, func(*known[0], **known[1])
        return made

    def _made(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if (made := shape_of_result(func, args, kwargs)) is not None:
            return made
        if (formula := FORMULAS.get(func)) is not None:
            with self:
                made = formula(*args, **kwargs)
            if made is not NotImplemented:
                return made
        return func(*args, **kwargs)

    def _shape_of_number(self, leaf: Any) -> Any:
        """PyTorch makes numbers into tensors by itself."""
        if not isinstance(leaf, Tensor) or leaf.is_meta:
            return leaf
        if leaf.dim() or leaf.requires_grad:
            raise CaptureError(
                "it runs TorchScript, or other code that hides from PyTorch which tensors it reads. Pass the Python "
                "module that it was scripted from."
            )
        return self._shape_of(leaf)

    def _shape_of(self, leaf: Tensor) -> Tensor:
        """Of a tensor that is made of numbers. PyTorch lifts some twice."""
        if leaf.is_meta and id(leaf) not in self._lifted:
            raise CaptureError("the step makes a tensor of numbers on device='meta'.")
        if leaf.is_meta:
            return leaf
        shape = empty_like(leaf)
        self._lifted[id(shape)] = shape
        if leaf.numel() <= MOST_KNOWN:
            self._known[id(shape)] = shape, leaf
        return shape

    def _numbers_of(self, arguments: Any) -> tuple[Any, ...] | None:
        """The arguments with numbers, if all their tensors have known ones."""
        if not self._known:
            return None
        shapes = [id(leaf) for leaf in leaves(arguments) if is_shape(leaf)]
        if not shapes or not all(place in self._known for place in shapes):
            return None
        return map_leaves(lambda leaf: self._known[id(leaf)][1] if is_shape(leaf) else leaf, arguments)


def _refuse_numbers(func: Any, args: Any) -> None:
    if torch.Tag.data_dependent_output in func.tags:
        raise NumbersNeeded(func)
    if torch.Tag.dynamic_output_shape in func.tags:
        by_places = func is aten.index.Tensor and not any(_is_mask(index) for index in args[1])
        if not by_places:
            raise SizeNeedsNumbers(func)


def _is_mask(index: Tensor | None) -> bool:
    return index is not None and index.dtype in (torch.bool, torch.uint8)


def _on_meta(kwargs: dict[str, Any]) -> dict[str, Any]:
    device = kwargs.get("device")
    if device is None:
        return kwargs
    if device.type not in ("cpu", "meta"):
        raise CaptureError(f"the step puts a tensor on {device}, but machine code runs on the CPU.")
    return {**kwargs, "device": META}
