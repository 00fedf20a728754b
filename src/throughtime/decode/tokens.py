"""Embeddings, functions, start tokens and end tokens as users give them -> checked ones."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from throughtime._nested import Nested

__all__ = [
    "Embedding",
    "check_callable",
    "check_end_token",
    "check_ids",
    "check_logits",
    "read_embedding",
    "read_end_token",
    "read_tokens",
]


@dataclass(frozen=True)
class Embedding:
    """ids [...] -> inputs of the cell [..., E]; `size`: how many ids there are, None where that is not known.

    given: what the user gave, by which two embeddings are the same.
    """

    look_up: Callable[[Tensor], Nested]
    size: int | None
    device: torch.device | None
    given: Any = None

    def __call__(self, ids: Tensor) -> Nested:
        return self.look_up(ids)


def read_embedding(name: str, given: Any) -> Embedding:
    """A table [V, E], an nn.Embedding, any function of ids, or None: the cell takes the ids themselves."""
    if given is None:
        return Embedding(lambda ids: ids, None, None)
    if isinstance(given, nn.Embedding):
        return Embedding(given, given.num_embeddings, given.weight.device, given)
    if callable(given):
        return Embedding(given, None, None, given)
    if isinstance(given, Tensor) and given.dim() == 2:
        return Embedding(lambda ids: F.embedding(ids, given), given.shape[0], given.device, given)
    got = f"a tensor {list(given.shape)}" if isinstance(given, Tensor) else f"a {type(given).__name__}"
    raise TypeError(f"{name}: embedding must be a table [vocabulary, features] or a function of ids, got {got}.")


def check_callable(name: str, *, optional: dict[str, Any] | None = None, **required: Any) -> None:
    """Functions or modules, by name; the optional ones may be None."""
    given = {what: function for what, function in (optional or {}).items() if function is not None}
    for what, function in (required | given).items():
        if not callable(function):
            raise TypeError(f"{name}: {what} must be callable, got a {type(function).__name__}.")


def read_tokens(name: str, given: Any, embedding: Embedding) -> Tensor:
    """int64 [B], within the embedding's table."""
    tokens = torch.as_tensor(given)
    if tokens.dim() != 1:
        raise ValueError(f"{name}: start_tokens must be a vector, one token per row; got shape {list(tokens.shape)}.")
    check_ids(name, "start_tokens", tokens, embedding)
    return tokens.to(device=embedding.device or tokens.device, dtype=torch.long)


def check_ids(name: str, what: str, ids: Tensor, embedding: Embedding) -> None:
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise TypeError(f"{name}: {what} must be token ids, whole numbers; got {ids.dtype}.")
    limit = embedding.size
    wrong = (ids < 0) if limit is None else (ids < 0) | (ids >= limit)
    if wrong.any():
        rule = "at least 0" if limit is None else f"between 0 and {limit - 1}, the last row of the embedding"
        place = wrong.nonzero()[0].tolist()
        raise ValueError(f"{name}: {what}{place} is out of range: ids are {rule}; got {int(ids[wrong][0])}.")


def read_end_token(name: str, given: Any) -> int:
    """A whole number of at least 0; that the vocabulary has it is checked with the first logits."""
    if isinstance(given, (Tensor, np.ndarray)) and given.ndim == 0:
        given = given.item()
    if isinstance(given, np.integer):
        given = int(given)
    if isinstance(given, bool) or not isinstance(given, int):
        raise ValueError(f"{name}: end_token must be a scalar, one whole number; got {given!r}.")
    if given < 0:
        raise ValueError(f"{name}: end_token must be at least 0, got {given}.")
    return given


def check_end_token(name: str, end_token: int | None, layer: Any) -> None:
    """What can be known of the vocabulary before the first step: the width of the output layer, where it has one."""
    vocabulary = next(
        (width for key in ("out_features", "units") if isinstance(width := getattr(layer, key, None), int)), None
    )
    if vocabulary is not None:
        _check_in_vocabulary(name, end_token, vocabulary)


def check_logits(
    name: str, logits: Any, rows: int, end_token: int | None = None, embedding: Embedding | None = None
) -> None:
    """One tensor [rows, V], with the end token in the vocabulary, and all of that in the embedding."""
    if not isinstance(logits, Tensor) or logits.dim() != 2 or logits.shape[0] != rows:
        got = list(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise TypeError(
            f"{name}: expected outputs to be one tensor of logits, [{rows}, vocabulary]; got {got}. "
            f"Give an output_layer that makes one."
        )
    _check_in_vocabulary(name, end_token, logits.shape[1])
    if embedding is not None and embedding.size is not None and logits.shape[1] > embedding.size:
        raise ValueError(
            f"{name}: every token that can be chosen is fed back: the logits are for {logits.shape[1]} tokens, the "
            f"embedding has {embedding.size}. Give both the same vocabulary."
        )


def _check_in_vocabulary(name: str, end_token: int | None, vocabulary: int) -> None:
    if end_token is not None and end_token >= vocabulary:
        raise ValueError(
            f"{name}: the end token must be in the vocabulary: the logits are for {vocabulary} tokens, 0 to "
            f"{vocabulary - 1}; the end token is {end_token}."
        )
