"""A rollout with several episodes in each row -> one call. `reset=` forgets at the first step of every episode."""

from itertools import pairwise

import torch
from torch import nn

import throughtime


def main() -> None:
    torch.manual_seed(0)
    rows, steps = 8, 100
    observations = torch.randn(rows, steps, 6)
    first = torch.rand(rows, steps) < 0.05  # true where an episode begins
    cell = throughtime.GRUCell(16, input_size=6)
    carried = torch.randn(rows, 16)  # from the rollout before: its episode goes on in this one

    outputs, state = throughtime.dynamic_rnn(cell, observations, initial_state=carried, reset=first)
    value = nn.Linear(16, 1)(outputs)
    value.square().mean().backward()

    # The same, episode by episode, in a loop over the rows.
    for row in range(rows):
        begins = [0, *first[row].nonzero()[:, 0].tolist(), steps]
        h = carried[row : row + 1]
        for start, stop in pairwise(begins):
            if first[row, start]:
                h = cell.initial_state(1)
            for t in range(start, stop):
                output, h = cell(observations[row : row + 1, t], h)
                assert torch.allclose(output, outputs[row, t], atol=1e-5)
        assert torch.allclose(h[0], state[row], atol=1e-5)
    print(f"{rows} rows of {steps} steps held {int(first.sum()) + rows} episodes; one call gave what the loop gives")
    print(f"gradient of the kernel: norm {cell.candidate.kernel.grad.norm():.4f}")


if __name__ == "__main__":
    main()
