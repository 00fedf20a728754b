"""A Table whose source names some parts -> a part for every row, fixed by a seed."""

from typing import Protocol

import numpy as np

from throughtime.fit.errors import FitError

__all__ = ["assign_parts"]


class HasParts(Protocol):
    """Rows, and for each the part that the source puts it in, or ""."""

    @property
    def parts(self) -> np.ndarray: ...

    def __len__(self) -> int: ...


def assign_parts(table: HasParts, validation: float, test: float, seed: int) -> np.ndarray:
    """[R] of "train", "validation", "test". A part that the source lacks is drawn from the rows left for training."""
    if not (validation < 1 and test < 1 and validation + test < 1):
        raise FitError(
            f"--validation and --test are shares of the sequences that leave some to train on, got {validation} "
            f"and {test}."
        )
    parts = np.where(table.parts == "", "train", table.parts).astype("<U10")
    order = np.random.default_rng(seed).permutation(len(table))
    shares = {"test": test, "validation": validation}
    free = int((parts == "train").sum())
    for part, share in shares.items():
        if part not in table.parts:
            candidates = order[parts[order] == "train"]
            parts[candidates[: round(share * free)]] = part
    for part in ("train", "test"):
        if part not in parts:
            raise FitError(f"{len(table)} sequences leave none for the {part} part; give more, or other shares.")
    return parts
