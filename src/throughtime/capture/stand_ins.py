"""Every real tensor that the step touches -> a shape in its place, seen before anything is computed with it.

A cell closes over tensors wherever it likes: parameters, buffers, globals, a closure. `StandIns` watches each call of a
torch function, puts a stand-in where a real tensor is passed, and remembers which tensor it stands for.
"""

import sys
import threading
from collections.abc import Callable, Container
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.autograd import Function
from torch.overrides import TorchFunctionMode

from throughtime._errors import CaptureError
from throughtime._nested import map_leaves
from throughtime.capture.formulas import IN_PYTHON
from throughtime.capture.rowcount import is_row_count, mark_rows, plain_sizes
from throughtime.capture.shapes import AS_ON_CPU, is_shape

__all__ = ["StandIns"]

MOST_CALLS = 10_000
_SIZES: set[Any] = {Tensor.size, Tensor.numel, Tensor.nelement, torch.numel}
_KEEP_IDENTITY = {Tensor.is_leaf, Tensor.requires_grad, Tensor.grad, Tensor.dtype, Tensor.device, Tensor.shape}
_active = threading.local()


class StandIns(TorchFunctionMode):
    """While active: torch functions see `make(tensor)` instead of a real tensor; `check` sees every shape.

    closed_over: ids of tensors that the cell holds; one of them may be on PyTorch's meta device itself.
    """

    def __init__(
        self,
        make: Callable[[Tensor], Tensor],
        check: Callable[[Tensor], None] | None = None,
        closed_over: Container[int] = (),
    ) -> None:
        super().__init__()
        self._make = make
        self._closed_over = closed_over
        self.as_on_cpu = True
        """Whether the step is told so of its tensors; PyTorch's own code, which a backward pass runs, must not be."""
        self._check = check
        self._stand_ins: dict[int, tuple[Tensor, Tensor]] = {}
        self._calls = 0
        self.numbers: list[float] = []
        """Those that torch functions were given, in order, but for the number of rows."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") == "__get__":
            return self._attribute(func, *args)
        args, kwargs = map_leaves(self.replace, (args, kwargs or {}))
        if getattr(func, "__name__", "") == "__set__":
            self._refuse_assignment(func, args[0])
        if func is Tensor.__getitem__ or func is Tensor.__setitem__:
            args = (args[0], _with_tensors(args[1]), *args[2:])
        if func is Tensor.__getitem__:
            _refuse_single_row(*args)
        result = (IN_PYTHON.get(func) or func)(*args, **kwargs)
        self._refuse_long_steps(result)
        return mark_rows(result) if func in _SIZES else result

    def _attribute(self, getter: Any, tensor: Tensor, *owner: Any) -> Any:
        """PyTorch reads some of these from C++, where an exception ends the process: only `.shape` may be refused."""
        if self.as_on_cpu and getter.__self__ in AS_ON_CPU:
            return AS_ON_CPU[getter.__self__]
        if getter.__self__ is Tensor.shape and is_shape(tensor) and self._check is not None:
            self._check(tensor)
        if is_shape(tensor) or getter.__self__ in _KEEP_IDENTITY:
            result = getter(tensor, *owner)
        else:
            result = getter(self.replace(tensor), *owner)
        return mark_rows(result) if getter.__self__ is Tensor.shape else result

    def replace(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            if type(value) is float or (type(value) is int and not is_row_count(value)):
                self.numbers.append(value)
            return plain_sizes(value)
        if (is_shape(value) and id(value) not in self._closed_over) or is_functorch_wrapped_tensor(value):
            if self._check is not None:
                self._check(value)
            return value
        known = self._stand_ins.get(id(value))
        if known is None:
            with torch._C.DisableTorchFunction():
                known = self._stand_ins[id(value)] = (value, self._make(value))
        if value.requires_grad and not torch.is_grad_enabled():
            _refuse_unseen_by_function()
        return known[1]

    def _refuse_long_steps(self, result: Any) -> None:
        """Before the loop over a million rows is run."""
        self._calls += len(result) if isinstance(result, (tuple, list)) else 1
        if self._calls > MOST_CALLS:
            raise CaptureError(
                f"one step makes more than {MOST_CALLS} tensors; if it loops over the rows of the batch, or over time, "
                "write it for all rows at once and one time step."
            )

    def _refuse_assignment(self, setter: Any, tensor: Tensor) -> None:
        if any(tensor is stand_in for _, stand_in in self._stand_ins.values()):
            raise CaptureError(
                f"the step assigns .{setter.__self__.__name__} of a tensor that it closes over, but a step is a "
                "function of its input and state. Make it part of the state."
            )

    def __enter__(self) -> Any:
        self._outer = getattr(_active, "mode", None)
        _active.mode = self
        _patch_function_apply()
        return super().__enter__()

    def __exit__(self, *error: Any) -> Any:
        _active.mode = self._outer
        _restore_function_apply()
        return super().__exit__(*error)


def _with_tensors(index: Any) -> Any:
    """PyTorch would put a list of places where the indexed tensor is, and a shape has no numbers."""
    if isinstance(index, tuple):
        return tuple(map(_with_tensors, index))
    if isinstance(index, (list, range)) and all(isinstance(place, int) for place in index):
        return torch.tensor(list(index))
    return torch.from_numpy(index) if isinstance(index, np.ndarray) else index


def _refuse_single_row(x: Tensor, index: Any) -> None:
    first = index[0] if isinstance(index, tuple) and index else index
    if x.dim() and isinstance(first, int) and not isinstance(first, bool) and is_row_count(x.shape[0]):
        raise CaptureError(
            f"the step takes row {first} out of the batch, but a row must not depend on its place among the others. "
            "Write it for all rows at once."
        )


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
