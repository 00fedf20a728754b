"""Arrays -> drawings as SVG, ready to stand in a page: the style of all, and the learning curves."""

import io
from collections.abc import Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from throughtime.fit.training import Score

__all__ = ["ACCENT", "GREY", "INK", "STYLE", "TRAIN", "VALID", "draw_curves", "svg"]

INK, GREY, TRAIN, VALID, ACCENT = "#22303c", "#8a97a3", "#2f6fb2", "#e07a26", "#2c8a57"
STYLE: Any = {
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "svg.hashsalt": "throughtime",
}


def draw_curves(history: Sequence[dict[str, Any]], best: int, score: Score) -> str:
    """Loss and score by epoch, the saved epoch marked."""
    with rc_context(STYLE):
        figure = Figure(figsize=(9.6, 3.1), layout="constrained")
        for axes, what in zip(figure.subplots(1, 2), ("loss", score.name)):
            for part, colour in (("train", TRAIN), ("validation", VALID)):
                rows = [row for row in history if row[f"{part}_{what}"] is not None]
                x, y = ([row[key] for row in rows] for key in ("epoch", f"{part}_{what}"))
                axes.plot(x, y, color=colour, label="training" if part == "train" else part)
            axes.axvline(best, color=ACCENT, linewidth=1, linestyle=":", label=f"saved: epoch {best}")
            axes.set(title=what.replace("_", " "), xlabel="epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(alpha=0.25)
        if score.share:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.legend(frameon=False, loc="lower right" if score.share else "upper right")
        return svg(figure)


def svg(figure: Figure) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :]
