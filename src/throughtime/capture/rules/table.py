"""The table of rules, filled by the other files of this folder."""

from collections.abc import Callable
from typing import Any

__all__ = ["RULES", "Rule", "rule"]

Rule = Callable[..., Any]
"""(values, call, *the operator's arguments) -> a Value, or a list of them for an operator with several results."""

RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Registers a rule under the operator's names, with or without a trailing overload."""

    def register(function: Rule) -> Rule:
        for name in names:
            assert name not in RULES, name
            RULES[name] = function
        return function

    return register
