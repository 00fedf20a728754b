"""A language model and a prompt -> the text that follows, piece by piece."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from throughtime import Greedy, Sample, generate_stream
from throughtime.fit.errors import FitError
from throughtime.fit.numbers import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from throughtime.fit.tasks.language_model.model import LanguageModel
from throughtime.fit.tasks.language_model.text import TextEncoding

__all__ = ["Continuation", "continue_text"]


@dataclass(frozen=True)
class Continuation:
    """How to go on.

    Args:
        prompt: the text to continue; without one a text begins.
        max_steps: how many tokens to write at most, fewer where the model ends the text.
        temperature: below 1 more of the likely, above 1 more of the unlikely; 0 takes the most probable token always.
        top_k: draw from the k most probable tokens only.
        top_p: draw from the fewest tokens whose probabilities reach p together.
        seed: the same text again. By default another each time.
    """

    prompt: str = ""
    max_steps: PositiveInt = 200
    temperature: NonNegativeFloat = 1.0
    top_k: PositiveInt | None = None
    top_p: PositiveFloat | None = None
    seed: NonNegativeInt | None = None


def continue_text(model: LanguageModel, encoding: TextEncoding, wanted: Continuation) -> Iterator[str]:
    """The prompt, then each token's text."""
    vocabulary = encoding.vocabulary
    prompt = vocabulary.cut(wanted.prompt)
    if missing := vocabulary.missing(prompt):
        raise FitError(
            f"--prompt: the model has never read {', '.join(map(repr, missing[:8]))}. It knows "
            f"{len(vocabulary):,} {vocabulary.cut_into}; data.json in the directory of the run lists them."
        )
    steps = generate_stream(
        model.rnn.cell,
        [[vocabulary.end, *vocabulary.ids(prompt).tolist()]],
        vocabulary.end,
        embed=model.table,
        output_layer=model.readout,
        strategy=_strategy(wanted),
        max_steps=wanted.max_steps,
        constraint=lambda _, logits: _forbid(logits, vocabulary.unknown),
        backend=model.rnn.backend,
    )
    yield wanted.prompt
    space = " " if vocabulary.cut_into == "words" else ""
    for step in steps:
        token = int(step.ids[0])
        if token != vocabulary.end:
            yield space + vocabulary.tokens[token]


def _strategy(wanted: Continuation) -> Greedy | Sample:
    if wanted.temperature == 0:
        return Greedy()
    try:
        return Sample(wanted.temperature, wanted.top_k, wanted.top_p, wanted.seed)
    except ValueError as error:
        raise FitError(f"--temperature, --top-k, --top-p: {error}") from error


def _forbid(logits: Tensor, token: int) -> Tensor:
    return logits.index_fill(1, torch.tensor([token], device=logits.device), -torch.inf)
