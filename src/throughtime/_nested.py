"""Nested tensors -> flat leaves with paths, and back. The only file that knows torch's pytree.

A *nested* value is a tensor, or a tuple, named tuple, list or dict of nested values. A PackedSequence, though a named
tuple, is a leaf.
"""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

__all__ = [
    "Nested",
    "Structure",
    "flatten",
    "leaves",
    "leaves_as",
    "leaves_with_paths",
    "map_leaves",
    "restructure",
    "same_structure",
    "skeleton",
    "unflatten",
]

Nested = Any
Structure = pytree.TreeSpec
_, _LEAF = pytree.tree_flatten(None, is_leaf=lambda _: True)


def flatten(value: Nested) -> tuple[list[Any], Structure]:
    """The leaves from left to right, and what `unflatten` needs to put them back."""
    if isinstance(value, Tensor):
        return [value], _LEAF
    return pytree.tree_flatten(value, is_leaf=_is_packed)


def unflatten(structure: Structure, flat: Iterable[Any]) -> Nested:
    if structure is _LEAF:
        (leaf,) = flat
        return leaf
    return pytree.tree_unflatten(list(flat), structure)


def leaves(value: Nested) -> list[Any]:
    if isinstance(value, Tensor):
        return [value]
    if _is_flat(value):
        return list(value)
    return pytree.tree_leaves(value, is_leaf=_is_packed)


def leaves_as(value: Nested, like: Nested) -> list[Any]:
    """The leaves of `value` in the order of the leaves of `like`; they have the same structure.

    Two dicts of the same keys have the same structure, and each lists its leaves in its own order of insertion.
    """
    if isinstance(like, PackedSequence):
        return [value]
    if isinstance(like, (tuple, list)):
        return [leaf for part, part_like in zip(value, like, strict=True) for leaf in leaves_as(part, part_like)]
    if isinstance(like, dict):
        return [leaf for key in like for leaf in leaves_as(value[key], like[key])]
    return leaves(value)


def map_leaves(function: Callable[..., Any], value: Nested, *others: Nested) -> Nested:
    if isinstance(value, Tensor):
        return function(value, *others)
    if _is_flat(value) and all(_is_alike(other, value) for other in others):
        return _rebuilt(value, map(function, value, *others))
    return pytree.tree_map(function, value, *others, is_leaf=_is_packed)


def restructure(flat: Iterable[Any], like: Nested) -> Nested:
    """The leaves put together as those of `like` are."""
    return _rebuilt(like, flat) if _is_flat(like) else unflatten(flatten(like)[1], flat)


def leaves_with_paths(value: Nested, root: str) -> list[tuple[str, Any]]:
    """`[("state.layers[1].c", tensor), ...]`, for messages."""
    if isinstance(value, Tensor):
        return [(root, value)]
    if _is_flat(value):
        names = (
            (f".{name}" for name in value._fields)
            if hasattr(value, "_fields")
            else map("[{}]".format, range(len(value)))
        )
        return [(root + name, part) for name, part in zip(names, value)]
    pairs, _ = pytree.tree_flatten_with_path(value, is_leaf=_is_packed)
    return [(root + pytree.keystr(path), leaf) for path, leaf in pairs]


def skeleton(value: Nested) -> Any:
    """The structure without its types: a tuple, a named tuple and a list of two leaves are alike."""
    if isinstance(value, (Tensor, PackedSequence)):
        return "*"
    if isinstance(value, (tuple, list)):
        return ("sequence", *map(skeleton, value))
    if isinstance(value, dict):
        return ("dict", *((key, skeleton(value[key])) for key in sorted(value, key=repr)))
    return "*"


def same_structure(a: Nested, b: Nested) -> bool:
    return skeleton(a) == skeleton(b)


def _is_flat(value: Nested) -> bool:
    """A tuple, named tuple or list of tensors: nearly every state, and quicker to take apart here than by pytree."""
    plain = type(value) in (tuple, list) or (isinstance(value, tuple) and hasattr(value, "_fields"))
    return plain and not isinstance(value, PackedSequence) and all(isinstance(part, Tensor) for part in value)


def _is_alike(other: Nested, flat: Nested) -> bool:
    return type(other) is type(flat) and len(other) == len(flat) and _is_flat(other)


def _rebuilt(like: Nested, parts: Iterable[Any]) -> Nested:
    """A flat value of the kind of `like`."""
    return type(like)(*parts) if hasattr(like, "_fields") else type(like)(parts)


def _is_packed(value: Any) -> bool:
    return isinstance(value, PackedSequence)
