"""What a user wrote as a cell's option -> what the step uses, or an error that says the rule."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Activation", "find_activation", "read_clip", "read_keep_prob", "read_units"]

Activation = Callable[[Tensor], Tensor]


def _identity(value: Tensor) -> Tensor:
    return value


# The names of Keras, which TensorFlow 1.15's cells accept; the functions are picklable by reference.
_ACTIVATIONS: dict[str, Activation] = {
    "elu": F.elu,
    "exponential": torch.exp,
    "gelu": F.gelu,
    "linear": _identity,
    "relu": torch.relu,
    "selu": F.selu,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "tanh": torch.tanh,
}


def find_activation(given: Activation | str | None, default: str) -> Activation:
    """A callable as it is, a name by the table, None as the cell's default."""
    if callable(given):
        return given
    name = default if given is None else given
    if name not in _ACTIVATIONS:
        raise ValueError(
            f"activation must be a callable or one of {', '.join(sorted(_ACTIVATIONS))}; got {given!r}. "
            f"Pass the function itself, for example activation=torch.nn.functional.mish."
        )
    return _ACTIVATIONS[name]


def read_units(name: str, given: int) -> int:
    if not isinstance(given, int) or isinstance(given, bool) or given < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {given!r}.")
    return given


def read_clip(name: str, given: float | None) -> float | None:
    """A bound above 0, or None. (0: TensorFlow's LSTMCell clips all to 0, its block cells nothing.)"""
    if given is not None and not given > 0:
        raise ValueError(f"{name} must be above 0, got {given!r}. To clip nothing pass {name}=None.")
    return given


def read_keep_prob(name: str, given: float) -> float:
    if not 0.0 <= given <= 1.0:
        raise ValueError(f"{name} must be between 0 and 1, got {given!r}. It is the probability to keep a value.")
    return float(given)
