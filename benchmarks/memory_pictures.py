"""Rows of `memory.py curve` and `memory.py static` -> pictures for the docs."""

from pathlib import Path
from typing import Any

from resident import MB

__all__ = ["LABELS", "RESULTS", "draw"]

RESULTS = Path(__file__).parents[1] / "docs" / "images"
LABELS = {
    "SaveAll": "dynamic_rnn, SaveAll()",
    "Recompute": "dynamic_rnn, Recompute()",
    "Spill": "dynamic_rnn, Spill()",
    "unroll_loss": "unroll_loss",
    "nn.LSTM": "nn.LSTM",
    "checkpoint": "nn.LSTM, checkpointed windows",
    "static_rnn": "static_rnn",
}
STYLES = {
    "SaveAll": ("#1f5fa8", "-", "o"),
    "Recompute": ("#2e8b57", "-", "s"),
    "Spill": ("#b8860b", "-", "^"),
    "unroll_loss": ("#6a3d9a", "-", "D"),
    "nn.LSTM": ("#555555", "--", "o"),
    "checkpoint": ("#999999", "--", "s"),
    "static_rnn": ("#c03030", ":", "v"),
}


def draw(rows: list[dict]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    _draw_curve([row for row in rows if row["kind"] == "curve"])
    _draw_static([row for row in rows if row["kind"] == "static"])


def _draw_curve(rows: list[dict]) -> None:
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.6), constrained_layout=True)
    for rival, label in LABELS.items():
        points = [row for row in rows if row["rival"] == rival and "not run" not in row]
        colour, dash, marker = STYLES[rival]
        style = {"linestyle": dash, "marker": marker, "markersize": 5, "color": colour, "label": label}
        steps = [p["steps"] for p in points]
        left.loglog(steps, [max(p["bytes"], 1e5) / MB for p in points], **style)
        right.loglog(steps, [p["seconds"] / p["steps"] * 1e6 for p in points], **style)
    left.set(xlabel="steps T", ylabel="MB", title="Peak memory above the inputs")
    right.set(xlabel="steps T", ylabel="microseconds", title="Time of a step, forwards and backwards, one thread")
    for axes in (left, right):
        _plain(axes)
    right.legend(frameon=False, fontsize=8, loc="center right", bbox_to_anchor=(1, 0.66))
    skipped = [f"{row['rival']} with {row['steps']:,} steps {row['not run']}" for row in rows if "not run" in row]
    figure.suptitle("\n".join(["LSTM 128, inputs of 64, one sequence, float32", *skipped]), fontsize=9)
    figure.savefig(RESULTS / "memory.png", dpi=130)


def _draw_static(rows: list[dict]) -> None:
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 3, figsize=(11, 3.6), constrained_layout=True)
    shown = {"nodes": "Nodes of the graph", "build": "Seconds to build it", "bytes": "MB that it holds"}
    styles = {"static_rnn": STYLES["static_rnn"], "dynamic_rnn": STYLES["Recompute"]}
    for axes, (key, title) in zip(panels, shown.items()):
        for way, (colour, dash, marker) in styles.items():
            points = [row for row in rows if row["rival"] == way]
            values = [max(p[key] / MB, 0.1) if key == "bytes" else p[key] for p in points]
            label = f"{way}, Recompute()" if way == "dynamic_rnn" else way
            axes.loglog([p["steps"] for p in points], values, dash, marker=marker, color=colour, label=label)
        axes.set(xlabel="steps T", title=title)
        _plain(axes)
    panels[0].legend(frameon=False, fontsize=9)
    figure.savefig(RESULTS / "memory-static.png", dpi=130)


def _plain(axes: Any) -> None:
    axes.grid(True, which="major", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
