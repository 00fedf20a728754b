"""A cell and what it is called with -> a key: calls with equal keys may use one trace. Computed at every call.

What a trace depends on besides the numbers in tensors: training flags; the Python numbers, strings and functions that
the cell can reach; shape, dtype and `requires_grad` of its tensors; the kind of its inputs and state; autocast.
"""

import types
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from throughtime._nested import Nested, leaves
from throughtime.capture.reach import is_closed, names_in
from throughtime.capture.rules.making import LARGEST_TABLE

__all__ = ["signature"]

_SCALARS = frozenset((int, float, bool, str, complex, bytes, type(None), torch.dtype, torch.device))
_CALLABLE = (type, types.BuiltinFunctionType)
_BOOKKEEPING = frozenset(nn.Module().__dict__) - {"training"}
_globals_of: WeakKeyDictionary[Any, list[tuple[dict[str, Any], str]]] = WeakKeyDictionary()


def signature(cell: Callable[..., Any], xs: Nested, state: Nested, row_consts: Nested = ()) -> Hashable:
    """Arguments as for `trace_step`."""
    words: list[Hashable] = [_autocast_dtype("cpu"), _autocast_dtype("cuda")]
    for nested in (xs, state, row_consts):
        _add_kinds(nested, words)
    _Walk(words).visit(cell)
    return tuple(words)


def _autocast_dtype(device: str) -> torch.dtype | None:
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def _add_kinds(nested: Nested, words: list[Hashable]) -> None:
    """Structure and leaves, without the number of rows."""
    if isinstance(nested, Tensor):
        words.append((nested.shape[1:], nested.dtype, nested.requires_grad, nested.device))
        return
    words.append(nested.__class__)
    if isinstance(nested, dict):
        words.extend(nested)
        nested = tuple(nested.values())
    parts = nested if isinstance(nested, (tuple, list)) else leaves(nested)
    for part in parts:
        if part is not nested:
            _add_kinds(part, words)


class _Walk:
    """Adds the words of everything reachable, each object once."""

    def __init__(self, words: list[Hashable]) -> None:
        self.words = words
        self._seen: set[int] = set()

    def visit(self, value: Any) -> None:
        kind = value.__class__
        if kind in _SCALARS:
            self.words.append(value)
        elif isinstance(value, Tensor):
            self.words.append((value.shape, value.dtype, value.requires_grad))
        elif isinstance(value, _CALLABLE):
            self.words.append(value)
        elif isinstance(value, (np.ndarray, np.generic)):
            self.words.append(_numbers(value))
        elif id(value) in self._seen:
            self.words.append("again")
        else:
            self._seen.add(id(value))
            self.words.append(kind)
            self._visit_parts(value)

    def _visit_parts(self, value: Any) -> None:
        if isinstance(value, nn.Module):
            self._visit_module(value)
        elif isinstance(value, dict):
            self.words.extend(map(_key_word, value))
            self._visit_all(value.values())
        elif isinstance(value, (tuple, list)):
            self._visit_all(value)
        elif isinstance(value, types.FunctionType):
            self._visit_function(value)
        elif isinstance(value, types.MethodType):
            self._visit_all((value.__self__, value.__func__))
        elif isinstance(value, partial):
            self._visit_all((value.func, value.args, value.keywords))
        elif hasattr(value, "__dict__") and not isinstance(value, types.ModuleType) and not is_closed(type(value)):
            self._visit_attributes(value.__dict__)
            self._visit_class(type(value))

    def _visit_all(self, values: Any) -> None:
        for value in values:
            self.visit(value)

    def _visit_module(self, module: nn.Module) -> None:
        own = module.__dict__
        for part in ("_parameters", "_buffers"):
            for tensor in own[part].values():
                self.words.append(None if tensor is None else (tensor.shape, tensor.dtype, tensor.requires_grad))
        self._visit_attributes(own)
        for child in own["_modules"].values():
            self.visit(child)
        self._visit_class(type(module))

    def _visit_attributes(self, own: dict[str, Any]) -> None:
        for name, value in own.items():
            if value.__class__ in _SCALARS:
                self.words.append((name, value))
            elif name not in _BOOKKEEPING:
                self.words.append(name)
                self.visit(value)

    def _visit_function(self, function: types.FunctionType) -> None:
        self.words.append(function.__code__)
        if is_closed(function):
            return
        for cell in function.__closure__ or ():
            self.visit(_contents(cell))
        self._visit_all((function.__defaults__, function.__kwdefaults__))
        self._visit_globals(function, [function])

    def _visit_class(self, kind: type) -> None:
        self._visit_globals(kind, _methods(kind))

    def _visit_globals(self, owner: Any, functions: list[types.FunctionType]) -> None:
        if owner not in _globals_of:
            _globals_of[owner] = _globals_read_by(functions)
        for namespace, name in _globals_of[owner]:
            self.visit(namespace.get(name))


def _methods(kind: type) -> list[types.FunctionType]:
    members = [m for parent in kind.__mro__ if not is_closed(parent) for m in vars(parent).values()]
    plain = [getattr(m, "__func__", getattr(m, "fget", m)) for m in members]
    return [function for function in plain if isinstance(function, types.FunctionType)]


def _globals_read_by(functions: list[types.FunctionType]) -> list[tuple[dict[str, Any], str]]:
    """The global numbers, tensors and objects that these functions, and global functions that they call, name."""
    found: dict[tuple[int, str], tuple[dict[str, Any], str]] = {}
    waiting, seen = list(functions), set()
    while waiting:
        function = waiting.pop()
        if function in seen or is_closed(function):
            continue
        seen.add(function)
        for name in sorted(names_in(function.__code__) & function.__globals__.keys()):
            value = function.__globals__[name]
            if isinstance(value, types.FunctionType):
                waiting.append(value)
            elif not name.startswith("__") and _may_matter(value):
                found[id(function.__globals__), name] = (function.__globals__, name)
    return list(found.values())


def _may_matter(value: Any) -> bool:
    """Tables of functions and names say nothing that the attributes which chose among them do not say."""
    if isinstance(value, (dict, list, tuple, set, frozenset)):
        return any(map(_may_matter, value.values() if isinstance(value, dict) else value))
    if isinstance(value, (int, float, complex, bool, Tensor, nn.Module, np.ndarray, np.generic)):
        return True
    return not isinstance(value, (types.FunctionType, types.ModuleType, *_CALLABLE)) and not is_closed(type(value))


def _numbers(array: Any) -> Hashable:
    """A step may make a table of them; one of more numbers than a table may have is known by its identity."""
    return (array.shape, array.dtype.str, array.tobytes() if array.size <= LARGEST_TABLE else id(array))


def _key_word(key: Any) -> Hashable:
    return key if key.__class__ in _SCALARS else type(key)


def _contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None
