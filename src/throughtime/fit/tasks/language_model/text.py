"""Text files -> a stream of token ids in three parts -> windows over rows of the stream, in their order."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from throughtime.fit.data.batches import ResumableBatches
from throughtime.fit.data.parts import Data, fingerprint_of
from throughtime.fit.data.text import read_text
from throughtime.fit.data.vocabulary import Vocabulary, cut
from throughtime.fit.errors import FitError
from throughtime.fit.options import TextOptions

__all__ = [
    "TextEncoding",
    "TextPart",
    "Window",
    "Windows",
    "absolute_source",
    "read_all_text",
    "read_text_parts",
    "source_name",
]


@dataclass(frozen=True)
class TextEncoding:
    """What a model must know about its text."""

    vocabulary: Vocabulary

    @staticmethod
    def from_json(known: Mapping[str, Any]) -> "TextEncoding":
        return TextEncoding(Vocabulary.from_json(known["vocabulary"]))


@dataclass(frozen=True)
class TextPart:
    """ids: a stretch of the stream. Its length is the number of tokens that another one stands before."""

    ids: np.ndarray

    def __len__(self) -> int:
        return max(len(self.ids) - 1, 0)


class Window(NamedTuple):
    """This process's rows of one window.

    inputs, targets: [B, W] ids, each target the token after its input; of `lengths` [B], 0 where a row has ended.
    first: whether the rows begin here. total, units: rows and tokens over all processes.
    """

    inputs: Tensor
    targets: Tensor
    lengths: Tensor
    first: bool
    total: int
    units: int


def read_text_parts(options: TextOptions, encoding: TextEncoding | None = None) -> Data:
    """The test part is the end of the text, the validation part stands before it."""
    stream = _read_stream(options)
    if not (options.validation < 1 and options.test < 1 and options.validation + options.test < 1):
        raise FitError(
            f"--validation and --test are shares of the text that leave some to train on, got {options.validation} "
            f"and {options.test}."
        )
    test = len(stream) - round(options.test * len(stream))
    validation = test - round(options.validation * len(stream))
    pieces = {"train": stream[:validation], "validation": stream[validation:test], "test": stream[test:]}
    for name, tokens in pieces.items():
        if len(tokens) < 2 and (name != "validation" or options.validation):
            raise FitError(
                f"text: {len(stream)} {options.tokens} leave fewer than two for the {name} part; give more, or other "
                f"shares."
            )
    if encoding is None:
        learned = [token for token in pieces["train"] if token is not None]
        encoding = TextEncoding(Vocabulary.learn([learned], options.tokens, options.vocabulary))
    parts = [_encode(tokens, encoding) for tokens in pieces.values()]
    return Data(*parts, encoding=encoding, fingerprint=fingerprint_of(part.ids for part in parts))


def read_all_text(options: TextOptions, encoding: TextEncoding) -> TextPart:
    return _encode(_read_stream(options), encoding)


def source_name(source: str) -> str:
    return _split_source(source).resolve().stem


def absolute_source(source: str) -> str:
    return f"text:{_split_source(source).resolve()}"


def _split_source(source: str) -> Path:
    kind, _, rest = source.partition(":")
    if kind != "text" or not rest:
        raise FitError(f"--data of running text is 'text:FILE' or 'text:DIRECTORY', got {source!r}.")
    return Path(rest).expanduser()


def _read_stream(options: TextOptions) -> list[str | None]:
    """The tokens of all files; None, the end of a text, stands before, between and after them."""
    path = _split_source(options.data)
    paths = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    if not paths:
        raise FitError(f"text: the directory {path} holds no .txt file.")
    stream: list[str | None] = [None]
    for one in paths:
        stream += [*cut(read_text("text", one), options.tokens), None]
    return stream


def _encode(tokens: list[str | None], encoding: TextEncoding) -> TextPart:
    vocabulary = encoding.vocabulary
    ids = vocabulary.ids(token or "" for token in tokens)
    return TextPart(np.where([token is None for token in tokens], vocabulary.end, ids))


class Windows(ResumableBatches):
    """A part cut into `rows` rows of equal length (but for the last), and these into windows, one after the other.

    Row r of each window goes on where row r of the window before it ended. Each process has every world-th row. There
    are fewer rows where they would be shorter than `least` steps: a row's first tokens are read with nothing before.
    """

    def __init__(self, part: TextPart, rows: int, window: int, least: int = 1, rank: int = 0, world: int = 1) -> None:
        super().__init__()
        count = len(part)
        self.rows = max(min(rows, count // least), 1)
        steps = -(-count // self.rows)
        self.window, self.own = window, slice(rank, None, world)
        self.lengths = np.clip(count - steps * np.arange(self.rows), 0, steps)
        padded = np.zeros(self.rows * steps + 1, np.int64)
        padded[: len(part.ids)] = part.ids
        self.inputs, self.targets = padded[:-1].reshape(self.rows, steps), padded[1:].reshape(self.rows, steps)

    def __len__(self) -> int:
        return -(-self.inputs.shape[1] // self.window)

    def order(self) -> range:
        return range(len(self))

    def make(self, item: int) -> Window:
        start = item * self.window
        lengths = np.clip(self.lengths - start, 0, self.window)
        inputs, targets = (
            torch.from_numpy(ids[self.own, start : start + self.window]) for ids in (self.inputs, self.targets)
        )
        return Window(inputs, targets, torch.from_numpy(lengths[self.own]), item == 0, self.rows, int(lengths.sum()))
