"""A language model and windows of text -> losses, the state carried from window to window.

Truncated back-propagation: the state goes on where the window before ended, gradients end where a window begins
(Williams and Peng 1990; `throughtime.truncated` with a window of its own stride).
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from throughtime import sequence_loss, sequence_mask
from throughtime.fit.nested import map_tensors, tensors_in
from throughtime.fit.options import TrainingOptions
from throughtime.fit.tasks.language_model.model import LanguageModel
from throughtime.fit.tasks.language_model.text import Window
from throughtime.fit.training import Score, Training

__all__ = ["PERPLEXITY", "LanguageModelTraining", "Surprise", "perplexity"]


PERPLEXITY = Score("perplexity", "ppl", False, lambda totals: perplexity(totals.mean_loss))


def perplexity(loss: float) -> float:
    """exp(mean -log p): among how many equally likely tokens the model seems to choose."""
    return math.exp(loss) if loss < 700 else math.inf


class Surprise(NamedTuple):
    """-log p of the tokens of a window, [B, W] float64, 0 past the `lengths` [B]."""

    losses: Tensor
    lengths: Tensor


class LanguageModelTraining(Training):
    """Cross entropy, averaged over the tokens of a window.

    carried: of each part, the state at the end of the last window.
    """

    score = PERPLEXITY
    model: LanguageModel

    def __init__(self, model: LanguageModel, options: TrainingOptions) -> None:
        super().__init__(model, options)
        self.carried: dict[str, Any] = {}
        self._saved: list[Tensor] | None = None

    def measure(self, batch: Window, part: str) -> tuple[Tensor, Tensor]:
        losses = self._losses(batch, part)
        return losses.sum(), losses.new_zeros(())

    def predict_step(self, batch: Window, batch_idx: int) -> Surprise:
        return Surprise(self._losses(batch, "test").double().cpu(), batch.lengths.cpu())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["carried"] = [self._of_all_rows(leaf) for leaf in tensors_in(self.carried["train"])]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self._saved = checkpoint["carried"]

    def _losses(self, batch: Window, part: str) -> Tensor:
        logits, state = self.model(batch.inputs, batch.lengths, self._state_before(batch, part))
        self.carried[part] = map_tensors(torch.detach, state)
        weights = sequence_mask(batch.lengths, batch.targets.shape[1], logits.dtype)
        return sequence_loss(logits, batch.targets, weights, average_across_timesteps=False, average_across_batch=False)

    def _state_before(self, batch: Window, part: str) -> Any:
        saved, self._saved = self._saved, None
        if batch.first:
            return None
        if part not in self.carried and saved is not None:
            own = iter([leaf[self.global_rank :: self.trainer.world_size].to(batch.inputs.device) for leaf in saved])
            return map_tensors(lambda _: next(own), self.model.start(len(batch.inputs)))
        return self.carried[part]

    def _of_all_rows(self, leaf: Tensor) -> Tensor:
        """[B, ...] of this process -> [rows of all processes, ...]."""
        rank, world = self.global_rank, self.trainer.world_size
        rows: Any = self.trainer.strategy.reduce(leaf.new_tensor(float(len(leaf))), reduce_op="sum")
        whole = leaf.new_zeros(int(rows), *leaf.shape[1:])
        whole[rank::world] = leaf
        summed: Any = self.trainer.strategy.reduce(whole, reduce_op="sum")
        return summed
