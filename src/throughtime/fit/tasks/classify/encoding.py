"""Labels and tokens as a source writes them -> the numbers a model works with, learned from the training part."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from throughtime.fit.data.table import Table
from throughtime.fit.errors import FitError

__all__ = ["Encoding", "encode", "learn_encoding"]

UNKNOWN = 0  # the id of a token that the training part does not show


@dataclass(frozen=True)
class Encoding:
    """What a model must know about its data.

    classes: the names of the classes; class numbers are their own names.
    numbered: whether the source labels with class numbers rather than text.
    width: numbers per step; 0 where steps are tokens.
    vocabulary: the tokens, whose ids are 1, 2, ...; None where steps are numbers.
    picture: whether a sequence is the rows of a picture.
    """

    classes: tuple[str, ...]
    numbered: bool
    width: int
    vocabulary: tuple[str, ...] | tuple[int, ...] | None
    picture: bool


def learn_encoding(table: Table, train: np.ndarray, classes: int | None) -> Encoding:
    labels = table.labels
    if labels is None:
        raise FitError("training needs a label for every sequence.")
    numbered = labels.dtype.kind == "i"
    if numbered:
        names = tuple(map(str, range(classes or _count_classes(labels, train))))
    else:
        names = tuple(str(name) for name in np.unique(labels[train]))
    tokens = table.values.ndim == 1
    vocabulary = tuple(np.unique(table.values[table.steps_of(train)]).tolist()) if tokens else None
    return Encoding(names, numbered, 0 if tokens else table.values.shape[1], vocabulary, table.picture)


def encode(table: Table, encoding: Encoding) -> Table:
    """The same rows with class numbers for labels and ids for tokens; an error where they do not fit."""
    tokens = table.values.ndim == 1
    if tokens != (encoding.vocabulary is not None) or (not tokens and table.values.shape[1] != encoding.width):
        given = "tokens" if tokens else f"{table.values.shape[1]} numbers"
        known = f"{encoding.width} numbers" if encoding.width else "tokens"
        raise FitError(f"this model reads steps of {known}; the data has steps of {given}.")
    values = _token_ids(table.values, encoding.vocabulary) if encoding.vocabulary is not None else table.values
    labels = None if table.labels is None else _class_numbers(table, encoding)
    return Table(values, table.lengths, labels, table.parts, table.rows, table.picture)


def _count_classes(labels: np.ndarray, train: np.ndarray) -> int:
    largest = int(labels[train].max())
    if largest >= len(labels):
        row = int(train[labels[train].argmax()])
        raise FitError(
            f"whole numbers as labels are the numbers of the classes, from 0: the label {largest} of sequence {row} "
            f"makes more classes than there are sequences ({len(labels)}). Write such labels as text, or say --classes."
        )
    return max(largest + 1, 2)


def _class_numbers(table: Table, encoding: Encoding) -> np.ndarray:
    labels, names = table.labels, encoding.classes
    assert labels is not None
    if (labels.dtype.kind == "i") != encoding.numbered:
        kind = "class numbers" if encoding.numbered else "text"
        raise FitError(f"labels of this model are {kind}; the data has labels like {labels[0]!r}.")
    if encoding.numbered:
        outside = np.flatnonzero((labels < 0) | (labels >= len(names)))
        _refuse(table, outside, f"the classes are 0 to {len(names) - 1}")
        return labels
    numbers = {name: number for number, name in enumerate(names)}
    found = np.asarray([numbers.get(str(label), -1) for label in labels], dtype=np.int64)
    _refuse(table, np.flatnonzero(found < 0), f"the classes are {_listed(names)}")
    return found


def _refuse(table: Table, outside: np.ndarray, rule: str) -> None:
    if len(outside):
        assert table.labels is not None
        row = outside[0]
        more = f" ({len(outside)} rows are so)" if len(outside) > 1 else ""
        raise FitError(f"labels out of range: {rule}, row {table.rows[row]} has {table.labels[row].item()!r}{more}.")


def _token_ids(tokens: np.ndarray, vocabulary: Sequence) -> np.ndarray:
    """1 and up for those in the (sorted) vocabulary, UNKNOWN for the others."""
    known = np.asarray(vocabulary)
    if known.dtype.kind != tokens.dtype.kind:
        raise FitError(f"tokens of this model are like {known[0]!r}; the data has tokens like {tokens[0]!r}.")
    places = np.minimum(np.searchsorted(known, tokens), len(known) - 1)
    return np.where(known[places] == tokens, places + 1, UNKNOWN)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
