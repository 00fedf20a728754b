"""Measured arrays -> drawings as SVG, ready to stand in a page."""

from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from throughtime.fit.report.figures import GREY, INK, STYLE, TRAIN, svg

__all__ = ["draw_confusion", "draw_gradients", "draw_mistakes", "draw_states"]

MOST_NAMES = 20  # classes that a picture has room to name


def draw_confusion(confusion: np.ndarray, names: Sequence[str]) -> str:
    """Rows: what it is; columns: what was said; colour: the share of the row; figures: sequences."""
    share = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    with rc_context(STYLE):
        figure = Figure(figsize=(5.4, 5.0), layout="constrained")
        axes = figure.subplots()
        axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        axes.set(xlabel="the model says", ylabel="it is")
        axes.spines[:].set_visible(False)
        if len(names) > MOST_NAMES:
            return svg(figure)
        axes.set_xticks(range(len(names)), names, rotation=45 if max(map(len, names)) > 3 else 0)
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(length=0)
        for (row, column), count in np.ndenumerate(confusion):
            if count:
                colour = "white" if share[row, column] > 0.5 else INK
                axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=8)
        return svg(figure)


def draw_mistakes(sequences: Sequence[np.ndarray], titles: Sequence[str], picture: bool) -> str:
    """Each sequence [T, I] small, under what it is and what was said."""
    columns = 8 if picture else 4
    rows = -(-len(sequences) // columns)
    with rc_context(STYLE):
        figure = Figure(figsize=(9.6, rows * 1.55), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in grid:
            axes.set_axis_off()
        for axes, sequence, title in zip(grid, sequences, titles):
            axes.set_title(title, fontsize=8, fontweight="normal")
            _draw_sequence(axes, sequence, picture)
        return svg(figure)


def draw_states(
    sequences: Sequence[np.ndarray],
    units: Sequence[np.ndarray],
    beliefs: Sequence[np.ndarray],
    titles: Sequence[str],
    names: Sequence[str],
    picture: bool,
) -> str:
    """One row a sequence: its steps, the units [T, H] and the beliefs [T, classes], time downwards."""
    order = np.argsort(units[0][-1])
    high = max(float(np.abs(np.concatenate(list(units))).max()), 1e-6)
    with rc_context(STYLE):
        figure = Figure(figsize=(9.6, 2.3 * len(sequences)), layout="constrained")
        grid = figure.subplots(len(sequences), 3, squeeze=False, width_ratios=[1.3, 4, 2])
        for (left, middle, right), sequence, h, belief, title in zip(grid, sequences, units, beliefs, titles):
            _draw_sequence(left, sequence, picture, downwards=True)
            left.set_title(title, fontsize=9)
            left.set_ylabel("step")
            shown = middle.imshow(h[:, order], cmap="RdBu_r", vmin=-high, vmax=high, aspect="auto")
            said = right.imshow(belief, cmap="Greens", vmin=0, vmax=1, aspect="auto")
            if len(names) <= MOST_NAMES:
                right.set_xticks(range(len(names)), names, rotation=45 if max(map(len, names)) > 3 else 0)
            for axes in (left, middle, right):
                axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
                axes.yaxis.set_major_formatter(lambda place, _: f"{place + 1:.0f}")  # steps count from 1
                axes.spines[:].set_visible(False)
            if sequence.dtype.kind == "U" and len(sequence) <= MOST_NAMES:
                left.set_yticks(range(len(sequence)), sequence)
                left.set_ylabel("")
            figure.colorbar(shown, ax=middle, shrink=0.8, pad=0.02)
            figure.colorbar(said, ax=right, shrink=0.8, pad=0.02)
        grid[0, 1].set_title("state of the units")
        grid[0, 2].set_title("belief if it ended here")
        grid[-1, 1].set_xlabel("unit")
        grid[-1, 2].set_xlabel("class")
        return svg(figure)


def draw_gradients(curves: dict[str, dict[str, np.ndarray]], from_end: bool) -> str:
    """`curves[when][what]`: the mean norm at each step, for what in ("state", "inputs")."""
    with rc_context(STYLE):
        figure = Figure(figsize=(9.6, 3.1), layout="constrained")
        for axes, what in zip(figure.subplots(1, 2), ("state", "inputs")):
            for when, (colour, line) in {
                "before training": (GREY, "--"),
                "saved model": (TRAIN, "-"),
            }.items():
                y = np.where(curves[when][what] > 0, curves[when][what], np.nan)  # a zero has no place on the scale
                x = np.arange(len(y)) + (1 - len(y) if from_end else 1)
                axes.plot(x, y, line, color=colour, marker="o" if len(y) <= 40 else None, markersize=3, label=when)
            axes.set_yscale("log")
            axes.set(
                title=f"gradient with respect to the {what}",
                xlabel="steps before the end" if from_end else "step",
                ylabel="mean norm",
            )
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(alpha=0.25)
            axes.legend(frameon=False)
        return svg(figure)


def _draw_sequence(axes: Axes, sequence: np.ndarray, picture: bool, downwards: bool = False) -> None:
    """A picture as it is; words as nothing; numbers as lines, one a feature (as a picture where there are many)."""
    if not len(sequence):
        axes.text(0.5, 0.5, "no steps", ha="center", va="center", color=GREY, transform=axes.transAxes)
    elif sequence.dtype.kind == "U":
        axes.set_ylim(len(sequence) - 0.5, -0.5)
        axes.set_xticks([])
    elif picture:
        axes.imshow(sequence, cmap="gray_r", interpolation="nearest")
        axes.set_xticks([])
    elif sequence.shape[1] > 8:
        axes.imshow(sequence if downwards else sequence.T, cmap="viridis", aspect="auto", interpolation="nearest")
        axes.set_xticks([])
    elif downwards:
        axes.plot(sequence, np.arange(len(sequence)), linewidth=0.9)
        axes.set_ylim(len(sequence) - 0.5, -0.5)
    else:
        axes.plot(sequence, linewidth=0.9)
