"""How long does the first call of a cell take? Tracing, planning and machine code, forwards and backwards.

    python benchmarks/compile_time.py

The first cell of a process also pays for PyTorch's own lazy imports. Processor time, which others do not disturb.
"""

import time
from collections.abc import Callable

import torch
from torch import nn

import throughtime
from throughtime import dynamic_rnn
from throughtime.cells import contrib

CELLS: dict[str, Callable[[], nn.Module]] = {
    "nn.LSTMCell, the first": lambda: nn.LSTMCell(8, 16),
    "nn.GRUCell": lambda: nn.GRUCell(8, 16),
    "LSTMCell, peepholes, projection": lambda: throughtime.LSTMCell(16, use_peepholes=True, num_proj=12, input_size=8),
    "three layers, dropout, residual": lambda: throughtime.MultiRNNCell(
        [
            throughtime.LSTMCell(16, input_size=8),
            throughtime.DropoutWrapper(throughtime.GRUCell(16), output_keep_prob=0.5),
            throughtime.ResidualWrapper(throughtime.GRUCell(16)),
        ]
    ),
    "LayerNormBasicLSTMCell": lambda: contrib.LayerNormBasicLSTMCell(16),
}


def main() -> None:
    torch.set_num_threads(1)
    x = torch.randn(4, 6, 8)
    print(f"{'cell':<36}{'first call':>12}{'second call':>13}   (seconds of the processor)")
    for name, make in CELLS.items():
        cell = make()
        print(f"{name:<36}{seconds(lambda: train(cell, x)):>12.3f}{seconds(lambda: train(cell, x)):>13.4f}")  # noqa: B023


def train(cell: nn.Module, x: torch.Tensor) -> None:
    dynamic_rnn(cell, x, [6, 1, 4, 3], backend="native")[0].sum().backward()


def seconds(call: Callable[[], None]) -> float:
    begin = time.process_time()
    call()
    return time.process_time() - begin


if __name__ == "__main__":
    main()
