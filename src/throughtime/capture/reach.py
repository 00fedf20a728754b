"""A cell -> everything it can reach, each with the path that leads to it and can be read again.

Breadth first, so that a tensor reached in two ways has the shorter path. A path goes through attributes, containers,
closures, `functools.partial`, bound methods, and those globals that the code of a reached function names.
"""

import argparse
import operator
import sys
import types
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

__all__ = [
    "LONGEST_CONTAINER",
    "MOST_OBJECTS",
    "PLAIN",
    "Route",
    "is_closed",
    "is_outside",
    "names_in",
    "own_attributes",
    "reachable",
    "tensors",
]

MOST_OBJECTS, LONGEST_CONTAINER = 20_000, 10_000
_CLOSED_TO_US = frozenset(sys.stdlib_module_names - {"__main__"}) | {"torch", "numpy", "pytest", "_pytest"}
_HOLDERS = (types.SimpleNamespace, argparse.Namespace)
PLAIN = (str, bytes, int, float, complex, bool, type(None), torch.dtype, torch.device, types.BuiltinFunctionType)


CELL = object()
"""The root of a path that starts at the cell: what outlives a call must not hold the cell."""


@dataclass(frozen=True, slots=True)
class Route:
    """A path from the cell, or from a function or a module's names; `read(cell)` follows it anew."""

    root: Any
    steps: tuple[tuple[Callable[[Any, Any], Any], Any], ...]
    path: str

    def to(self, read: Callable[[Any, Any], Any], key: Any, text: str) -> "Route":
        return Route(self.root, (*self.steps, (read, key)), self.path + text)

    def reader(self) -> Callable[[Any], Any]:
        if self.root is CELL and self.steps and all(read is getattr for read, _ in self.steps):
            return operator.attrgetter(".".join(key for _, key in self.steps))
        return self.read

    def read(self, cell: Any) -> Any:
        value = cell if self.root is CELL else self.root
        for read, key in self.steps:
            value = read(value, key)
        return value


def tensors(cell: Any) -> dict[int, Route]:
    """The way to each tensor, by `id`."""
    return {id(value): route for route, value in reachable(cell) if isinstance(value, Tensor)}


def reachable(cell: Any) -> Iterator[tuple[Route, Any]]:
    """Every object once, the cell first."""
    queue = deque([(Route(CELL, (), "cell"), cell)])
    seen: set[int] = set()
    alive: list[Any] = []
    while queue and len(seen) < MOST_OBJECTS:
        route, value = queue.popleft()
        if id(value) in seen or isinstance(value, PLAIN):
            continue
        seen.add(id(value))
        alive.append(value)  # an id is that of another object once this one is gone
        yield route, value
        if not isinstance(value, Tensor) and not _is_long(value):
            queue.extend(_children(route, value))


def _is_long(value: Any) -> bool:
    """A data set, not a part of a cell."""
    return isinstance(value, (list, tuple, dict)) and len(value) > LONGEST_CONTAINER


def _children(route: Route, value: Any) -> Iterator[tuple[Route, Any]]:
    if isinstance(value, (list, tuple)):
        return ((route.to(operator.getitem, i, f"[{i}]"), item) for i, item in enumerate(value))
    if isinstance(value, (dict, types.MappingProxyType)):
        return ((route.to(operator.getitem, k, f"[{k!r}]"), item) for k, item in list(value.items()))
    if isinstance(value, types.FunctionType):
        return _of_function(route, value)
    if isinstance(value, types.MethodType):
        return iter([(route.to(getattr, "__self__", ".__self__"), value.__self__), _function(value.__func__)])
    if isinstance(value, partial):
        parts = (("func", value.func), ("args", value.args), ("keywords", value.keywords))
        return ((route.to(getattr, name, f".{name}"), part) for name, part in parts)
    return _of_object(route, value)


def _of_object(route: Route, value: Any) -> Iterator[tuple[Route, Any]]:
    if isinstance(value, (type, types.ModuleType)) or (is_closed(type(value)) and not isinstance(value, nn.Module)):
        return
    for part in ("_parameters", "_buffers", "_modules") if isinstance(value, nn.Module) else ():
        for name, child in list(value.__dict__[part].items()):
            yield _member(route, name, part), child
    for name, child in list(own_attributes(value).items()):
        if name not in nn.Module.__dict__ and not _is_bookkeeping(value, name):
            yield route.to(getattr, name, f".{name}"), child
    yield from _of_class(route, value)


def own_attributes(value: Any) -> dict[str, Any]:
    """What the object itself holds, in its `__dict__` or in slots."""
    own = getattr(value, "__dict__", None)
    own = own if isinstance(own, dict) else {}
    slots = _slots_of(type(value))
    return {**own, **{name: getattr(value, name) for name in slots if hasattr(value, name)}} if slots else own


_slots: WeakKeyDictionary[type, tuple[str, ...]] = WeakKeyDictionary()


def _slots_of(kind: type) -> tuple[str, ...]:
    if kind not in _slots:
        declared = (vars(parent).get("__slots__", ()) for parent in kind.__mro__ if not is_closed(parent))
        names = (name for slots in declared for name in ((slots,) if isinstance(slots, str) else slots))
        _slots[kind] = tuple(name for name in names if name not in ("__dict__", "__weakref__"))
    return _slots[kind]


def _member(route: Route, name: str, part: str) -> Route:
    """A name such as "0" in a Sequential is no attribute that `attrgetter` could follow."""
    text = f"[{name}]" if name.isdigit() else f".{name}"
    if name.isidentifier():
        return route.to(getattr, name, text)
    return route.to(_registered, (part, name), text)


def _registered(module: nn.Module, key: tuple[str, str]) -> Any:
    return module.__dict__[key[0]][key[1]]


def _is_bookkeeping(value: Any, name: str) -> bool:
    return isinstance(value, nn.Module) and name in _MODULE_NAMES


_MODULE_NAMES = frozenset(nn.Module().__dict__)


def _of_class(route: Route, value: Any) -> Iterator[tuple[Route, Any]]:
    """Class attributes, and the functions of the class with what they name."""
    for kind in type(value).__mro__:
        if is_closed(kind):
            continue
        for name, child in list(vars(kind).items()):
            plain = getattr(child, "__func__", getattr(child, "fget", child))
            if isinstance(plain, types.FunctionType):
                yield _function(plain)
            elif isinstance(child, (Tensor, list, tuple, dict)):
                yield route.to(getattr, name, f".{name}"), child


def _function(function: types.FunctionType) -> tuple[Route, Any]:
    return Route(function, (), function.__qualname__), function


def _of_function(route: Route, function: types.FunctionType) -> Iterator[tuple[Route, Any]]:
    if is_outside(function):
        return
    for i, cell in enumerate(function.__closure__ or ()):
        if _filled(cell):
            yield route.to(_enclosed, i, f".<closure>.{function.__code__.co_freevars[i]}"), cell.cell_contents
    for name in ("__defaults__", "__kwdefaults__", "__wrapped__"):
        child = getattr(function, name, None)
        if child is not None:
            yield route.to(getattr, name, f".{name}"), child
    names = names_in(function.__code__)
    for name in sorted(names & function.__globals__.keys()):
        value = function.__globals__[name]
        here = Route(function.__globals__, ((operator.getitem, name),), f"{function.__module__}.{name}")
        if isinstance(value, types.ModuleType):
            yield from _of_module(here, value, names)
        elif not isinstance(value, type):
            yield here, value


def _of_module(route: Route, module: types.ModuleType, names: frozenset[str]) -> Iterator[tuple[Route, Any]]:
    if module.__name__.split(".")[0] in _CLOSED_TO_US:
        return
    for name in sorted(names & vars(module).keys()):
        value = vars(module)[name]
        if not isinstance(value, (type, types.ModuleType)):
            yield route.to(getattr, name, f".{name}"), value


def _filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is cell.cell_contents
    except ValueError:  # a variable that is not bound yet
        return False


def _enclosed(function: Any, i: int) -> Any:
    return function.__closure__[i].cell_contents


@cache
def names_in(code: types.CodeType) -> frozenset[str]:
    """Every global or attribute that the code, and code inside it, names."""
    nested = [names_in(c) for c in code.co_consts if isinstance(c, types.CodeType)]
    return frozenset(code.co_names).union(*nested)


def is_closed(thing: Any) -> bool:
    """Whether a class or function is of a library whose insides hold none of the user's tensors."""
    return (getattr(thing, "__module__", None) or "").split(".")[0] in _CLOSED_TO_US and thing not in _HOLDERS


def is_outside(thing: Any) -> bool:
    """Code that is not searched: of the libraries that are closed to us, and of this one but for its cells."""
    is_module = isinstance(thing, types.ModuleType)
    module = thing.__name__ if is_module else getattr(thing, "__module__", None) or ""
    ours = module.startswith("throughtime.") and not module.startswith("throughtime.cells.")
    return ours or (module.split(".")[0] in _CLOSED_TO_US if is_module else is_closed(thing))
