"""Sequences as they are written -> pairs of ids in three parts -> batches of sources of similar length."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from throughtime.fit.data.batches import padded
from throughtime.fit.data.parts import PARTS, Data, fingerprint_of
from throughtime.fit.data.split import assign_parts
from throughtime.fit.data.table import Table
from throughtime.fit.data.vocabulary import Vocabulary
from throughtime.fit.options import PairOptions
from throughtime.fit.tasks.transduce.sources import Sequences, read_sequences

__all__ = ["PairBatch", "PairEncoding", "Pairs", "encode_pairs", "pad_pairs", "read_pairs"]

# A step of the decoder is compiled for each length of its memory: a few lengths, with a little padding.
MEMORY_STEPS = 16


@dataclass(frozen=True)
class PairEncoding:
    """What a model must know about its pairs. longest: tokens of the longest target of the training part."""

    source: Vocabulary
    target: Vocabulary
    longest: int

    @staticmethod
    def learn(sequences: Sequences, train: np.ndarray, options: PairOptions) -> "PairEncoding":
        assert sequences.targets is not None
        sources, targets = ([side[row] for row in train] for side in (sequences.sources, sequences.targets))
        source, target = (Vocabulary.learn(side, options.tokens, options.vocabulary) for side in (sources, targets))
        return PairEncoding(source, target, max(map(len, targets)))

    @staticmethod
    def from_json(known: Mapping[str, Any]) -> "PairEncoding":
        source, target = (Vocabulary.from_json(known[side]) for side in ("source", "target"))
        return PairEncoding(source, target, known["longest"])


@dataclass(frozen=True)
class Pairs:
    """Sources and targets as ids, without end tokens; and as they are written, with tokens that have no id too."""

    source: Table
    target: Table | None
    written: Sequences

    def __len__(self) -> int:
        return len(self.source)

    @property
    def lengths(self) -> np.ndarray:
        return self.source.lengths

    def take(self, rows: np.ndarray) -> "Pairs":
        target = None if self.target is None else self.target.take(rows)
        return Pairs(self.source.take(rows), target, self.written.take(rows))


class PairBatch(NamedTuple):
    """This process's rows of one batch.

    source: [B, M] ids, of `lengths` [B]. said: [B, T] ids, the end token and then the target; targets: [B, T], the
    target and then the end token; both of `target_lengths` [B], or of no steps where targets are not known.
    rows: [B], places in the part. total, units: rows, and tokens of targets, of the batch over all processes.
    """

    source: Tensor
    lengths: Tensor
    said: Tensor
    targets: Tensor
    target_lengths: Tensor
    rows: Tensor
    total: int
    units: int


def read_pairs(options: PairOptions, encoding: PairEncoding | None = None) -> Data:
    sequences = read_sequences(options, need_targets=True)
    parts = assign_parts(sequences, options.validation, options.test, options.split_seed)
    rows = {part: np.flatnonzero(parts == part) for part in PARTS}
    encoding = encoding or PairEncoding.learn(sequences, rows["train"], options)
    pairs = encode_pairs(sequences, encoding)
    assert pairs.target is not None
    arrays = [array for side in (pairs.source, pairs.target) for array in (side.values, side.lengths)]
    return Data(
        *(pairs.take(rows[part]) for part in PARTS), encoding=encoding, fingerprint=fingerprint_of([*arrays, parts])
    )


def encode_pairs(sequences: Sequences, encoding: PairEncoding) -> Pairs:
    source = _table(sequences.sources, encoding.source, sequences.parts)
    target = None
    if sequences.targets is not None:
        target = _table(sequences.targets, encoding.target, sequences.parts)
    return Pairs(source, target, sequences)


def _table(sequences: Sequence[Sequence[str]], vocabulary: Vocabulary, parts: np.ndarray) -> Table:
    values = vocabulary.ids(token for tokens in sequences for token in tokens)
    lengths = np.asarray([len(tokens) for tokens in sequences])
    return Table(values, lengths, None, parts, np.arange(len(sequences)))


def pad_pairs(pairs: Pairs, rows: np.ndarray, share: np.ndarray) -> PairBatch:
    """This process's share of these rows."""
    longest = int(pairs.lengths[rows].max(initial=1))
    memory = -(-longest // MEMORY_STEPS) * MEMORY_STEPS
    source = padded(pairs.source, share, memory)
    lengths = torch.from_numpy(pairs.lengths[share])
    if pairs.target is None:
        nothing = torch.zeros(len(share), 0, dtype=torch.long)
        return PairBatch(
            source, lengths, nothing, nothing, torch.zeros_like(lengths), torch.from_numpy(share), len(rows), 0
        )
    target_lengths = pairs.target.lengths[rows] + 1
    target = padded(pairs.target, share, int(target_lengths.max()))
    said = torch.nn.functional.pad(target[:, :-1], (1, 0))  # the end token, 0, also starts a target
    own = torch.from_numpy(pairs.target.lengths[share] + 1)
    return PairBatch(source, lengths, said, target, own, torch.from_numpy(share), len(rows), int(target_lengths.sum()))
