"""Memory policies -> peak resident memory and time: python benchmarks/memory.py million | budget | curve [--quick] ...

Each figure is of a fresh process, which prints one line of JSON. Memory is the operating system's: VmHWM, set back
(/proc/self/clear_refs) after a short run that compiles and warms up, less what was resident then. Time is the
processor's, of one thread and of the writing thread of a spill: other processes on the machine do not count.

million: a million steps within 48 MB. budget: 30 random settings. ratios: the policies in one process, by turns.
curve: T = 1e3 ... 1e6 beside the rivals, all or those that are named (curve --of Spill nn.LSTM); static: the graphs of
static_rnn; draw: the pictures for the docs of both (docs/images/). What does not fit the machine is not run, and said.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from memory_pictures import LABELS, RESULTS, draw
from memory_settings import measure_budget
from resident import MB, Failed, Peak, available, fresh
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from throughtime import Recompute, SaveAll, Spill, dynamic_rnn, static_rnn, unroll_loss
from throughtime.loop.native.room import room
from throughtime.plan.memory import MemoryPolicy

FEATURES, UNITS = 64, 128
AT_LEAST = 20_000
"""Steps that the time of a step is of: shorter runs are made again."""
POLICIES: dict[str, MemoryPolicy] = {"SaveAll": SaveAll(), "Recompute": Recompute(), "Spill": Spill()}


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


def measure_curve(rival: str, steps: int) -> dict:
    """By one way to unroll: outputs are kept, as their users keep them, and their gradient is given."""
    torch.manual_seed(0)
    lstm, cell = nn.LSTM(FEATURES, UNITS, batch_first=True), nn.LSTMCell(FEATURES, UNITS)

    def unroll(x: Tensor) -> Tensor:
        if rival == "nn.LSTM":
            return lstm(x)[0]
        if rival == "checkpoint":
            return _in_checkpoints(lstm, x)
        if rival == "static_rnn":
            return torch.stack(static_rnn(cell, x.unbind(1))[0], 1)
        return dynamic_rnn(cell, x, backend="native", memory=POLICIES[rival])[0]

    def run(count: int) -> Peak:
        x, d_y = inputs_of(count, torch.float32)
        room._free.clear()  # what SaveAll keeps for the next call
        with Peak() as peak:
            unroll(x).backward(d_y)
        return peak

    run(200)
    runs = [run(steps) for _ in range(max(1, AT_LEAST // steps))]
    return {"bytes": runs[0].bytes, "seconds": statistics.median(peak.seconds for peak in runs)}


def measure_ratios(units: int, rows: int, steps: int, rounds: int) -> dict:
    """Medians over interleaved rounds: seconds of the processor, of the thread that steps, and of the clock."""
    cell = nn.LSTMCell(FEATURES, units)
    x, d_y = torch.randn(steps, rows, FEATURES), torch.randn(steps, rows, units)

    def run(policy: MemoryPolicy) -> Peak:
        cell.zero_grad()
        with Peak() as taken:
            dynamic_rnn(cell, x, time_major=True, memory=policy, backend="native")[0].backward(d_y)
        return taken

    for policy in POLICIES.values():
        run(policy)
    taken = {name: [] for name in POLICIES}
    for _ in range(rounds):
        for name, policy in POLICIES.items():
            taken[name].append(run(policy))
    return {
        name: [statistics.median(times) for times in zip(*((t.seconds, t.own, t.clock) for t in runs))]
        for name, runs in taken.items()
    }


def measure_chunks(steps: int) -> dict:
    """A loss per step of inputs that nobody holds: each chunk is made when it is asked for."""
    torch.manual_seed(0)
    cell = nn.LSTMCell(FEATURES, UNITS)

    def chunks(count: int) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, count, 1000):
            size = min(1000, count - start)
            yield torch.randn(1, size, FEATURES), torch.randn(1, size, UNITS)

    def run(count: int) -> None:
        unroll_loss(cell, chunks(count), None, squared, backend="native")[0].backward()

    run(1000)
    with Peak() as peak:
        run(steps)
    return {"bytes": peak.bytes, "seconds": peak.seconds}


def measure_static(way: str, lengths: list[int]) -> dict:
    """The graph that a backward pass will walk: its nodes, the time to build it, the memory that it holds.

    `static_rnn` builds it anew at each call. `dynamic_rnn` traces and compiles at the first one, whatever T is. After
    its nodes have been looked at, PyTorch takes a graph apart by recursion: that needs a stack that grows with T.
    """
    torch.manual_seed(0)

    def run(units: int, steps: int) -> dict:
        cell = nn.LSTMCell(FEATURES, units)
        x, _ = inputs_of(steps, torch.float32)

        def unroll() -> Tensor:
            if way == "static_rnn":
                return torch.stack(static_rnn(cell, x.unbind(1))[0], 1)
            return dynamic_rnn(cell, x, backend="native", memory=Recompute())[0]

        began = time.process_time()
        unroll()
        first = time.process_time() - began
        with Peak() as later:
            outputs = unroll()
        build = later.seconds if way == "static_rnn" else first - later.seconds
        return {"steps": steps, "bytes": later.bytes - outputs.nbytes, "build": build, "nodes": _nodes(outputs)}

    run(UNITS + len(lengths), 5)
    # Other sizes, so that each is compiled anew.
    return {"points": [run(UNITS + place, steps) for place, steps in enumerate(lengths)]}


def _nodes(outputs: Tensor) -> int:
    seen, waiting = set(), [outputs.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
    return len(seen)


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


def ratios(quick: bool) -> None:
    """What a policy costs beside SaveAll."""
    for units, rows, steps in ((128, 1, 10_000), (256, 32, 1000)):
        found = fresh(__file__, "ratios", units, rows, steps, 3 if quick else 7)
        print(f"LSTM {units}, inputs of {FEATURES}, B {rows}, T {steps:,}: SaveAll takes {found['SaveAll'][0]:.3f} s")
        for name in ("Recompute", "Spill"):
            processor, thread, clock = (mine / best for mine, best in zip(found[name], found["SaveAll"]))
            print(
                f"  {name:10} {clock:.2f} times by the clock; {processor:.2f} times the processor's time, "
                f"{thread:.2f} times that of the thread that steps",
                flush=True,
            )


BUDGET_COLUMNS = ("budget MB", "predicted MB", "measured MB", "difference", "")


def _fault(r: dict) -> str:
    if r["measured"] > 1.05 * r["limit"]:
        return "above"
    near = abs(r["measured"] - r["predicted"]) <= max(0.1 * r["predicted"], 4 * MB)
    return "" if near else "far"


LENGTHS = [1000, 10_000, 100_000, 1_000_000]
STATIC_LENGTHS = [10, 100, 1000, 10_000]
STACK_BYTES = 1 << 30
MOST_SECONDS = 600
MOST_OF_MEMORY = 0.7
"""Of what is free: the rest is for other processes, and for what the prediction misses."""
INPUT_BYTES = 4 * (FEATURES + 2 * UNITS)
"""Of a step: its input, its output and that one's gradient."""


def curve(quick: bool, ways: list[str]) -> None:
    """Time and peak memory against the number of steps, each in a process of its own; quick: to 100,000 steps."""
    rows = [row for row in _measured() if row["kind"] == "static" or row["rival"] not in ways]
    for way in ways:
        before: list[dict] = []
        for steps in LENGTHS[:-1] if quick else LENGTHS:
            before.append({"kind": "curve", "rival": way, "steps": steps, **_point(way, steps, before)})
            _note(before[-1])
            _keep(rows + before)
        rows += before
    draw(rows)


def _point(way: str, steps: int, before: list[dict]) -> dict:
    """Measured, or why it is not: as far as shorter runs say, it would not fit, or they did not either."""
    if before:
        last = before[-1]
        if "not run" in last:
            return {"not run": last["not run"]}
        more = steps / last["steps"]
        wanted, seconds = max(last["bytes"], 0) * more + INPUT_BYTES * steps, last["seconds"] * more
        if wanted > MOST_OF_MEMORY * available():
            return {"not run": f"would take {wanted / MB:,.0f} MB, and {available() / MB:,.0f} MB are free"}
        if seconds > MOST_SECONDS:
            return {"not run": f"would take {seconds / 60:.0f} minutes"}
    try:
        if way == "unroll_loss":
            return fresh(__file__, "loss", steps, "Recompute", "float32", "")
        return fresh(__file__, "curve", way, steps)
    except Failed as error:
        return {"not run": error.reason}


def static(quick: bool) -> None:
    """The graphs of static unrolling, and of the loop."""
    rows = [row for row in _measured() if row["kind"] != "static"]
    lengths = STATIC_LENGTHS[:-1] if quick else STATIC_LENGTHS
    for way in ("static_rnn", "dynamic_rnn"):
        for point in fresh(__file__, "static", way, lengths, stack=STACK_BYTES)["points"]:
            rows.append({"kind": "static", "rival": way, **point})
            _note(rows[-1])
        _keep(rows)
    draw(rows)


def _measured() -> list[dict]:
    path = RESULTS / "memory.json"
    return json.loads(path.read_text()) if path.exists() else []


def _keep(rows: list[dict]) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "memory.json").write_text(json.dumps(rows, indent=1) + "\n")


def _note(row: dict) -> None:
    named = f"{row['kind']:7} {row['rival']:12} T {row['steps']:9,}"
    if "not run" in row:
        print(f"{named} not run: {row['not run']}", flush=True)
        return
    rest = {k: v for k, v in row.items() if k not in ("kind", "rival", "steps", "loss", "bytes")}
    print(f"{named} {row['bytes'] / MB:9.1f} MB", rest, flush=True)


MEASUREMENTS: dict[str, Callable[..., dict]] = {
    "loss": measure_loss,
    "curve": measure_curve,
    "chunks": measure_chunks,
    "static": measure_static,
    "ratios": measure_ratios,
    "budget": measure_budget,
}


def main() -> None:
    if sys.argv[1:2] == ["--measure"]:
        torch.set_num_threads(1)
        Path("/proc/self/oom_score_adj").write_text("1000")  # a machine that runs out takes this process, no other
        print(json.dumps(MEASUREMENTS[sys.argv[2]](*json.loads(sys.argv[3]))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shows = {"million": million, "budget": budget, "ratios": ratios, "static": static}
    parser.add_argument("what", choices=[*shows, "curve", "draw"])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--of", nargs="+", choices=list(LABELS), default=list(LABELS))
    given = parser.parse_args()
    if given.what == "draw":
        draw(_measured())
    elif given.what == "curve":
        curve(given.quick, given.of)
    else:
        shows[given.what](given.quick)


if __name__ == "__main__":
    main()
