"""Does memory grow with the number of calls? 10,000 calls of changing shape, and their resident memory.

    python benchmarks/no_leak.py [calls]

Prints the memory at ten points and ends with an error if the second half of the calls left more than 2 MB behind.
Then cells come and go, one for every 100 calls. Each that is compiled leaves something behind, which is printed: LLVM's
passes, as llvmlite 0.50 calls them, keep about 80 KiB of each of its programs.
"""

import gc
import resource
import sys
from collections.abc import Callable

import torch

import throughtime
from throughtime import dynamic_rnn

MOST_GROWTH = 2 << 20


def main(calls: int) -> None:
    torch.manual_seed(0)
    cell = throughtime.LSTMCell(32, input_size=16)
    growth = measure("calls", calls, lambda k: run(cell, k))
    print(f"the second half: {growth / 2**10:+.0f} KiB")
    cells = calls // 100
    made = measure("cells", cells, lambda k: run(throughtime.GRUCell(4 + k % 20, input_size=16), 1))
    print(f"a cell that is made, compiled, run and dropped: {made / (cells // 2) / 2**10:+.0f} KiB")
    if growth > MOST_GROWTH:
        raise SystemExit("memory grows with the number of calls")


def measure(what: str, count: int, work: Callable[[int], None]) -> int:
    """How much the second half of the work leaves behind, in bytes."""
    points = []
    for k in range(count):
        work(k)
        if (k + 1) % (count // 10) == 0:
            gc.collect()
            points.append(resident_bytes())
            print(f"{k + 1:>6} {what}  {points[-1] / 2**20:8.1f} MiB", flush=True)
    return points[-1] - points[len(points) // 2 - 1]


def run(cell: torch.nn.Module, k: int) -> None:
    """Forward and, every other time, backward; rows, steps and lengths change with k."""
    rows, steps = 1 + k * 7 % 13, 1 + k * 31 % 90
    lengths = [1 + (k + 5 * row) % steps for row in range(rows)]
    outputs, _ = dynamic_rnn(cell, torch.randn(rows, steps, 16), lengths, backend="native")
    if k % 2:
        outputs.square().sum().backward()
        cell.zero_grad()


def resident_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
