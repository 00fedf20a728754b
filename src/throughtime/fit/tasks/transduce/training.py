"""An encoder and decoder and their batches -> losses by teacher forcing, and what they say by themselves."""

from typing import NamedTuple

from torch import Tensor

from throughtime import sequence_loss, sequence_mask
from throughtime.fit.tasks.transduce.model import Transducer
from throughtime.fit.tasks.transduce.pairs import PairBatch
from throughtime.fit.training import Score, Training

__all__ = ["EXACT_MATCH", "Decoded", "TransducerTraining"]

EXACT_MATCH = Score("exact_match", "exact", True, lambda totals: totals.share_correct)


class Decoded(NamedTuple):
    """rows: places in the part; ids: without the end token; scores: log p. loss: by teacher forcing, a sum."""

    rows: list[int]
    ids: list[list[int]]
    scores: list[float]
    loss: float
    units: int


class TransducerTraining(Training):
    """Cross entropy, averaged over the tokens of the targets, their end tokens counted.

    A row is right if the most probable token is at every step: decoding greedily then gives the target exactly.
    """

    score = EXACT_MATCH
    model: Transducer

    def measure(self, batch: PairBatch, part: str) -> tuple[Tensor, Tensor]:
        logits = self.model(batch)
        real = sequence_mask(batch.target_lengths, batch.targets.shape[1])
        losses = sequence_loss(
            logits, batch.targets, real.to(logits.dtype), average_across_timesteps=False, average_across_batch=False
        )
        return losses.sum(), ((logits.argmax(-1) == batch.targets) | ~real).all(1).sum()

    def predict_step(self, batch: PairBatch, batch_idx: int) -> Decoded:
        loss = float(self.measure(batch, "test")[0]) if batch.units else 0.0
        found = self.model.decode(batch)
        said = _without_end(found.ids.tolist(), found.lengths.tolist())
        return Decoded(batch.rows.tolist(), said, found.scores.tolist(), loss, batch.units)


def _without_end(ids: list[list[int]], lengths: list[int]) -> list[list[int]]:
    """A row that reached the limit has no end token."""
    kept = [row[:length] for row, length in zip(ids, lengths)]
    return [row[:-1] if row and row[-1] == 0 else row for row in kept]
