"""Does memory grow with the number of calls? 10,000 calls of changing shape, and their resident memory.

    python benchmarks/no_leak.py [calls]

Prints the memory at ten points and ends with an error if the second half of the calls left more than 2 MB behind.
Cells come and go too: every 100 calls one is made, run and dropped.
"""

import gc
import resource
import sys

import torch

import throughtime
from throughtime import dynamic_rnn

MOST_GROWTH = 2 << 20


def main(calls: int) -> None:
    torch.manual_seed(0)
    cell = throughtime.LSTMCell(32, input_size=16)
    points = []
    for k in range(calls):
        run(cell, k)
        if k % 100 == 0:
            run(throughtime.GRUCell(4 + k // 100 % 20, input_size=16), k)
        if (k + 1) % (calls // 10) == 0:
            gc.collect()
            points.append(resident_bytes())
            print(f"{k + 1:>6} calls  {points[-1] / 2**20:8.1f} MiB", flush=True)
    growth = points[-1] - points[len(points) // 2 - 1]
    print(f"the second half: {growth / 2**10:+.0f} KiB")
    if growth > MOST_GROWTH:
        raise SystemExit("memory grows with the number of calls")


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
