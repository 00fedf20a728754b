"""Every real tensor that the step touches -> a fake one in its place, seen before anything is computed with it.

A cell closes over tensors wherever it likes: parameters, buffers, globals, a closure. `StandIns` watches each call of a
torch function, puts a stand-in where a real tensor is passed, and remembers which tensor it stands for.
"""

import sys
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import Function
from torch.overrides import TorchFunctionMode

from throughtime._errors import CaptureError
from throughtime._nested import map_leaves
from throughtime.capture.formulas import IN_PYTHON
from throughtime.capture.rowcount import mark_rows, plain_sizes

__all__ = ["StandIns"]

_SIZES: set[Any] = {Tensor.size, Tensor.numel, Tensor.nelement}
_KEEP_IDENTITY = {Tensor.is_leaf, Tensor.requires_grad, Tensor.grad, Tensor.dtype, Tensor.device, Tensor.shape}
_active = threading.local()


class StandIns(TorchFunctionMode):
    """While active: torch functions see `make(tensor)` instead of a real tensor; `check` sees every fake one."""

    def __init__(self, make: Callable[[Tensor], Tensor], check: Callable[[Tensor], None] | None = None) -> None:
        super().__init__()
        self._make = make
        self._check = check
        self._stand_ins: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def found(self) -> list[tuple[Tensor, Tensor]]:
        """(the real tensor, what stands for it), in the order of their first use."""
        return list(self._stand_ins.values())

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") == "__get__":
            return self._attribute(func, *args)
        args, kwargs = map_leaves(self.replace, (args, kwargs or {}))
        result = (IN_PYTHON.get(func) or func)(*args, **kwargs)
        self._refuse_writes()
        return mark_rows(result) if func in _SIZES else result

    def _attribute(self, getter: Any, tensor: Tensor, *owner: Any) -> Any:
        """PyTorch reads these from C++ too, where an exception would end the process: nothing is refused here."""
        if isinstance(tensor, FakeTensor) or getter.__self__ in _KEEP_IDENTITY:
            result = getter(tensor, *owner)
        else:
            result = getter(self.replace(tensor), *owner)
        return mark_rows(result) if getter.__self__ is Tensor.shape else result

    def replace(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return plain_sizes(value)
        if isinstance(value, FakeTensor):
            if self._check is not None:
                self._check(value)
            return value
        known = self._stand_ins.get(id(value))
        if known is None:
            known = self._stand_ins[id(value)] = (value, self._make(value))
        if value.requires_grad and not torch.is_grad_enabled():
            _refuse_unseen_by_function()
        return known[1]

    def _refuse_writes(self) -> None:
        for real, stand_in in self._stand_ins.values():
            if stand_in._version:
                raise WrittenTo(real)

    def __enter__(self) -> Any:
        self._outer = getattr(_active, "mode", None)
        _active.mode = self
        _patch_function_apply()
        return super().__enter__()

    def __exit__(self, *error: Any) -> Any:
        _active.mode = self._outer
        _restore_function_apply()
        return super().__exit__(*error)


class WrittenTo(Exception):
    """The step writes in place on a tensor that it closes over."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.tensor = tensor


_plain_apply = Function.__dict__["apply"]
_patches = 0
_patch_lock = threading.Lock()


def _apply_on_stand_ins(cls: Any, *args: Any, **kwargs: Any) -> Any:
    """`Function.apply` is no torch function: the tensors it is given must be replaced here, or gradients are lost."""
    mode = getattr(_active, "mode", None)
    if mode is not None:
        args, kwargs = map_leaves(mode.replace, (args, kwargs))
    return _plain_apply.__func__(cls, *args, **kwargs)


def _patch_function_apply() -> None:
    global _patches
    with _patch_lock:
        _patches += 1
        Function.apply = classmethod(_apply_on_stand_ins)  # type: ignore[method-assign,assignment]


def _restore_function_apply() -> None:
    global _patches
    with _patch_lock:
        _patches -= 1
        if not _patches:
            Function.apply = _plain_apply  # type: ignore[method-assign]


def _refuse_unseen_by_function() -> None:
    """A real tensor inside the forward of an autograd function: it came past `Function.apply` as it was."""
    frame = sys._getframe(2)
    while frame is not None:
        kind = frame.f_locals.get("cls")
        if isinstance(kind, type) and issubclass(kind, Function):
            raise CaptureError(
                "a custom autograd function reads a trainable tensor that is not among its arguments, or its `apply` "
                "was stored in a variable: its gradient would be lost. Call it as MyFunction.apply(x, weight)."
            )
        frame = frame.f_back
