"""Ragged sensor recordings, 5 to 80 steps -> a class each. A cell of one's own, with a leak learned per unit."""

import torch
from torch import nn

import throughtime


class LearnedLeak(nn.Module):
    """h = a * h + (1 - a) * tanh(W x + U h), with one learned leak a per unit."""

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.state_size = units
        self.into = nn.Linear(inputs, units)
        self.within = nn.Linear(units, units, bias=False)
        self.leak = nn.Parameter(torch.linspace(-1, 4, units))

    def forward(self, x, h):
        a = torch.sigmoid(self.leak)
        h = a * h + (1 - a) * torch.tanh(self.into(x) + self.within(h))
        return h, h


def recordings(rows: int, steps: int = 80):
    """Three noisy channels; the label says whether the first one's mean over the real steps is above zero."""
    lengths = torch.randint(5, steps + 1, (rows,))
    inputs = torch.randn(rows, steps, 3) + 0.4 * torch.randn(rows, 1, 3)
    real = torch.arange(steps) < lengths[:, None]
    labels = (inputs[:, :, 0] * real).sum(1) > 0
    inputs[~real] = torch.nan  # padding is never read, so it may hold anything
    return inputs, lengths, labels.float()


def main() -> None:
    torch.manual_seed(0)
    cell, head = LearnedLeak(3, 32), nn.Linear(32, 1)
    optimizer = torch.optim.Adam([*cell.parameters(), *head.parameters()], lr=0.01)
    for step in range(121):
        inputs, lengths, labels = recordings(64)
        _, state = throughtime.dynamic_rnn(cell, inputs, lengths)
        logits = head(state)[:, 0]
        loss = nn.functional.binary_cross_entropy_with_logits(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 40 == 0:
            right = ((logits > 0) == (labels > 0)).float().mean()
            print(f"step {step:3d}   loss {loss:.3f}   right {right:.0%}")
    assert loss < 0.5, "the training must have learned something"


if __name__ == "__main__":
    main()
