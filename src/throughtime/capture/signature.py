"""A cell and what it is called with -> a key: calls with equal keys may use one trace. Computed at every call.

What a trace depends on besides the numbers in tensors: training flags; the Python numbers, strings and functions that
the cell can reach and its code names; shape, dtype, device and `requires_grad` of its tensors, and which of them are
one; the kind of its inputs and state; autocast; hooks.
"""

import types
from collections import deque
from collections.abc import Callable, Hashable
from contextvars import ContextVar
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from throughtime._errors import CaptureError
from throughtime._nested import Nested, leaves
from throughtime.capture.mentions import Mentions
from throughtime.capture.reach import is_closed, is_outside, names_in, own_attributes
from throughtime.capture.rules.making import LARGEST_TABLE

__all__ = ["check_hooks", "signature"]

_PLAIN = frozenset((str, bytes, type(None), torch.dtype, torch.device))
_NUMBERS = frozenset((int, float, bool, complex))
_NONE = object()
_BOOKKEEPING = frozenset(nn.Module().__dict__) - {"training"}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_devices = ("cpu", "cuda")


def signature(
    cell: Callable[..., Any], xs: Nested, state: Nested, row_consts: Nested = (), mentions: Mentions | None = None
) -> tuple[Hashable, ...]:
    """Arguments as for `trace_step`; without `mentions` everything counts that the cell can reach."""
    words: list[Hashable] = [torch.get_default_dtype(), *map(_autocast_dtype, _devices)]
    for nested in (xs, row_consts):
        _add_kinds(nested, words, True)
    _add_kinds(state, words, False)
    _Walk(words, mentions).visit(cell)
    return tuple(words)


def check_hooks(cell: Callable[..., Any], mentions: Mentions) -> None:
    """Raises CaptureError for a module with hooks: what they do besides computing would happen once, not every step."""
    walk = _Walk([], mentions)
    walk.visit(cell)
    if walk.hooked is not None:
        who = "the cell" if walk.hooked is cell else f"the {type(walk.hooked).__name__} in the cell"
        raise CaptureError(f"{who} has hooks, which run at every step.")


def _has_hooks(own: dict[str, Any]) -> bool:
    return any(own.get(name) for name in _HOOKS)


def _autocast_dtype(device: str) -> torch.dtype | None:
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def _add_kinds(nested: Nested, words: list[Hashable], with_gradient: bool) -> None:
    """Structure and leaves, without the number of rows. A floating state always has a gradient."""
    if isinstance(nested, Tensor):
        gradient = with_gradient and nested.requires_grad
        words.append((nested.shape[1:], nested.dtype, gradient, nested.device))
        return
    words.append(nested.__class__)
    if isinstance(nested, dict):
        words.extend(nested)
        nested = tuple(nested.values())
    parts = nested if isinstance(nested, (tuple, list)) else leaves(nested)
    words.append(len(parts))
    for part in parts:
        if part is not nested:
            _add_kinds(part, words, with_gradient)


class _Walk:
    """Adds the words of everything reachable, each object once."""

    def __init__(self, words: list[Hashable], mentions: Mentions | None) -> None:
        self.words = words
        self.mentions = mentions
        self.names: frozenset[str] | None = None if mentions is None else mentions.names
        self.hooked: nn.Module | None = None
        self._seen: dict[int, int] = {}

    def visit(self, value: Any) -> None:
        kind = value.__class__
        if kind in _PLAIN:
            self.words.append(value)
        elif kind in _NUMBERS:
            self.words.append(_number(value))
        elif isinstance(value, Tensor):
            self._add_tensor(value)
        elif isinstance(value, type):
            self._visit_class(value)
        elif isinstance(value, (types.BuiltinFunctionType, types.ModuleType)):
            self.words.append(value)
        elif isinstance(value, (np.ndarray, np.generic)):
            self.words.append(_numbers(value))
        elif isinstance(value, ContextVar):
            self.visit(value.get(None))
        elif (known := self._seen.get(id(value))) is not None:
            self.words.append(known)
        else:
            self._seen[id(value)] = len(self._seen)
            self.words.append(kind)
            self._visit_parts(value)

    def _add_tensor(self, tensor: Tensor) -> None:
        """With its place among all, so that two names of one tensor differ from two tensors."""
        place = self._seen.setdefault(id(tensor), len(self._seen))
        self.words.append((tensor.shape, tensor.dtype, tensor.requires_grad, tensor.device, place))

    def _visit_parts(self, value: Any) -> None:
        if isinstance(value, nn.Module):
            self._visit_module(value)
        elif isinstance(value, dict):
            self.words.extend(map(_key_word, value))
            self._visit_all(value.values())
        elif isinstance(value, (tuple, list, deque)):
            self.words.append(len(value))
            self._visit_all(value)
        elif isinstance(value, types.FunctionType):
            self._visit_function(value)
        elif isinstance(value, types.MethodType):
            self._visit_all((value.__self__, value.__func__))
        elif isinstance(value, partial):
            self._visit_all((value.func, value.args, value.keywords))
        elif not is_closed(type(value)):
            self._visit_attributes(own_attributes(value), self._names_for(type(value)))
            self._visit_class(type(value))

    def _visit_all(self, values: Any) -> None:
        for value in values:
            self.visit(value)

    def _names_for(self, kind: type) -> frozenset[str] | None:
        """The attributes that count; None: all."""
        return None if self.mentions is None or self.mentions.all_of(kind) else self.names

    def _visit_module(self, module: nn.Module) -> None:
        own = module.__dict__
        names = self._names_for(type(module))
        if _has_hooks(own):
            self.words.append("hooks")
            self.hooked = module
        for part in ("_parameters", "_buffers"):
            for name, tensor in own[part].items():
                if tensor is None:
                    self.words.append(None)
                elif names is None or name in names:
                    self._add_tensor(tensor)
        self._visit_attributes(own, names)
        for name, child in own["_modules"].items():
            if names is None or name in names:
                self.visit(child)
        self._visit_class(type(module))

    def _visit_attributes(self, own: dict[str, Any], names: frozenset[str] | None) -> None:
        for name, value in own.items():
            if name not in _BOOKKEEPING and (names is None or name in names):
                self.words.append(name)
                self.visit(value)

    def _visit_function(self, function: types.FunctionType) -> None:
        self.words.append(function.__code__)
        if is_closed(function):
            return
        for cell in function.__closure__ or ():
            self.visit(_contents(cell))
        self._visit_all((function.__defaults__, function.__kwdefaults__))
        self._visit_globals(function)

    def _visit_class(self, kind: type) -> None:
        """What the class itself holds: methods, and the attributes that its objects share."""
        self.words.append(kind)
        if _is_fixed(kind) or id(kind) in self._seen:
            return
        self._seen[id(kind)] = len(self._seen)
        names = self._names_for(kind)
        for parent in kind.__mro__:
            if not _is_fixed(parent):
                for name, member in list(vars(parent).items()):
                    self._visit_member(name, member, names is None or name in names)

    def _visit_member(self, name: str, member: Any, named: bool) -> None:
        """Python itself calls special methods; what else is special (annotations, say) computes nothing."""
        special = name.startswith("__")
        if named or special:
            plain = _behind(member)
            if isinstance(plain, types.FunctionType) or (named and not special):
                self.words.append(name)
                self.visit(plain)

    def _visit_globals(self, function: types.FunctionType) -> None:
        known = {} if self.mentions is None else self.mentions.globals_of
        key = function.__code__, id(function.__globals__)
        if key not in known:
            known[key] = _globals_read_by(function)
        for namespace, name, plain in known[key]:
            if (value := namespace.get(name)) is not plain:
                self.visit(value)


def _is_fixed(thing: type | types.FunctionType) -> bool:
    """A class or a function of a library's, this one included, is what it was."""
    return is_closed(thing) or (getattr(thing, "__module__", None) or "").startswith("throughtime.")


def _behind(member: Any) -> Any:
    """The function of a static method, a class method or a property."""
    for name in ("__func__", "fget", "func"):
        member = getattr(member, name, member)
    return member


def _globals_read_by(function: types.FunctionType) -> list[tuple[dict[str, Any], str, Any]]:
    """The globals that a function names: where each is, its name, and a value that says nothing (else `_NONE`).

    What says nothing, a function of PyTorch's say, stands for itself as long as the name is bound to it.
    """
    found: dict[tuple[int, str], tuple[dict[str, Any], str, Any]] = {}
    _add_named(function.__globals__, names_in(function.__code__), found)
    return list(found.values())


def _add_named(namespace: dict[str, Any], names: frozenset[str], found: dict) -> None:
    """Of a namespace, and of the user's own modules that it names."""
    for name in sorted(names & namespace.keys()):
        if name.startswith("__") or (id(namespace), name) in found:
            continue
        value = namespace[name]
        found[id(namespace), name] = (namespace, name, _NONE if _may_matter(value) else value)
        if isinstance(value, types.ModuleType) and not is_outside(value):
            _add_named(vars(value), names, found)


def _may_matter(value: Any) -> bool:
    """Tables of functions and names say nothing that the attributes which chose among them do not say.

    A function of the user's may be defined anew, as in a notebook.
    """
    if isinstance(value, (dict, list, tuple, set, frozenset, deque)):
        return any(_may_matter(v) for v in (value.values() if isinstance(value, dict) else value) if not callable(v))
    if isinstance(value, (types.FunctionType, type)):
        return not _is_fixed(value)
    if isinstance(value, (int, float, complex, bool, Tensor, nn.Module, np.ndarray, np.generic, ContextVar)):
        return True
    return not isinstance(value, (types.ModuleType, types.BuiltinFunctionType)) and not is_closed(type(value))


def _number(value: complex) -> Hashable:
    """1, 1.0 and True are equal, and so are 0.0 and -0.0; a step tells them apart. NaN is not even equal to itself."""
    return (value.__class__, value) if value == value and value != 0 else (value.__class__, repr(value))


def _numbers(array: Any) -> Hashable:
    """A step may make a table of them; one of more numbers than a table may have is known by its identity."""
    return (array.shape, array.dtype.str, array.tobytes() if array.size <= LARGEST_TABLE else id(array))


def _key_word(key: Any) -> Hashable:
    return _number(key) if key.__class__ in _NUMBERS else key if key.__class__ in _PLAIN else type(key)


def _contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None
