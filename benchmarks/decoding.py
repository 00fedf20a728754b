"""How fast is decoding? `generate` beside the loop that people write in eager PyTorch, in one process, interleaved.

    python benchmarks/decoding.py [--rounds 7] [--threads 2]

The eager loop runs all rows until the last has said its end token, as a loop without `generate` does. Beam search runs
beside the same search row by row. With one thread, processor time is measured.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from rich.progress import track
from timing import interleaved
from torch import Tensor, nn

from throughtime import Beam, generate

END, START = 0, 1


class Counted(nn.Module):
    """A GRU cell that knows how many steps its row has left, so that lengths can be set."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.cell = nn.GRUCell(units, units)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        h, left = state
        h = self.cell(x, h)
        return torch.cat([h, left], -1), (h, left - 1)


class Layer(nn.Module):
    """Logits; the end token wins when no step is left, and never before."""

    end: Tensor

    def __init__(self, units: int, vocabulary: int) -> None:
        super().__init__()
        self.linear = nn.Linear(units, vocabulary)
        end = torch.zeros(vocabulary)
        end[END] = 1e4
        self.register_buffer("end", end)

    def forward(self, output: Tensor) -> Tensor:
        h, left = output[..., :-1], output[..., -1:]
        return self.linear(h) + self.end * torch.where(left <= 1, 1.0, -1.0)


@dataclass(frozen=True)
class Case:
    """target: the ratio asked for in the project's issue."""

    name: str
    rows: int
    units: int
    vocabulary: int
    even_lengths: bool
    target: float


CASES = [
    Case("greedy, 64 rows, 128 units, 100 tokens", 64, 128, 100, False, 3.0),
    Case("greedy, 64 rows, 512 units, 8000 tokens, lengths 1 to 100", 64, 512, 8000, True, 2.2),
]
STEPS = 100


class Model:
    def __init__(self, case: Case) -> None:
        torch.manual_seed(1)
        self.cell, self.layer = Counted(case.units), Layer(case.units, case.vocabulary)
        self.table = torch.randn(case.vocabulary, case.units)
        lengths = torch.linspace(1, STEPS, case.rows).round() if case.even_lengths else torch.full((case.rows,), STEPS)
        self.state = (torch.randn(case.rows, case.units), lengths.float().unsqueeze(1))
        self.starts = [START] * case.rows

    def ours(self) -> Tensor:
        found = generate(
            self.cell, self.starts, END, embed=self.table, output_layer=self.layer, initial_state=self.state
        )
        return found.ids

    @torch.no_grad()
    def eager(self) -> Tensor:
        ids, state = torch.tensor(self.starts), self.state
        done = torch.zeros(len(ids), dtype=torch.bool)
        chosen, scores = [], torch.zeros(len(ids))
        while not done.all():
            output, state = self.cell(self.table[ids], state)
            log_p = torch.log_softmax(self.layer(output), -1)
            best, ids = log_p.max(-1)
            ids = torch.where(done, END, ids)
            scores += torch.where(done, 0.0, best)
            chosen.append(ids)
            done |= ids == END
        return torch.stack(chosen, 1)


def greedy(case: Case, rounds: int) -> tuple[float, float]:
    model = Model(case)
    assert torch.equal(model.ours(), model.eager()), "both loops choose the same tokens"
    return both(model.ours, model.eager, rounds)


def beam(rounds: int) -> tuple[float, float]:
    """32 rows at width 5, at once and row by row."""
    torch.manual_seed(1)
    cell, table, layer = nn.GRUCell(64, 128), torch.randn(100, 64), nn.Linear(128, 100)
    state = torch.randn(32, 128)

    def search(rows: slice) -> Tensor:
        given = state[rows]
        options = {"embed": table, "output_layer": layer, "initial_state": given, "max_steps": 30}
        return generate(cell, [START] * len(given), END, strategy=Beam(width=5), **options).ids

    return both(lambda: search(slice(0, 32)), lambda: [search(slice(row, row + 1)) for row in range(32)], rounds)


def both(ours: Callable[[], object], rival: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Median seconds."""
    times = interleaved({"ours": ours, "rival": rival}, rounds)
    return times["ours"], times["rival"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    runs = [(case.name, case.target, partial(greedy, case, options.rounds)) for case in CASES]
    runs += [("beam of 5, 32 rows, beside row by row", 8.0, partial(beam, options.rounds))]
    results = [(name, target, *run()) for name, target, run in track(runs, "measuring")]
    print(f"{options.threads} threads, medians of {options.rounds} interleaved rounds")
    for name, target, ours, rival in results:
        line = f"ours {ours * 1e3:8.1f} ms   rival {rival * 1e3:8.1f} ms   ratio {rival / ours:5.2f}  (asked {target})"
        print(f"{name:<58} {line}")


if __name__ == "__main__":
    main()
