"""A loss at every step of a long sequence -> its gradient, in memory that hardly grows with the sequence.

python examples/long_sequence.py             20,000 steps
python examples/long_sequence.py 1000000     a million
"""

import resource
import sys
import time

import torch

import throughtime


def squared_error(output, target):
    """One number per row; traced with the cell, so outputs are used where they are made."""
    return (output - target).square().mean(-1)


def main(steps: int) -> None:
    torch.manual_seed(0)
    cell = throughtime.LSTMCell(64, input_size=1)
    time_axis = torch.arange(steps) / 50.0
    inputs = torch.sin(time_axis).reshape(1, steps, 1)
    targets = torch.cos(time_axis).reshape(1, steps, 1)

    def gradient(steps):
        loss, _ = throughtime.unroll_loss(
            cell, inputs[:, :steps], targets[:, :steps], squared_error, memory=throughtime.Recompute()
        )
        loss.backward()
        return loss.item()

    gradient(100)  # the first call compiles
    cell.zero_grad()
    before, start = peak_megabytes(), time.perf_counter()
    loss = gradient(steps)
    seconds, more = time.perf_counter() - start, peak_megabytes() - before
    outputs = steps * 64 * 4 / 2**20
    print(f"{steps:,} steps: loss {loss:.4f}, gradient norm {cell.kernel.grad.norm():.4f}")
    print(f"{seconds:.1f} s; the peak of memory rose by {more:.0f} MB (the outputs alone would be {outputs:.0f} MB)")


def peak_megabytes() -> float:
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
