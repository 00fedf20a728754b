"""A finished run of a classifier -> its page: choose what to show, measure it, draw it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from throughtime.fit.data.batches import Batch, Batches
from throughtime.fit.data.parts import Data
from throughtime.fit.data.table import Table
from throughtime.fit.options import ModelOptions, Options
from throughtime.fit.report.page import Finished, render
from throughtime.fit.tasks.classify import figures
from throughtime.fit.tasks.classify.encoding import Encoding
from throughtime.fit.tasks.classify.measure import Traces, trace_states
from throughtime.fit.tasks.classify.model import SequenceClassifier, build_model
from throughtime.fit.tasks.classify.predictions import Predictions
from throughtime.fit.tasks.classify.training import ACCURACY
from throughtime.fit.words import percent

__all__ = ["make_page"]

MISTAKES, TRACED = 24, 64  # wrong examples, sequences for the gradients
TRACED_STEPS = 20_000  # of all those sequences together, so that long ones still fit in memory


def make_page(run: Finished) -> str:
    options, said, data = run.options, run.said, run.data
    return render(
        __package__ or "",
        run,
        ACCURACY,
        _model_in_words(options.model),
        [
            (percent(run.results["test_accuracy"], 2), f"of {run.results['test_sequences']:,} test sequences right"),
            (f"{len(data.train):,}", f"sequences to train on{_validation_in_words(data)}"),
        ],
        confusion=Markup(figures.draw_confusion(said.confusion, data.encoding.classes)),
        pairs=_worst_pairs(said),
        mistakes=_mistakes(said),
        states=_states(run.model, said),
        **_gradients(run.model, options, said),
    )


def _model_in_words(model: ModelOptions) -> str:
    layers = f", {model.layers} layers" if model.layers > 1 else ""
    embed = f", an embedding of {model.embed}" if model.embed else ""
    return f"{model.units} units{layers}{embed}, then a linear layer on the final state."


def _validation_in_words(data: Data) -> str:
    return f", {len(data.validation):,} to validate" if len(data.validation) else ""


def _worst_pairs(predictions: Predictions) -> list[tuple[str, str, int]]:
    """The most frequent mistakes: (it is, the model says, how often)."""
    names, wrong = predictions.encoding.classes, predictions.confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:3]
    pairs = [np.unravel_index(place, wrong.shape) for place in order]
    return [(names[it], names[said], int(wrong[it, said])) for it, said in pairs if wrong[it, said]]


def _mistakes(predictions: Predictions) -> dict[str, Any]:
    """The surest mistakes first: drawn, or as text where steps are tokens."""
    sureness = predictions.log_probabilities.max(-1)
    wrong = predictions.wrong
    chosen = wrong[np.argsort(-sureness[wrong], kind="stable")][:MISTAKES]
    table, encoding = predictions.table, predictions.encoding
    sequences = [_sequence(table, encoding, place) for place in chosen]
    titles = [_title(predictions, place) for place in chosen]
    shown: dict[str, Any] = {"count": len(wrong), "shown": len(chosen), "drawing": None, "texts": []}
    if encoding.vocabulary is not None:
        shown["texts"] = [(title, " ".join(map(str, words[:60]))) for title, words in zip(titles, sequences)]
    elif len(chosen):
        shown["drawing"] = Markup(figures.draw_mistakes(sequences, titles, encoding.picture))
    return shown


def _title(predictions: Predictions, place: int) -> str:
    names = predictions.encoding.classes
    it, said = names[predictions.labels[place]], names[predictions.guesses[place]]
    sure = np.exp(predictions.log_probabilities[place].max())
    return f"is {it}, said {said} ({sure:.0%})" if it != said else f"{it}, said {said} ({sure:.0%})"


def _sequence(table: Table, encoding: Encoding, place: int) -> np.ndarray:
    """[T, I] numbers, or [T] words."""
    steps = table.values[table.steps_of(np.asarray([place]))]
    if encoding.vocabulary is None:
        return steps
    words = np.asarray(["?", *map(str, encoding.vocabulary)])
    return words[steps]


def _batch(predictions: Predictions, places: Sequence[int] | np.ndarray) -> Batch:
    table = predictions.table.take(np.asarray(places))
    (batch,) = Batches(table, len(table))
    return batch


def _states(model: SequenceClassifier, predictions: Predictions) -> str:
    table, encoding, places = predictions.table, predictions.encoding, _shown(predictions)
    if not places:
        return Markup("")
    single = [_trace_one(model, predictions, place) for place in places]
    return Markup(
        figures.draw_states(
            [_sequence(table, encoding, place) for place in places],
            [traces.units[0] for traces in single],
            [traces.beliefs[0] for traces in single],
            [_title(predictions, place) for place in places],
            encoding.classes,
            encoding.picture,
        )
    )


def _trace_one(model: SequenceClassifier, predictions: Predictions, place: int) -> Traces:
    return trace_states(model, _batch(predictions, [place]))


def _shown(predictions: Predictions) -> list[int]:
    """The surest mistake, after a sequence of each of its two classes that was surely right; or two that were."""
    sure = np.where(predictions.table.lengths > 0, predictions.log_probabilities.max(-1), -np.inf)
    wrong = predictions.guesses != predictions.labels
    classes, mistakes = list(range(len(predictions.encoding.classes)))[:2], []
    if wrong.any():
        surest = int(np.where(wrong, sure, -np.inf).argmax())
        classes, mistakes = [predictions.labels[surest], predictions.guesses[surest]], [surest]
    of_class = [np.where(~wrong & (predictions.labels == c), sure, -np.inf) for c in classes]
    rights = [int(score.argmax()) for score in of_class if score.max() > -np.inf]
    return [place for place in [*rights, *mistakes] if sure[place] > -np.inf]


def _gradients(model: SequenceClassifier, options: Options, predictions: Predictions) -> dict[str, Any]:
    """The drawing, and how the gradient at the first step compares with that at the last."""
    lengths = predictions.table.lengths
    places = np.flatnonzero(lengths > 0)[:TRACED]
    fits = np.cumsum(lengths[places]) <= TRACED_STEPS
    places = places[fits] if fits.any() else places[:1]
    if not len(places):
        return {"gradients": Markup(""), "vanishing": None, "traced": 0, "ragged": False}
    batch = _batch(predictions, places)
    fresh = build_model(options.model, predictions.encoding, options.training.seed)
    curves = {
        when: _mean_curves(trace_states(m, batch), batch.lengths.numpy())
        for when, m in (("before training", fresh), ("saved model", model))
    }
    ragged = len(np.unique(lengths[places])) > 1
    state = curves["saved model"]["state"]
    return {
        "gradients": Markup(figures.draw_gradients(curves, from_end=ragged)),
        "vanishing": float(state[0] / state[-1]) if state[-1] > 0 else None,
        "traced": len(places),
        "ragged": ragged,
    }


def _mean_curves(traces: Traces, lengths: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "state": _mean_from_end(traces.state_gradients, lengths),
        "inputs": _mean_from_end(traces.input_gradients, lengths),
    }


def _mean_from_end(norms: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """[B, T] -> [T]: the mean over rows that are so many steps from their end, the last step last."""
    longest = int(lengths.max())
    shifted = np.full((len(lengths), longest), np.nan)
    for row, length in enumerate(lengths):
        shifted[row, longest - length :] = norms[row, :length]
    return np.nanmean(shifted, axis=0)
