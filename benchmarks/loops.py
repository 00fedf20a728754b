"""How fast are compiled loops? Training steps and inference beside PyTorch's own layers and the plain loop.

Rivals run in the same process, interleaved with ours; the ratio of the medians is printed, with the arithmetic of real
steps per second and the machine's own matrix product from the same run.

    python benchmarks/loops.py [--rounds 7] [--only lstm-256] [--json results.json] [--picture docs/images/loops.png]
"""

import argparse
import copy
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.progress import track
from timing import interleaved
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from throughtime import dynamic_rnn

LAYERS = {"lstm": (nn.LSTM, nn.LSTMCell, 4), "gru": (nn.GRU, nn.GRUCell, 3), "rnn": (nn.RNN, nn.RNNCell, 1)}
PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


@dataclass(frozen=True)
class Case:
    """One row of the table.

    target: the ratio asked for in the project's issue, on a machine with AVX-512. rival: PyTorch's layer, alone, in
    bfloat16 or under autocast (as we are then); the loop that people write, with the step as it is or compiled.
    """

    name: str
    kind: str
    batch: int
    steps: int
    inputs: int
    units: int
    ragged: bool
    training: bool
    target: float
    rival: str = "layer"


@dataclass(frozen=True)
class Result:
    name: str
    rival: str
    ours_ms: float
    rival_ms: float
    ratio: float
    target: float
    gflops: float
    product_gflops: float


CASES = [
    Case("lstm-256 dense", "lstm", 64, 200, 256, 256, False, True, 1.5),
    Case("lstm-256 ragged", "lstm", 64, 200, 256, 256, True, True, 7.0),
    Case("lstm-150 dense", "lstm", 150, 28, 28, 150, False, True, 1.6),
    Case("lstm-150 ragged", "lstm", 150, 28, 28, 150, True, True, 3.3),
    Case("lstm-512 dense", "lstm", 128, 100, 512, 512, False, True, 1.3),
    Case("lstm-512 ragged", "lstm", 128, 100, 512, 512, True, True, 6.0),
    Case("lstm-128 ragged", "lstm", 16, 500, 64, 128, True, True, 20.0),
    Case("gru-256 dense", "gru", 64, 200, 256, 256, False, True, 2.0),
    Case("gru-256 ragged", "gru", 64, 200, 256, 256, True, True, 5.0),
    Case("rnn-150 dense", "rnn", 150, 28, 28, 150, False, True, 1.7),
    Case("layer-norm-128 dense", "norm", 16, 500, 64, 128, False, True, 4.0, "plain loop"),
    Case("layer-norm-128 ragged", "norm", 16, 500, 64, 128, True, True, 12.0, "plain loop"),
    Case("layer-norm-256 dense", "norm", 64, 200, 256, 256, False, True, 1.3, "plain loop"),
    Case("lstm-256 ragged", "lstm", 64, 200, 256, 256, True, True, 1.0, "compiled step"),
    Case("layer-norm-128 ragged", "norm", 16, 500, 64, 128, True, True, 1.0, "compiled step"),
    Case("lstm-256 bfloat16", "lstm", 64, 200, 256, 256, False, True, 1.8, "in bfloat16"),
    Case("lstm-256 bfloat16", "lstm", 64, 200, 256, 256, False, True, 1.8, "autocast"),
    Case("lstm-256 inference dense", "lstm", 64, 200, 256, 256, False, False, 1.0),
    Case("lstm-256 inference ragged", "lstm", 64, 200, 256, 256, True, False, 1.5),
    Case("lstm-128 inference one row", "lstm", 1, 1000, 64, 128, False, False, 1.4),
]


class LayerNormLSTM(nn.Module):
    """A user's own cell, in plain PyTorch."""

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.state_size = (units, units)
        self.gates = nn.Linear(inputs + units, 4 * units)
        self.norm, self.norm_c = nn.LayerNorm(4 * units), nn.LayerNorm(units)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        h, c = state
        i, f, g, o = self.norm(self.gates(torch.cat([x, h], -1))).chunk(4, -1)
        c = torch.sigmoid(f + 1) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(self.norm_c(c))
        return h, (h, c)


class PlainLSTM(nn.Module):
    """`nn.LSTMCell` with its output apart."""

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.state_size = (units, units)
        self.cell = nn.LSTMCell(inputs, units)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        h, c = self.cell(x, state)
        return h, (h, c)


def lengths_of(case: Case) -> Tensor:
    """max(1, floor(T u^2)), u uniform, one row of T steps, longest first."""
    if not case.ragged:
        return torch.full((case.batch,), case.steps)
    lengths = (torch.rand(case.batch) ** 2 * case.steps).long().clamp(1, case.steps)
    lengths[0] = case.steps
    return lengths.sort(descending=True).values


def run_case(case: Case, rounds: int) -> Result | str:
    """A result, or why the rival does not run on this machine."""
    torch.manual_seed(1)
    x, lengths = torch.randn(case.batch, case.steps, case.inputs), lengths_of(case)
    cell, rival = make_pair(case, x, lengths)
    try:
        rival()
    except RuntimeError as error:
        return f"{case.name}: {name_of_rival(case)} does not run here ({str(error).splitlines()[0][:90]})"
    matrix = torch.randn(1024, 1024)

    def ours() -> Tensor:
        with autocast(case.rival in ("in bfloat16", "autocast")):
            return dynamic_rnn(cell, x, lengths if case.ragged else None, backend="native")[0]

    runs = {
        "ours": whole_step(ours, cell, case.training),
        "rival": whole_step(rival, cell, case.training),
        "product": lambda: matrix @ matrix,
    }
    medians = interleaved(runs, rounds)
    return Result(
        case.name,
        name_of_rival(case),
        medians["ours"] * 1e3,
        medians["rival"] * 1e3,
        medians["rival"] / medians["ours"],
        case.target,
        flops(case, int(lengths.sum())) / medians["ours"] / 1e9,
        2 * 1024**3 / medians["product"] / 1e9,
    )


def autocast(enabled: bool) -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled)


def name_of_rival(case: Case) -> str:
    if case.rival in ("plain loop", "compiled step"):
        return case.rival
    words = (f"nn.{case.kind.upper()}", "packed" if case.ragged else "", case.rival.removeprefix("layer"))
    return " ".join(filter(None, words))


def make_pair(case: Case, x: Tensor, lengths: Tensor) -> tuple[nn.Module, Callable[[], Tensor]]:
    if case.rival in ("plain loop", "compiled step"):
        cell = LayerNormLSTM(case.inputs, case.units) if case.kind == "norm" else PlainLSTM(case.inputs, case.units)
        step = torch.compile(cell) if case.rival == "compiled step" else cell
        return cell, lambda: plain_loop(step, x, lengths, case.units)
    layer_class, cell_class, _ = LAYERS[case.kind]
    layer, cell = layer_class(case.inputs, case.units, batch_first=True), cell_class(case.inputs, case.units)
    for name in PARAMETERS:
        getattr(cell, name).data.copy_(getattr(layer, f"{name}_l0").data)
    if case.rival == "in bfloat16":
        rounded = copy.deepcopy(layer).bfloat16()
        return cell, lambda: rounded(x.bfloat16())[0]
    if not case.ragged:

        def padded() -> Tensor:
            with autocast(case.rival == "autocast"):
                return layer(x)[0]

        return cell, padded

    def packed() -> Tensor:
        outputs, _ = layer(pack_padded_sequence(x, lengths, batch_first=True))
        return pad_packed_sequence(outputs, batch_first=True)[0]

    return cell, packed


def plain_loop(cell: Callable, x: Tensor, lengths: Tensor, units: int) -> Tensor:
    """The masked loop that people write."""
    state = (x.new_zeros(len(x), units), x.new_zeros(len(x), units))
    outputs = []
    for t in range(x.shape[1]):
        output, following = cell(x[:, t], state)
        running = (t < lengths).unsqueeze(1)
        state = tuple(torch.where(running, new, old) for new, old in zip(following, state))
        outputs.append(torch.where(running, output, 0.0))
    return torch.stack(outputs, 1)


def whole_step(outputs: Callable[[], Tensor], cell: nn.Module, training: bool) -> Callable[[], object]:
    def train() -> None:
        cell.zero_grad()
        outputs().sum().backward()

    def infer() -> None:
        with torch.no_grad():
            outputs()

    return train if training else infer


def flops(case: Case, pairs: int) -> float:
    """Of real steps. Inputs need no gradient."""
    gates = {"lstm": 4, "gru": 3, "rnn": 1, "norm": 4}[case.kind]
    forward = 2.0 * pairs * gates * case.units * (case.inputs + case.units)
    return 3 * forward - 2.0 * pairs * gates * case.units * case.inputs if case.training else forward


def draw(results: list[Result], path: Path) -> None:
    """Bars of the ratios."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 0.35 * len(results) + 1))
    names = [f"{r.name}  (against {r.rival})" for r in reversed(results)]
    bars = axes.barh(names, [r.ratio for r in reversed(results)], color="#3b7dd8")
    axes.bar_label(bars, fmt="%.1f×", padding=3)
    axes.axvline(1, color="#888888", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlabel("times as fast as the rival (more is better)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, bbox_inches="tight", dpi=120, facecolor="white")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    chosen = [case for case in CASES if options.only in case.name]
    found = [run_case(case, options.rounds) for case in track(chosen, "measuring")]
    results = [result for result in found if isinstance(result, Result)]
    print(f"{options.threads} threads, medians of {options.rounds} interleaved rounds")
    print(
        f"{'case':<28}{'rival':<22}{'ours ms':>9}{'rival ms':>10}{'ratio':>8}{'asked':>7}{'GFLOP/s':>9}{'product':>9}"
    )
    for r in results:
        print(
            f"{r.name:<28}{r.rival:<22}{r.ours_ms:>9.2f}{r.rival_ms:>10.2f}{r.ratio:>8.2f}{r.target:>7.1f}"
            f"{r.gflops:>9.0f}{r.product_gflops:>9.0f}"
        )
    print(*(line for line in found if isinstance(line, str)), sep="\n")
    if options.json:
        options.json.write_text(json.dumps([asdict(r) for r in results], indent=1))
    if options.picture:
        draw(results, options.picture)


if __name__ == "__main__":
    main()
