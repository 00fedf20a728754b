"""What a step changes on the cell itself: found by comparing before and after, and put back.

A step that only writes an attribute (a record of the last spike, say) still has a meaning as a function of input and
state, and is traced. A step that reads what the step before left there has a state of its own that the loop does not
know, and is refused.
"""

from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any

from torch import Tensor, nn

from throughtime._errors import CaptureError
from throughtime._nested import leaves
from throughtime.capture.reach import reachable

__all__ = ["Attributes", "Change"]

_ABSENT = object()
_NOT_HELD = (type, ModuleType, Tensor)


@dataclass(frozen=True, slots=True)
class Change:
    path: str
    before: Any
    after: Any


@dataclass(frozen=True, slots=True)
class _Holder:
    path: str
    target: Any
    """A dict, a list, or the `cell` of a closure."""
    before: Any


class Attributes:
    """Remembers the cell as it is now."""

    def __init__(self, cell: Any) -> None:
        self._holders: list[_Holder] = []
        for route, value in reachable(cell):
            self._remember(route.path, value)

    def _remember(self, path: str, value: Any) -> None:
        if isinstance(value, (dict, list)):
            self._holders.append(_Holder(path, value, value.copy()))
        elif isinstance(value, FunctionType):
            for name, cell in zip(value.__code__.co_freevars, value.__closure__ or ()):
                self._holders.append(_Holder(f"{path}.<closure>.{name}", cell, _contents(cell)))
        elif isinstance(own := getattr(value, "__dict__", None), dict) and not isinstance(value, _NOT_HELD):
            parts = ("_parameters", "_buffers", "_modules") if isinstance(value, nn.Module) else ()
            for target in (own, *(own[part] for part in parts)):
                self._holders.append(_Holder(path, target, dict(target)))

    def changes(self) -> list[Change]:
        return [change for holder in self._holders for change in _changes_of(holder)]

    def restore(self) -> None:
        for holder in self._holders:
            target, before = holder.target, holder.before
            if isinstance(target, dict):
                if _differ(target, before):
                    target.clear()
                    target.update(before)
            elif isinstance(target, list):
                target[:] = before
            elif before is not _ABSENT:
                target.cell_contents = before

    def written_tensors(self) -> list[tuple[Tensor, str]]:
        """The tensors that the step left behind, and where; a number or a flag that it changed is refused here."""
        written: list[tuple[Tensor, str]] = []
        for change in self.changes():
            tensors = [leaf for leaf in leaves(change.after) if isinstance(leaf, Tensor)]
            if not tensors:
                raise CaptureError(
                    f"the step changes {change.path}, from {change.before!r} to {change.after!r}, but a step is traced "
                    "once and must be a function of its input and state. Make it part of the state."
                )
            written += [(t, change.path) for t in tensors]
        return written


def _changes_of(holder: _Holder) -> list[Change]:
    target, before = holder.target, holder.before
    if isinstance(target, list):
        same = len(target) == len(before) and all(a is b for a, b in zip(target, before))
        return [] if same else [Change(holder.path, before, target[len(before) :] or list(target))]
    if not isinstance(target, dict):
        after = _contents(target)
        return [] if _alike(before, after) else [Change(holder.path, before, after)]
    keys = [k for k in {**before, **target} if not _alike(before.get(k, _ABSENT), target.get(k, _ABSENT))]
    return [Change(f"{holder.path}.{k}", before.get(k), target.get(k)) for k in keys]


def _differ(target: dict[Any, Any], before: dict[Any, Any]) -> bool:
    return target.keys() != before.keys() or any(target[k] is not before[k] for k in before)


def _alike(a: Any, b: Any) -> bool:
    if a is b:
        return True
    plain = (int, float, str, bool, type(None))
    return isinstance(a, plain) and isinstance(b, plain) and type(a) is type(b) and (a == b or a != a)


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _ABSENT
