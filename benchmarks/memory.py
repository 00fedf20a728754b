"""Memory policies -> peak resident memory and time: python benchmarks/memory.py million | budget | curve [--quick]

Each figure is of a fresh process, which prints one line of JSON. Memory is the operating system's: VmHWM, set back
(/proc/self/clear_refs) after a short run that compiles and warms up, less what was resident then. Time is the
processor's, of one thread and of the writing thread of a spill: other processes on the machine do not count.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from memory_settings import measure_budget
from resident import MB, Peak, fresh
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from throughtime import Recompute, SaveAll, Spill, dynamic_rnn, static_rnn, unroll_loss

FEATURES, UNITS = 64, 128
RESULTS = Path(__file__).parents[1] / "docs" / "images"
POLICIES = {"SaveAll": SaveAll(), "Recompute": Recompute(), "Spill": Spill()}


def squared(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().mean(-1)


def inputs_of(steps: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Filled in pieces: a float64 run has the numbers of the float32 run."""
    generator = torch.Generator().manual_seed(1)
    x, y = torch.empty(1, steps, FEATURES, dtype=dtype), torch.empty(1, steps, UNITS, dtype=dtype)
    for start in range(0, steps, 1000):
        for whole in (x, y):
            part = whole[:, start : start + 1000]
            part.copy_(torch.randn(part.shape, generator=generator))
    return x, y


# --- one measurement, in its own process


def measure_loss(steps: int, policy: str, dtype: str, save_to: str) -> dict:
    """Full back-propagation with a loss per step."""
    kind = getattr(torch, dtype)
    torch.manual_seed(0)
    cell = nn.LSTMCell(FEATURES, UNITS).to(kind)
    x, y = inputs_of(steps, kind)

    def run(count: int) -> float:
        cell.zero_grad()
        memory = POLICIES[policy]
        loss, _ = unroll_loss(cell, x[:, :count], y[:, :count], squared, backend="native", memory=memory)
        loss.backward()
        return loss.item()

    run(min(steps, 1000))
    with Peak() as peak:
        loss = run(steps)
    if save_to:
        torch.save([p.grad for p in cell.parameters()], save_to)
    return {"bytes": peak.bytes, "seconds": peak.seconds, "loss": loss}


def measure_curve(steps: int, rival: str) -> dict:
    """The same, by each way to unroll: outputs are kept, as their users keep them."""
    torch.manual_seed(0)
    lstm, cell = nn.LSTM(FEATURES, UNITS, batch_first=True), nn.LSTMCell(FEATURES, UNITS)
    x, y = inputs_of(steps, torch.float32)

    def unroll(x: Tensor) -> Tensor:
        if rival == "nn.LSTM":
            return lstm(x)[0]
        if rival == "checkpoint":
            return _in_checkpoints(lstm, x)
        if rival == "static_rnn":
            return torch.stack(static_rnn(cell, x.unbind(1))[0], 1)
        return dynamic_rnn(cell, x, backend="native", memory=POLICIES[rival])[0]

    def run(count: int) -> None:
        squared(unroll(x[:, :count]), y[:, :count]).mean().backward()

    run(min(steps, 200))
    with Peak() as peak:
        run(steps)
    return {"bytes": peak.bytes, "seconds": peak.seconds}


def _in_checkpoints(lstm: nn.LSTM, x: Tensor) -> Tensor:
    state, outputs = None, []
    for part in x.split(int(x.shape[1] ** 0.5) + 1, 1):
        output, state = checkpoint(lstm, part, state, use_reentrant=False)  # type: ignore[misc]
        outputs.append(output)
    return torch.cat(outputs, 1)


# --- what each shows


def million(quick: bool) -> None:
    steps = 100_000 if quick else 1_000_000
    with tempfile.TemporaryDirectory() as folder:

        def one(count: int, policy: str, dtype: str = "float32") -> tuple[dict, list[Tensor]]:
            path = f"{folder}/{count}-{policy}-{dtype}.pt"
            return fresh(__file__, "loss", count, policy, dtype, path), torch.load(path)

        short, wanted = one(10_000, "SaveAll")
        _, bits = one(10_000, "Recompute")
        long, found = one(steps, "Recompute")
        again, _ = one(10_000, "SaveAll")
        print("gradient at T = 10,000 is SaveAll's, bit by bit:", all(map(torch.equal, wanted, bits)))
        per_step = min(short["seconds"], again["seconds"]) / 10_000
        print(
            f"T = {steps:,}: peak {long['bytes'] / MB:.1f} MB above (at most 48); "
            f"{long['seconds'] / steps * 1e6:.1f} us a step, {long['seconds'] / steps / per_step:.2f} times SaveAll's "
            f"at T = 10,000, {per_step * 1e6:.1f} us (at most 1.6 times)",
            flush=True,
        )
        exact, reference = one(steps, "Recompute", "float64")
        worst = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, reference))
        print(f"gradient beside float64: {worst:.1e} of its largest; loss {long['loss']:.9f}, {exact['loss']:.9f}")


def budget(quick: bool) -> None:
    """Random settings: how far the peak is from the prediction, and from the budget."""
    table = Table("setting", "the budget chooses", *(Column(name, justify="right") for name in BUDGET_COLUMNS))
    found = [fresh(__file__, "budget", seed) for seed in track(range(6 if quick else 30), "measuring")]
    for r in found:
        numbers = [f"{r[name] / MB:.2f}" for name in ("limit", "predicted", "measured")]
        table.add_row(r["setting"], r["policy"], *numbers, f"{(r['measured'] - r['predicted']) / MB:+.2f}", _fault(r))
    Console(width=140).print(table)
    far, above = (sum(_fault(r) == fault for r in found) for fault in ("far", "above"))
    worst = max(r["measured"] / r["limit"] for r in found)
    print(f"{len(found)} settings; farther than 10 % or 4 MB from the prediction: {far}")
    print(f"more than 5 % above the budget: {above}; the largest peak was {worst:.3f} of its budget")


BUDGET_COLUMNS = ("budget MB", "predicted MB", "measured MB", "difference", "")


def _fault(r: dict) -> str:
    if r["measured"] > 1.05 * r["limit"]:
        return "above"
    near = abs(r["measured"] - r["predicted"]) <= max(0.1 * r["predicted"], 4 * MB)
    return "" if near else "far"


def curve(quick: bool) -> None:
    lengths = [1000, 3000, 10_000] if quick else [1000, 3000, 10_000, 30_000, 100_000, 300_000, 1_000_000]
    most = {"static_rnn": 10_000, "nn.LSTM": 300_000, "SaveAll": 300_000, "Spill": 300_000, "checkpoint": 300_000}
    rows = []
    for rival in (*POLICIES, "unroll_loss", "nn.LSTM", "checkpoint", "static_rnn"):
        for steps in lengths:
            if steps > most.get(rival, 10**9):
                continue
            one = ("loss", steps, "Recompute", "float32", "") if rival == "unroll_loss" else ("curve", steps, rival)
            r = fresh(__file__, *one)
            rows.append({"rival": rival, "steps": steps, **r})
            print(
                f"{rival:12} T {steps:9,} {r['seconds'] / steps * 1e6:8.1f} us a step {r['bytes'] / MB:9.1f} MB",
                flush=True,
            )
            RESULTS.mkdir(parents=True, exist_ok=True)
            (RESULTS / "memory.json").write_text(json.dumps(rows, indent=1) + "\n")
    draw(rows)


def draw(rows: list[dict]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.4), constrained_layout=True)
    styles = {"nn.LSTM": ("0.45", "--"), "checkpoint": ("0.65", "--"), "static_rnn": ("#c03030", ":")}
    colours = iter(["#1f5fa8", "#2e8b57", "#b8860b", "#6a3d9a"])
    for rival in dict.fromkeys(row["rival"] for row in rows):
        points = [row for row in rows if row["rival"] == rival]
        colour, dash = styles.get(rival) or (next(colours), "-")
        steps = [p["steps"] for p in points]
        left.loglog(steps, [max(p["bytes"], 1e5) / MB for p in points], dash, marker="o", color=colour, label=rival)
        right.loglog(steps, [p["seconds"] for p in points], dash, marker="o", color=colour, label=rival)
    left.set(xlabel="steps", ylabel="MB", title="Peak memory above the inputs")
    right.set(xlabel="steps", ylabel="seconds of one thread", title="Forwards and backwards")
    for axes in (left, right):
        axes.grid(True, which="major", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False, fontsize=9)
    figure.suptitle(f"LSTM {UNITS}, inputs of {FEATURES}, one sequence, float32")
    for kind in ("svg", "png"):
        figure.savefig(RESULTS / f"memory.{kind}", dpi=150)


MEASUREMENTS: dict[str, Callable[..., dict]] = {
    "loss": measure_loss,
    "curve": measure_curve,
    "budget": measure_budget,
}


def main() -> None:
    if sys.argv[1:2] == ["--measure"]:
        torch.set_num_threads(1)
        print(json.dumps(MEASUREMENTS[sys.argv[2]](*json.loads(sys.argv[3]))))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    shows = {"million": million, "budget": budget, "curve": curve}
    parser.add_argument("what", choices=[*shows, "draw"])
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    if given.what == "draw":
        draw(json.loads((RESULTS / "memory.json").read_text()))
    else:
        shows[given.what](given.quick)


if __name__ == "__main__":
    main()
