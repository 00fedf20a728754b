"""Cells -> what was made for them. Found again by the same cell, forgotten with it, bounded, for all threads.

A cell is known by what it is made of, so that one defined anew at each call is known again: a function by its code and
the objects it closes over, a bound method by its object, a `partial` by its parts. Numbers, strings and tensors are no
part of that: they may differ from call to call, and whoever asks compares them itself. A wrapper that is made anew at
each call says what it is made of by a method `made_of`.
"""

import os
import threading
import types
import weakref
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np
from torch import Tensor

__all__ = ["Cache", "Entry"]

MOST_CELLS = 256
MOST_OF_A_CELL = 32

LONGEST_CONTAINER = 64

_PASSING = (int, float, complex, str, bytes, type(None), np.generic, Tensor)
Made = TypeVar("Made")


@dataclass
class Entry(Generic[Made]):
    """Of one cell: what was made for it, by key.

    mentions: of its code. misses: how often something was made. told: what its user was told.
    """

    made: dict[Hashable, Made] = field(default_factory=dict)
    mentions: Any = None
    misses: int = 0
    told: set[str] = field(default_factory=set)
    watched: list[Any] = field(default_factory=list)
    """Weak references to the parts of the cell; a part that cannot have one is held itself."""

    def get(self, key: Hashable) -> Made | None:
        """What was used last stands last."""
        found = self.made.pop(key, None)
        if found is not None:
            self.made[key] = found
        return found

    def put(self, key: Hashable, value: Made) -> None:
        """What was not used for the longest goes."""
        self.made.pop(key, None)
        self.made[key] = value
        _shorten(self.made, MOST_OF_A_CELL)


class Cache(Generic[Made]):
    """Entries by cell. `lock` is held while one is used; a fork waits for it, and the child has a lock of its own."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.misses = 0
        self._entries: dict[Hashable, Entry[Made]] = {}
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(
                before=lambda: self.lock.acquire(),
                after_in_parent=lambda: self.lock.release(),
                after_in_child=lambda: setattr(self, "lock", threading.RLock()),
            )

    def __len__(self) -> int:
        return len(self._entries)

    def entry(self, cell: Any) -> Entry[Made]:
        """The cell's own, new if there is none. It goes when a part of the cell goes."""
        parts = _Parts()
        parts.add(cell)
        key = tuple(parts.words)
        entry = self._entries.pop(key, None)
        if entry is None:
            entry = Entry(watched=[_watch(part, partial(self._forget, key)) for part in parts.objects])
        self._entries[key] = entry
        _shorten(self._entries, MOST_CELLS)
        return entry

    def _forget(self, key: Hashable, _: Any) -> None:
        self._entries.pop(key, None)


class _Parts:
    """What a cell is made of: words to know it by, and the objects that the words stand for."""

    def __init__(self) -> None:
        self.words: list[Hashable] = []
        self.objects: list[Any] = []
        self._seen: dict[int, int] = {}

    def add(self, value: Any) -> None:
        if isinstance(value, _PASSING):
            self.words.append(type(value))
        elif id(value) in self._seen:
            self.words.append(self._seen[id(value)])
        else:
            self._seen[id(value)] = len(self._seen)
            self._add_new(value)

    def _add_new(self, value: Any) -> None:
        if isinstance(value, types.FunctionType):
            self.words += ["function", value.__code__, id(value.__globals__)]
            self._add_all([*map(_contents, value.__closure__ or ()), value.__defaults__, value.__kwdefaults__])
        elif isinstance(value, types.MethodType):
            self.words.append("method")
            self._add_all((value.__self__, value.__func__))
        elif isinstance(value, partial):
            self.words.append("partial")
            self._add_all((value.func, value.args, value.keywords))
        elif type(value) in (tuple, list, dict) and len(value) <= LONGEST_CONTAINER:
            self.words += [type(value), *(value if type(value) is dict else [len(value)])]
            self._add_all(value.values() if type(value) is dict else value)
        elif callable(getattr(type(value), "made_of", None)):
            self.words.append(type(value))
            self._add_all(value.made_of())
        else:
            self.words.append((type(value), id(value)))
            self.objects.append(value)

    def _add_all(self, values: Iterable[Any]) -> None:
        for value in values:
            self.add(value)


def _contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a variable that is not bound yet
        return None


def _watch(part: Any, gone: Callable[[Any], None]) -> Any:
    try:
        return weakref.ref(part, gone)
    except TypeError:
        return part


def _shorten(entries: dict, most: int) -> None:
    """Entries stand in the order of their last use."""
    while len(entries) > most:
        del entries[next(iter(entries))]
