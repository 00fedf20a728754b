"""States of any cell: tuples, named tuples, lists and dicts of tensors <-> their tensors."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

__all__ = ["map_tensors", "tensors_in"]


def tensors_in(nested: Any) -> Iterator[Tensor]:
    if isinstance(nested, Tensor):
        yield nested
    else:
        for part in nested.values() if isinstance(nested, dict) else nested:
            yield from tensors_in(part)


def map_tensors(function: Callable[..., Tensor], nested: Any, *others: Any) -> Any:
    """The same structure, with function(tensor, ...) of the tensors at the same place in each."""
    if isinstance(nested, Tensor):
        return function(nested, *others)
    if isinstance(nested, dict):
        return {key: map_tensors(function, part, *(other[key] for other in others)) for key, part in nested.items()}
    parts = [map_tensors(function, *same_place) for same_place in zip(nested, *others)]
    return type(nested)(*parts) if hasattr(nested, "_fields") else type(nested)(parts)
