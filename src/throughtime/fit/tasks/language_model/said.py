"""What a language model makes of a text: how much each token surprises it; and a file of it."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from throughtime.fit.data.output import write_columns
from throughtime.fit.data.vocabulary import Vocabulary
from throughtime.fit.tasks.language_model.text import TextPart
from throughtime.fit.tasks.language_model.training import perplexity

__all__ = ["Reading", "write_reading"]


@dataclass(frozen=True)
class Reading:
    """losses: [N] -log p of each token of a part but the first, given those before it in its row."""

    part: TextPart
    losses: np.ndarray
    vocabulary: Vocabulary
    has_answers: bool = True

    @property
    def loss(self) -> float:
        return float(self.losses.mean())

    @property
    def perplexity(self) -> float:
        return perplexity(self.loss)

    @property
    def bits(self) -> np.ndarray:
        return self.losses / math.log(2)

    @property
    def tokens(self) -> list[str]:
        return [self.vocabulary.tokens[id] for id in self.part.ids[1:]]


def write_reading(path: Path, reading: Reading) -> None:
    """Columns: row, token, bits."""
    write_columns(path, {"row": np.arange(len(reading.part)), "token": reading.tokens, "bits": reading.bits})
