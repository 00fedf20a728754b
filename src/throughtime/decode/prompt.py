"""What generation starts from, as users give it -> one checked batch of prompts.

A prompt is the tokens that are fed before the first is chosen: a start token at the least.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from throughtime._sequence import read_lengths
from throughtime.decode.tokens import Embedding, check_ids

__all__ = ["Prompts", "read_prompts"]


@dataclass(frozen=True)
class Prompts:
    """ids: int64 [B, P], each row filled up with its last token. lengths: [B], at least 1."""

    ids: Tensor
    lengths: np.ndarray

    @property
    def last(self) -> Tensor:
        """[B], the token that the first chosen one follows."""
        return self.ids[:, -1]


def read_prompts(start: Any, start_length: Any, rows: int | None, embedding: Embedding) -> Prompts:
    """A token for all rows, a token per row, prompts [B, P] with lengths, or a list of lists of tokens."""
    if _is_ragged(start):
        if start_length is not None:
            raise ValueError("generate: start_length is for padded prompts; a list of lists has its lengths already.")
        ids, lengths = _pad(start)
    else:
        ids = torch.as_tensor(start)
        ids = ids if ids.numel() else ids.long()
        ids = ids.expand(rows or 1) if ids.dim() == 0 else ids
        lengths = _read_padded(ids, start_length)
    ids = ids[:, None] if ids.dim() == 1 else ids
    shortest = int(lengths.argmin()) if len(lengths) else 0
    if len(lengths) and lengths[shortest] < 1:
        raise ValueError(
            f"generate: prompts must not be empty, and row {shortest}'s is. Begin every prompt with a start token."
        )
    real = torch.from_numpy(np.arange(ids.shape[1]) < lengths[:, None]).to(ids.device)
    last = ids.gather(1, torch.from_numpy(lengths).to(ids.device)[:, None] - 1) if len(lengths) else ids
    filled = torch.where(real, ids, last.to(ids.dtype))
    check_ids("generate", "start", filled, embedding)
    return Prompts(filled.to(device=embedding.device or ids.device, dtype=torch.long), lengths)


def _is_ragged(start: Any) -> bool:
    """A list of lists. (A list of tokens is left to torch.as_tensor.)"""
    return isinstance(start, (list, tuple)) and any(
        isinstance(row, (list, tuple)) or getattr(row, "ndim", 0) > 0 for row in start
    )


def _pad(start: Sequence[Any]) -> tuple[Tensor, np.ndarray]:
    rows = [torch.as_tensor(row) for row in start]
    for k, row in enumerate(rows):
        if row.dim() != 1:
            raise ValueError(f"generate: a prompt is a list of tokens; row {k} has shape {list(row.shape)}.")
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), lengths


def _read_padded(ids: Tensor, start_length: Any) -> np.ndarray:
    if ids.dim() not in (1, 2):
        raise ValueError(
            f"generate: start must be a token, a token per row [B], or prompts [B, P]; got {list(ids.shape)}."
        )
    steps = ids.shape[1] if ids.dim() == 2 else 1
    if start_length is None:
        return np.full(ids.shape[0], steps, dtype=np.int64)
    if ids.dim() == 1:
        raise ValueError("generate: start_length is for prompts [B, P]; start has one token per row. Leave it out.")
    return read_lengths(start_length, ids.shape[0], steps)
