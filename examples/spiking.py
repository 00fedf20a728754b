"""Leaky integrate-and-fire neurons with a surrogate gradient -> neurons that learn to fire at a wanted rate."""

import torch
from torch import nn

import throughtime


class Spike(torch.autograd.Function):
    """1 above the threshold, else 0. The backward pass uses the slope of a smooth step (Zenke and Ganguli 2018)."""

    @staticmethod
    def forward(ctx, distance):
        ctx.save_for_backward(distance)
        return (distance > 0).to(distance.dtype)

    @staticmethod
    def backward(ctx, gradient):
        (distance,) = ctx.saved_tensors
        return gradient / (1 + 10 * distance.abs()) ** 2


class LeakyIntegrateAndFire(nn.Module):
    """The state is a dict: the membrane potential and the spikes of the step before."""

    def __init__(self, inputs: int, units: int, leak: float = 0.9) -> None:
        super().__init__()
        self.state_size = {"potential": units, "spikes": units}
        self.into = nn.Linear(inputs, units)
        self.leak = leak

    def forward(self, current, state):
        kept = self.leak * state["potential"] * (1 - state["spikes"])  # a neuron that fired starts from zero
        potential = kept + self.into(current)
        spikes = Spike.apply(potential - 1.0)
        return spikes, {"potential": potential, "spikes": spikes}


def main() -> None:
    torch.manual_seed(0)
    cell = LeakyIntegrateAndFire(10, 32)
    wanted = torch.linspace(0.05, 0.4, 32)  # spikes per step
    optimizer = torch.optim.Adam(cell.parameters(), lr=0.02)
    for step in range(61):
        current = torch.rand(16, 100, 10)
        spikes, _ = throughtime.dynamic_rnn(cell, current)
        error = (spikes.mean((0, 1)) - wanted).square().mean().sqrt()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        if step % 20 == 0:
            print(f"step {step:2d}   firing rates are off by {error:.3f}")
    assert error < 0.1, "the neurons must have come near their rates"


if __name__ == "__main__":
    main()
