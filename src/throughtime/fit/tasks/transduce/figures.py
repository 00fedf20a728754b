"""Where a decoder looked -> drawings as SVG."""

from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from throughtime.fit.report.figures import STYLE, svg

__all__ = ["draw_alignments"]


def draw_alignments(examples: Sequence[tuple[np.ndarray, Sequence[str], Sequence[str]]]) -> str:
    """Of each example the weights [T, M], the M tokens of the source and the T that were said, time downwards."""
    columns = 2
    rows = -(-len(examples) // columns)
    tallest = max(len(said) for _, _, said in examples)
    with rc_context(STYLE):
        figure = Figure(figsize=(9.6, rows * (0.9 + 0.19 * tallest)), layout=ConstrainedLayoutEngine(hspace=0.08))
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in grid[len(examples) :]:
            axes.set_axis_off()
        for axes, (weights, source, said) in zip(grid, examples):
            axes.imshow(weights, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
            axes.set_xticks(range(len(source)), [_visible(token) for token in source], rotation=_rotation(source))
            axes.set_yticks(range(len(said)), [_visible(token) for token in said])
            axes.xaxis.tick_top()
            axes.tick_params(length=0, labelsize=8)
            axes.spines[:].set_visible(False)
        return svg(figure)


def _visible(token: str) -> str:
    """Signs of matplotlib's own mean themselves; a space is seen."""
    return token.replace("\\", r"\\").replace("$", r"\$").replace(" ", "␣")


def _rotation(tokens: Sequence[str]) -> int:
    return 60 if max(map(len, tokens)) > 1 else 0
