"""Rows and their probabilities -> a Parquet or CSV file, one row a sequence."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from throughtime.fit.data.output import write_columns
from throughtime.fit.data.table import Table
from throughtime.fit.tasks.classify.encoding import Encoding

__all__ = ["Predictions", "write_predictions"]


@dataclass(frozen=True)
class Predictions:
    """What a model says of the rows of a table, in their order.

    log_probabilities: float64 [R, classes].
    """

    table: Table
    log_probabilities: np.ndarray
    encoding: Encoding

    @property
    def has_answers(self) -> bool:
        return self.table.labels is not None

    @property
    def probabilities(self) -> np.ndarray:
        return np.exp(self.log_probabilities)

    @property
    def guesses(self) -> np.ndarray:
        return self.log_probabilities.argmax(-1)

    @property
    def labels(self) -> np.ndarray:
        assert self.table.labels is not None
        return self.table.labels

    @property
    def wrong(self) -> np.ndarray:
        """The places of the rows where label and guess differ."""
        return np.flatnonzero(self.guesses != self.labels)

    @property
    def accuracy(self) -> float:
        return float((self.guesses == self.labels).mean())

    @property
    def loss(self) -> float:
        """The mean cross entropy."""
        return float(-self.log_probabilities[np.arange(len(self.labels)), self.labels].mean())

    @property
    def confusion(self) -> np.ndarray:
        """[true class, guessed class]: how many rows."""
        count = len(self.encoding.classes)
        pairs = np.bincount(self.labels * count + self.guesses, minlength=count * count)
        return pairs.reshape(count, count)


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Columns: row, prediction, probability, label where it is known, and p_CLASS for each class."""
    table, probabilities, guesses = predictions.table, predictions.probabilities, predictions.guesses
    names = np.asarray(predictions.encoding.classes)
    columns: dict[str, np.ndarray] = {
        "row": table.rows,
        "prediction": _named(predictions.encoding, names, guesses),
        "probability": probabilities.max(-1),
    }
    if table.labels is not None:
        columns["label"] = _named(predictions.encoding, names, table.labels)
    columns |= {f"p_{name}": probabilities[:, number] for number, name in enumerate(names)}
    write_columns(path, columns)


def _named(encoding: Encoding, names: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    return numbers if encoding.numbered else names[numbers]
