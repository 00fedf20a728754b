"""A finished run of a language model -> its page: how it learned, what it writes, where a text surprises it."""

from typing import Any

from throughtime.fit.report.page import Finished, render
from throughtime.fit.tasks.language_model.continuation import Continuation, continue_text
from throughtime.fit.tasks.language_model.model import LanguageModel
from throughtime.fit.tasks.language_model.said import Reading
from throughtime.fit.tasks.language_model.text import TextEncoding
from throughtime.fit.tasks.language_model.training import PERPLEXITY
from throughtime.fit.words import counted, figure

__all__ = ["make_page"]

TEMPERATURES = (0.5, 0.8, 1.0)
WRITTEN, PASSAGE = 300, 600  # tokens of a sample, and of the test text that is shown
MOST_BITS = 10.0  # the darkest


def make_page(run: Finished) -> str:
    model, results, data = run.options.model, run.results, run.data
    what = run.options.data.tokens
    return render(
        __package__ or "",
        run,
        PERPLEXITY,
        f"{model.units} units, {counted(model.layers, 'layer')}, a table of {len(data.encoding.vocabulary):,} tokens, "
        f"windows of {run.options.data.window} {what}.",
        [
            (figure(results["test_perplexity"]), f"perplexity on {results['test_tokens']:,} {what} it never read"),
            (f"{results['test_bits']:.3f}", "bits a token"),
            (f"{len(data.train):,}", f"{what} to train on"),
        ],
        samples=[_sample(run.model, data.encoding, temperature) for temperature in TEMPERATURES],
        passage=_passage(run.said),
    )


def _sample(model: LanguageModel, encoding: TextEncoding, temperature: float) -> tuple[str, str]:
    wanted = Continuation(max_steps=WRITTEN, temperature=temperature, seed=0)
    return f"{temperature:g}", "".join(continue_text(model, encoding, wanted))


def _passage(said: Reading) -> list[dict[str, Any]]:
    """The first tokens of the test part, each with the bits it cost: its colour."""
    space = "" if said.vocabulary.cut_into == "characters" else " "
    costs = said.bits[:PASSAGE].tolist()
    return [
        {"text": token + space, "bits": cost, "share": min(cost / MOST_BITS, 1.0)}
        for token, cost in zip(said.tokens, costs)
    ]
