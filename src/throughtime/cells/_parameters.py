"""A table of names, shapes and initialisers -> a module's parameters, once the input size is known.

The machinery is PyTorch's own for lazy modules (torch.nn.modules.lazy): until the first call, or a `load_state_dict`,
a parameter is an `UninitializedParameter`; then it becomes an ordinary one, the same object.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedParameter, is_lazy
from torch.nn.utils.parametrize import is_parametrized

__all__ = ["Dense", "Initializer", "Layout", "SizedByInput", "affine", "check_input", "glorot_uniform", "ones", "zeros"]

Initializer = Callable[[Tensor], Any]
Layout = dict[str, tuple[tuple[int, ...], Initializer]]


def glorot_uniform(weight: Tensor) -> None:
    """In place, U(-a, a) with a = sqrt(6 / (fan_in + fan_out)); kernels are [..., in, out]. TensorFlow's default.

    Source: Glorot and Bengio 2010, equation 16.
    """
    *field, fan_in, fan_out = weight.shape if weight.dim() > 1 else (*weight.shape, *weight.shape)
    bound = math.sqrt(6.0 / (math.prod(field) * (fan_in + fan_out)))
    nn.init.uniform_(weight, -bound, bound)


def zeros(weight: Tensor) -> None:
    nn.init.zeros_(weight)


def ones(weight: Tensor) -> None:
    nn.init.ones_(weight)


class _Unsized(UninitializedParameter):
    """PyTorch's forgets its dtype and device when it is pickled."""

    def __reduce_ex__(self, proto: Any) -> Any:
        return type(self), (self.requires_grad, self.data.device, self.data.dtype)


class SizedByInput(LazyModuleMixin, nn.Module):
    """A module whose parameters are sized by `input_size`, given to `_declare` or found at the first call."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)  # type: ignore[misc]

    def layout(self, input_size: int) -> Layout:
        """The parameters of this module as a table: name -> (shape, initialiser)."""
        raise NotImplementedError(f"{type(self).__name__} must write layout(input_size) -> name: (shape, initialiser)")

    def reset_parameters(self) -> None:
        """Draw all parameters of this module anew; before the first call there is nothing to draw."""
        if self.has_uninitialized_params():
            return
        for name, (_, initialise) in self.layout(0).items():
            weight = getattr(self, name)
            fresh = torch.empty_like(weight)
            initialise(fresh)
            self._assign(name, fresh)

    def has_uninitialized_params(self) -> bool:
        return any(is_lazy(weight) for weight in self.parameters(recurse=False))

    def initialize_parameters(self, *args: Any, **kwargs: Any) -> None:
        """Called by PyTorch before the first forward, with its arguments."""
        if self.has_uninitialized_params():
            self._materialise(self._measure(*args, **kwargs))

    def extra_repr(self) -> str:
        def shape(weight: Tensor) -> str:
            return "[?]" if is_lazy(weight) else str(list(weight.shape))

        return ", ".join(f"{name} {shape(weight)}" for name, weight in self.named_parameters(recurse=False))

    def _declare(self, input_size: int | None, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        unsized: Any = _Unsized
        for name in self.layout(0):
            self.register_parameter(name, unsized(device=device, dtype=dtype))
        if input_size is not None:
            self._materialise(input_size)
            self._drop_first_call_hooks()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if not self.has_uninitialized_params():
            self._drop_first_call_hooks()

    def _drop_first_call_hooks(self) -> None:
        """PyTorch drops its hooks in the first call; a module that is sized before one has no use for them."""
        if hasattr(self, "_initialize_hook"):
            self._infer_parameters(self, ())  # type: ignore[misc]

    def _measure(self, inputs: Tensor, *_: Any, **__: Any) -> int:
        check_input(type(self).__name__, inputs)
        return inputs.shape[-1]

    @torch.no_grad()
    def _materialise(self, input_size: int) -> None:
        for name, (shape, _) in self.layout(input_size).items():
            weight = getattr(self, name)
            if is_lazy(weight):
                weight.materialize(shape)
        self.reset_parameters()

    @torch.no_grad()
    def _assign(self, name: str, value: Tensor) -> None:
        if is_parametrized(self, name):
            setattr(self, name, value)  # through the inverse of the parametrization
        else:
            getattr(self, name).copy_(value)

    def _replicate_for_data_parallel(self) -> Any:
        """PyTorch's refuses even when every parameter has found its size."""
        if self.has_uninitialized_params():
            return super()._replicate_for_data_parallel()  # type: ignore[misc]
        return nn.Module._replicate_for_data_parallel(self)


class Dense(SizedByInput):
    """`cat(columns, -1) @ kernel + bias`, with TensorFlow's names."""

    kernel: Tensor
    bias: Tensor | None

    def __init__(
        self,
        units: int,
        bias: Initializer | None = None,
        kernel: Initializer = glorot_uniform,
        *,
        name: str,
        input_size: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.units = units
        self.name = name
        self._kernel_initializer = kernel
        self._bias_initializer = bias
        self._declare(input_size, device, dtype)
        if bias is None:
            self.register_parameter("bias", None)

    def layout(self, input_size: int) -> Layout:
        table: Layout = {"kernel": ((input_size, self.units), self._kernel_initializer)}
        if self._bias_initializer is not None:
            table["bias"] = ((self.units,), self._bias_initializer)
        return table

    def forward(self, *columns: Tensor) -> Tensor:
        return affine(self.name, columns, self.kernel, self.bias)

    def _measure(self, *columns: Tensor) -> int:
        for column in columns:
            check_input(self.name, column)
        return sum(column.shape[-1] for column in columns)


def affine(name: str, columns: tuple[Tensor, ...], kernel: Tensor, bias: Tensor | None = None) -> Tensor:
    """`cat(columns, -1) @ kernel + bias`. The kernel is read by the caller once: a parametrization computes it."""
    for column in columns:
        check_input(name, column, kernel)
    if sum(column.shape[-1] for column in columns) != kernel.shape[0]:
        widths = " + ".join(str(column.shape[-1]) for column in columns)
        raise ValueError(
            f"{name}: inputs and state together must be {kernel.shape[0]} wide, as the kernel is high; got {widths}. "
            f"The first call, or input_size=, fixes the input size: make another cell for inputs of another width."
        )
    product = (columns[0] if len(columns) == 1 else torch.cat(columns, -1)) @ kernel
    return product if bias is None else product + bias


def check_input(name: str, inputs: Any, kernel: Tensor | None = None) -> None:
    """One floating-point tensor, of the kernel's dtype."""
    if not isinstance(inputs, Tensor):
        raise TypeError(f"{name}: a step's input is one tensor [batch, features], got a {type(inputs).__name__}.")
    if not (inputs.is_floating_point() or inputs.is_complex()):
        raise ValueError(
            f"{name}: inputs must be floating point, got {inputs.dtype}. "
            f"For token ids put an embedding in front: inputs = torch.nn.Embedding(vocabulary, size)(ids)."
        )
    if kernel is not None and inputs.dtype != kernel.dtype and not torch.is_autocast_enabled(inputs.device.type):
        raise TypeError(
            f"{name}: inputs and state must have the dtype of the parameters, {kernel.dtype}; got {inputs.dtype}. "
            f"Convert one of them: cell.to({inputs.dtype}) or inputs.to({kernel.dtype})."
        )
