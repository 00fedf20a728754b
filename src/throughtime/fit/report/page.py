"""A finished run and what its task has to show -> one page of HTML."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import yaml
from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

import throughtime
from throughtime.fit.data.parts import Data
from throughtime.fit.options import Options
from throughtime.fit.report.figures import draw_curves
from throughtime.fit.training import Score

__all__ = ["Finished", "render"]


@dataclass(frozen=True)
class Finished:
    """A run that is over, for its page.

    history: a row an epoch. said: what the saved model says of the test part. results: what results.json will hold.
    """

    options: Options
    source: str
    data: Data
    model: Any
    history: Sequence[dict[str, Any]]
    said: Any
    results: dict[str, Any]


def render(
    package: str, run: Finished, score: Score, subtitle: str, tiles: Sequence[tuple[str, str]], **values: Any
) -> str:
    """The template page.html of a task's package, inside base.html; the first tile is the one that matters."""
    pages = {
        "base.html": files("throughtime.fit.report").joinpath("base.html").read_text(),
        "page.html": files(package).joinpath("page.html").read_text(),
    }
    environment = Environment(autoescape=True, undefined=StrictUndefined, loader=DictLoader(pages))
    results = run.results
    common = [
        (f"{results['best_epoch']} of {results['epochs']}", "the epoch whose weights were saved"),
        (f"{results['seconds']:.0f} s", "of training"),
        (f"{results['parameters']:,}", "parameters"),
    ]
    return environment.get_template("page.html").render(
        title=f"{run.options.model.cell} on {run.source}",
        subtitle=subtitle,
        tiles=[tiles[0], *common, *tiles[1:]],
        options=run.options,
        data=run.data,
        results=results,
        version=getattr(throughtime, "__version__", None),
        settings=yaml.safe_dump(run.options.flat(), sort_keys=False),
        curves=Markup(draw_curves(run.history, results["best_epoch"], score)),
        **values,
    )
