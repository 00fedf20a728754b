"""A classifier and its batches -> losses and log probabilities."""

from torch import Tensor
from torch.nn.functional import cross_entropy

from throughtime.fit.data.batches import Batch
from throughtime.fit.training import Score, Training

__all__ = ["ACCURACY", "ClassifierTraining"]

ACCURACY = Score("accuracy", "acc", True, lambda totals: totals.share_correct)


class ClassifierTraining(Training):
    """Cross entropy, averaged over rows."""

    score = ACCURACY

    def measure(self, batch: Batch, part: str) -> tuple[Tensor, Tensor]:
        logits = self.model(batch.values, batch.lengths)
        assert batch.labels is not None
        loss = cross_entropy(logits, batch.labels, reduction="sum")
        return loss, (logits.argmax(-1) == batch.labels).sum()

    def predict_step(self, batch: Batch, batch_idx: int) -> tuple[Tensor, Tensor]:
        """(row numbers, log probabilities [B, classes])."""
        logits = self.model(batch.values, batch.lengths).cpu().double()
        return batch.rows.cpu(), logits.log_softmax(-1)
