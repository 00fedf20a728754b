"""Paths -> the names that inputs have in a graph: short, readable, unique."""

import re
from collections.abc import Sequence

__all__ = ["Names"]


class Names:
    """Gives each path a name that no other has."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def const(self, path: str) -> str:
        """`cell.layers[0].kernel` -> `layers_0_kernel`"""
        return self._unique(_word(path.removeprefix("cell.")))

    def leaves(self, paths: Sequence[str], root: str) -> list[str]:
        """`state[0]` -> `state_0`; a single leaf is the root itself."""
        return [self._unique(root + _word(path.partition("[")[1] + path.partition("[")[2])) for path in paths]

    def _unique(self, word: str) -> str:
        name, count = word, 1
        while name in self._taken:
            count += 1
            name = f"{word}_{count}"
        self._taken.add(name)
        return name


def _word(path: str) -> str:
    word = re.sub(r"\W+", "_", path).rstrip("_")
    return f"v{word}" if word[:1].isdigit() else word
