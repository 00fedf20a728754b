"""The one form that every source is read into: ragged steps end to end, one row a sequence."""

from dataclasses import dataclass, replace

import numpy as np

__all__ = ["Table", "row_of_step"]


@dataclass(frozen=True)
class Table:
    """Sequences as a source gives them, before anything is learned from them.

    values: every step of every row, end to end: float32 [N, I], or words or ids [N] where steps are tokens.
    lengths: int64 [R], the number of steps of each row.
    labels: [R] whole numbers or text, or None where the source has none.
    parts: [R] of "train", "validation", "test"; "" where the source does not say.
    rows: int64 [R], each row's number in the source, from 0.
    picture: whether a sequence is the rows of a picture.
    """

    values: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray | None
    parts: np.ndarray
    rows: np.ndarray
    picture: bool = False

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def starts(self) -> np.ndarray:
        return np.cumsum(self.lengths) - self.lengths

    def take(self, rows: np.ndarray) -> "Table":
        """The given rows, in the given order."""
        return replace(
            self,
            values=self.values[self.steps_of(rows)],
            lengths=self.lengths[rows],
            labels=None if self.labels is None else self.labels[rows],
            parts=self.parts[rows],
            rows=self.rows[rows],
        )

    def steps_of(self, rows: np.ndarray) -> np.ndarray:
        """The places in `values` of these rows' steps, row after row."""
        lengths = self.lengths[rows]
        ends = np.cumsum(lengths)
        shift = np.repeat(self.starts[rows] - (ends - lengths), lengths)
        return np.arange(ends[-1] if len(ends) else 0) + shift


def row_of_step(lengths: np.ndarray, step: int) -> tuple[int, int]:
    """A place in `values` -> (row, step within the row)."""
    ends = np.cumsum(lengths)
    row = int(np.searchsorted(ends, step, side="right"))
    return row, int(step - (ends[row] - lengths[row]))
