"""A cell -> the attribute names that its code may read. What none of them names cannot change a trace.

A step that is a method of a model, or a function that closes over one, can reach everything the model holds: a trainer,
its counters, the data. Most of that it never reads, and a counter that moves must not ask for a new trace. Names are
gathered from the code that the step may run, through the objects that those names lead to, until nothing is added.
Code that reads attributes by computed names (`getattr(self, name)`, `self.children()`) may read any of its own class.
"""

import dis
import types
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

from torch import Tensor, nn

from throughtime.capture.reach import (
    LONGEST_CONTAINER,
    MOST_OBJECTS,
    PLAIN,
    is_closed,
    is_outside,
    names_in,
    own_attributes,
)

__all__ = ["Mentions", "find_mentions"]

_COMPUTED = frozenset(
    {"vars", "__dict__", "_modules", "_parameters", "_buffers", "attrgetter", "eval", "exec", "state_dict"}
    | {f"{prefix}{kind}" for prefix in ("", "named_") for kind in ("children", "modules", "parameters", "buffers")}
)
_NOT_IN_A_STEP = frozenset(
    {"__init__", "__new__", "__init_subclass__", "__post_init__", "__class_getitem__", "__repr__", "__str__"}
    | {"__dir__", "__del__", "__copy__", "__deepcopy__", "__getstate__", "__setstate__", "__reduce__"}
    | {"__reduce_ex__", "__setattr__", "__delattr__"}
)
_PUT_TOGETHER = frozenset({"FORMAT_VALUE", "FORMAT_SIMPLE", "FORMAT_WITH_SPEC", "BUILD_STRING", "BINARY_OP"})
_IN_ANY_STEP = frozenset({"forward", "training"})


@dataclass(frozen=True)
class Mentions:
    """names: of attributes. open_classes: those that read their own attributes by computed names; `object` for all."""

    names: frozenset[str]
    open_classes: frozenset[type]
    globals_of: dict[Hashable, list[tuple[dict[str, Any], str, Any]]] = field(
        default_factory=dict, repr=False, compare=False
    )
    """Room for the caller: what a function reads of its module."""

    def all_of(self, kind: type) -> bool:
        """Whether any attribute of an object of this class may be read."""
        return is_outside(kind) or not self.open_classes.isdisjoint(kind.__mro__)


def find_mentions(cell: Any) -> Mentions:
    """Names only grow, and each round adds at least one, so the fixed point is reached."""
    search = _Search(_home_of(cell))
    while True:
        before = (len(search.names), len(search.open_classes))
        search.walk(cell)
        if before == (len(search.names), len(search.open_classes)):
            return search.found()


class _Search:
    def __init__(self, home: str) -> None:
        self.home = home
        self.names = set(_IN_ANY_STEP)
        self.open_classes: set[type] = set()
        self._codes: set[types.CodeType] = set()

    def found(self) -> Mentions:
        return Mentions(frozenset(self.names), frozenset(self.open_classes))

    def walk(self, cell: Any) -> None:
        """Everything that the names known so far lead to."""
        mentions, waiting = self.found(), [cell]
        seen: set[int] = set()
        alive: list[Any] = []
        while waiting and len(seen) < MOST_OBJECTS:
            value = waiting.pop()
            if id(value) in seen or isinstance(value, (*PLAIN, Tensor, types.ModuleType)):
                continue
            seen.add(id(value))
            alive.append(value)  # an id is that of another object once this one is gone
            waiting.extend(self._parts(value, mentions))

    def _parts(self, value: Any, mentions: Mentions) -> Iterator[Any]:
        if isinstance(value, (dict, list, tuple, set, frozenset)):
            if len(value) <= LONGEST_CONTAINER:
                yield from list(value.values() if isinstance(value, dict) else value)
        elif isinstance(value, types.FunctionType):
            yield from self._of_function(value, None)
        elif isinstance(value, types.MethodType):
            yield from (value.__self__, value.__func__)
        elif isinstance(value, partial):
            yield from (value.func, value.args, value.keywords)
        elif isinstance(value, type):
            yield from self._of_class(value, None)
        else:
            yield from self._of_object(value, mentions)

    def _of_object(self, value: Any, mentions: Mentions) -> Iterator[Any]:
        kind = type(value)
        if is_closed(kind) and not isinstance(value, nn.Module):
            return
        yield from self._of_class(kind, mentions)
        every = mentions.all_of(kind)
        own = own_attributes(value)
        held = {**own, **own["_modules"]} if isinstance(value, nn.Module) else own
        yield from (part for name, part in list(held.items()) if every or name in mentions.names)

    def _of_class(self, kind: type, mentions: Mentions | None) -> Iterator[Any]:
        """Its methods by the names known so far (all, for a class that the step itself names)."""
        for parent in kind.__mro__:
            if is_outside(parent):
                continue
            for name, member in list(vars(parent).items()):
                if name in _NOT_IN_A_STEP or (mentions is not None and not _may_run(name, mentions)):
                    continue
                plain = getattr(member, "__func__", getattr(member, "fget", member))
                if isinstance(plain, types.FunctionType):
                    yield from self._of_function(plain, parent)
                elif mentions is not None and not isinstance(plain, type):
                    yield plain

    def _of_function(self, function: types.FunctionType, owner: type | None) -> Iterator[Any]:
        if is_outside(function):
            return
        code = function.__code__
        self._read(function, owner)
        yield from (function.__defaults__, function.__kwdefaults__)
        yield from map(_contents, function.__closure__ or ())
        named = names_in(code)
        for name in named & function.__globals__.keys():
            value = function.__globals__[name]
            if isinstance(value, types.ModuleType):
                yield from (vars(value)[n] for n in named & vars(value).keys())
            else:
                yield value

    def _read(self, function: types.FunctionType, owner: type | None) -> None:
        code = function.__code__
        if code in self._codes:
            return
        self._codes.add(code)
        self.names |= names_in(code)
        self.names.update(filter(str.isidentifier, _strings_in(code)))
        if _reads_computed_names(code):
            if owner is not None:
                self.open_classes.add(owner)
            elif _package(function) == self.home:
                self.open_classes.add(object)


def _may_run(name: str, mentions: Mentions) -> bool:
    return name in mentions.names or (name.startswith("__") and name.endswith("__"))


def _home_of(cell: Any) -> str:
    """The package that the step comes from."""
    thing = cell.func if isinstance(cell, partial) else cell
    return _package(thing if isinstance(thing, (types.FunctionType, types.MethodType)) else type(thing))


def _package(thing: Any) -> str:
    return (getattr(thing, "__module__", None) or "").split(".")[0]


@cache
def _strings_in(code: types.CodeType) -> frozenset[str]:
    """Every literal string of the code, and of code inside it: `getattr(self, "gain")` names an attribute so."""
    found: set[str] = set()
    for const in code.co_consts:
        for part in const if isinstance(const, tuple) else (const,):
            if isinstance(part, str):
                found.add(part)
            elif isinstance(part, types.CodeType):
                found |= _strings_in(part)
    return frozenset(found)


@cache
def _reads_computed_names(code: types.CodeType) -> bool:
    names = names_in(code)
    if not names.isdisjoint(_COMPUTED):
        return True
    if names.isdisjoint({"getattr", "hasattr", "setattr"}):
        return False
    inner = (const for const in code.co_consts if isinstance(const, types.CodeType))
    return _computes_a_name(code) or any(map(_reads_computed_names, inner))


def _computes_a_name(code: types.CodeType) -> bool:
    """Whether some `getattr` is called with anything but a literal name."""
    pending = literal = False
    for instruction in dis.get_instructions(code):
        operation, argument = instruction.opname, instruction.argval
        if operation.startswith("LOAD_") and argument in ("getattr", "hasattr", "setattr"):
            pending, literal = True, False
        elif pending and operation in _PUT_TOGETHER:
            return True
        elif pending and operation == "LOAD_CONST":
            literal = literal or isinstance(argument, str)
        elif pending and operation.startswith("CALL"):
            if not literal:
                return True
            pending = False
    return False


def _contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a variable that is not bound yet
        return None
