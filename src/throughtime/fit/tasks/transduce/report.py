"""A finished run of a transducer -> its page: how it learned, where it looks, where it was wrong."""

from typing import Any

import numpy as np
import torch
from markupsafe import Markup

from throughtime.fit.report.page import Finished, render
from throughtime.fit.tasks.transduce.figures import draw_alignments
from throughtime.fit.tasks.transduce.model import Transducer
from throughtime.fit.tasks.transduce.pairs import pad_pairs
from throughtime.fit.tasks.transduce.said import Said
from throughtime.fit.tasks.transduce.training import EXACT_MATCH
from throughtime.fit.words import counted, percent

__all__ = ["make_page"]

DRAWN, MISTAKES = 6, 24
MOST_TOKENS = 40  # of a source that a drawing has room for


def make_page(run: Finished) -> str:
    model, results, data = run.options.model, run.results, run.data
    return render(
        __package__ or "",
        run,
        EXACT_MATCH,
        f"An encoder in both directions and a decoder with {model.attention} attention, {model.units} units, "
        f"{counted(model.layers, 'layer')}.",
        [
            (percent(results["test_exact_match"], 2), f"of {results['test_sequences']:,} test sequences exactly right"),
            (f"{results['test_edit_distance']:.3f}", "edits a sequence, to make it right"),
            (f"{results['test_bleu']:.2f}", "BLEU"),
            (f"{len(data.train):,}", "pairs to train on"),
        ],
        alignments=_alignments(run.model, run.said),
        mistakes=_mistakes(run.said),
    )


def _alignments(model: Transducer, said: Said) -> str:
    """A few test sequences whose sources are short enough to draw, from the shortest to the longest."""
    short = np.flatnonzero(said.pairs.lengths <= MOST_TOKENS)
    if not len(short):
        return Markup("")
    by_length = short[np.argsort(said.pairs.lengths[short], kind="stable")]
    places = by_length[np.unique(np.linspace(0, len(short) - 1, DRAWN).round().astype(int))]
    return Markup(draw_alignments([_look(model, said, int(place)) for place in places]))


def _look(model: Transducer, said: Said, place: int) -> tuple[np.ndarray, list[str], list[str]]:
    row = np.asarray([0])
    found = model.decode(pad_pairs(said.pairs.take(np.asarray([place])), row, row), alignments=True)
    source, length = said.sources[place], int(found.lengths[0])
    assert isinstance(found.alignments, torch.Tensor)
    weights = found.alignments[0, :length, : len(source)].numpy()
    return weights, source, [said.encoding.target.tokens[id] for id in found.ids[0, :length].tolist()]


def _mistakes(said: Said) -> dict[str, Any]:
    """The farthest off first."""
    wrong = np.flatnonzero(~said.exact)
    chosen = wrong[np.argsort(-said.edits[wrong], kind="stable")][:MISTAKES]
    join = said.encoding.target.join
    rows = [
        (said.encoding.source.join(said.sources[place]), join(said.targets[place]), join(said.tokens[place]))
        for place in chosen
    ]
    return {"count": len(wrong), "rows": rows}
