"""Tokens <-> ids, learned from the training part. The first two ids are special."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

__all__ = ["Vocabulary", "cut"]

END, UNKNOWN = 0, 1
SPECIAL = ("<end>", "<unknown>")


def cut(text: str, tokens: str) -> list[str]:
    """Text -> its characters, or its words."""
    return list(text) if tokens == "characters" else text.split()


@dataclass(frozen=True)
class Vocabulary:
    """The token of each id: `end`, which also starts a sequence, `unknown`, then those of the data in their order.

    cut_into: "characters" or "words", what a text is made of.
    """

    tokens: tuple[str, ...]
    cut_into: str
    end: int = END
    unknown: int = UNKNOWN

    @staticmethod
    def learn(sequences: Iterable[Sequence[str]], cut_into: str, most: int) -> "Vocabulary":
        """All tokens, or the `most` frequent."""
        counts = Counter(token for sequence in sequences for token in sequence)
        by_frequency = sorted(counts, key=lambda token: (-counts[token], token))
        return Vocabulary((*SPECIAL, *sorted(by_frequency[: most or None])), cut_into)

    @staticmethod
    def from_json(known: Mapping[str, Any]) -> "Vocabulary":
        return Vocabulary(**{**known, "tokens": tuple(known["tokens"])})

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {token: id for id, token in enumerate(self.tokens) if id >= len(SPECIAL)}

    def cut(self, text: str) -> list[str]:
        return cut(text, self.cut_into)

    def ids(self, tokens: Iterable[str]) -> np.ndarray:
        return np.asarray([self._ids.get(token, self.unknown) for token in tokens], dtype=np.int64)

    def missing(self, tokens: Iterable[str]) -> list[str]:
        """Those it does not know, each once."""
        return sorted({token for token in tokens if token not in self._ids})

    def join(self, tokens: Iterable[str]) -> str:
        return ("" if self.cut_into == "characters" else " ").join(tokens)
