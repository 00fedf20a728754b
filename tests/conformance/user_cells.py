"""Cells as users write them, one trait each. None of them knows anything of the library."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "ConvCell",
    "CountingCell",
    "DictStateCell",
    "EmbeddingCell",
    "FastWeightsCell",
    "InPlaceCell",
    "LayerNormLSTM",
    "LearnedStartCell",
    "MemoryCell",
    "NestedInputCell",
    "NoStateCell",
    "Readings",
    "ReadoutCell",
    "SpikingCell",
    "StackedLSTM",
    "TupleOutputCell",
    "TwoWidthsCell",
    "closing_over",
    "in_order",
    "leaky",
]


def leaky(x: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor]:
    """A plain function without weights, that takes None for its start."""
    h = torch.zeros_like(x) if h is None else h
    h = 0.75 * h + torch.tanh(x) * torch.sigmoid(h)
    return h, h


def in_order(x: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor]:
    """Compares the features of a row."""
    h = torch.tanh(x if h is None else x + h.sort(-1).values)
    return h, h


def log_gamma(x: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor]:
    h = torch.tanh(x if h is None else x + torch.lgamma(1 + h.square()))
    return h, h


def closing_over(weight: Tensor, bias: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """A function that closes over trainable tensors, and returns its state only."""

    def cell(x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(torch.cat([x, h], -1) @ weight + bias)

    return cell


class DictStateCell(nn.Module):
    """Nested state of three shapes; the next state lists its keys in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.state_size = {"fast": 3, "slow": {"a": 3, "b": torch.Size([2, 3])}}
        self.map = nn.Linear(2 + 3, 3)

    def forward(self, x: Tensor, state: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        fast = torch.tanh(self.map(torch.cat([x, state["fast"]], -1)))
        a = 0.9 * state["slow"]["a"] + fast
        b = 0.5 * state["slow"]["b"] + torch.sin(fast).unsqueeze(1)
        return fast + b.sum(1), {"slow": {"b": b, "a": a}, "fast": fast}


class TwoWidthsCell(nn.Module):
    """Two states of different widths, each of which drives the other."""

    state_size = (3, 5)

    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.wide = nn.Linear(2 + 5, 3), nn.Linear(3, 5, bias=False)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, list[Tensor]]:
        narrow, wide = state
        next_narrow = torch.relu(self.narrow(torch.cat([x, wide], -1))) - 0.1 * narrow
        next_wide = torch.tanh(self.wide(narrow)) + 0.5 * wide
        return next_narrow, [next_narrow, next_wide]


class ReadoutCell(nn.Module):
    """The output is no part of the state, and as wide as neither state nor input."""

    state_size = 4

    def __init__(self) -> None:
        super().__init__()
        self.map, self.read = nn.Linear(3 + 4, 4), nn.Linear(4 + 3, 2)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = F.gelu(self.map(torch.cat([x, h], -1)))
        return F.softmax(self.read(torch.cat([h, x], -1)), -1), h


class NoStateCell(nn.Module):
    """A feedforward layer among the steps: its state is empty."""

    state_size = ()

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(3, 4)

    def forward(self, x: Tensor, state: tuple[()]) -> tuple[Tensor, tuple[()]]:
        return torch.tanh(self.map(x)), state


class EmbeddingCell(nn.Module):
    """Token ids in, one a step."""

    state_size = 4

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, 3)
        self.core = nn.GRUCell(3, 4)

    def forward(self, ids: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = self.core(self.embed(ids), h)
        return h, h


class LayerNormLSTM(nn.Module):
    """An LSTM with layer normalisation of its gates and of its memory."""

    state_size = (4, 4)

    def __init__(self) -> None:
        super().__init__()
        self.x, self.h = nn.Linear(3, 16, bias=False), nn.Linear(4, 16, bias=False)
        self.norm_x, self.norm_h, self.norm_c = nn.LayerNorm(16), nn.LayerNorm(16), nn.LayerNorm(4)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        h, c = state
        i, f, g, o = (self.norm_x(self.x(x)) + self.norm_h(self.h(h))).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(self.norm_c(c))
        return h, (h, c)


class Readings(NamedTuple):
    level: Tensor
    parts: dict[str, Tensor]


class TupleOutputCell(nn.Module):
    """A named tuple with a dict in it as the output; one leaf has no axis of features."""

    def __init__(self) -> None:
        super().__init__()
        self.state_size = [4]
        self.core = nn.RNNCell(3, 4)

    def forward(self, x: Tensor, state: list[Tensor]) -> tuple[Readings, list[Tensor]]:
        h = self.core(x, state[0])
        return Readings(h.sum(-1), {"field": h.reshape(-1, 2, 2), "twice": 2 * h}), [h]


class CountingCell(nn.Module):
    """A float state beside a whole-number one, which counts the row's steps and is read as a clock."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(3 + 4, 4)

    def initial_state(self, batch_size: int, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
        h = torch.zeros(batch_size, 4, dtype=dtype, device=device)
        return {"h": h, "step": torch.zeros(batch_size, 1, dtype=torch.int64, device=device)}

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        h = torch.tanh(self.map(torch.cat([x, state["h"]], -1)))
        even = state["step"] % 2 == 0
        h = torch.where(even, h, 0.5 * state["h"])
        return h, {"h": h, "step": state["step"] + 1}


class LearnedStartCell(nn.Module):
    """The state before the first step is a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.core = nn.GRUCell(3, 4)
        self.start = nn.Parameter(torch.randn(4))

    def initial_state(self, batch_size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        return self.start.expand(batch_size, 4)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = self.core(x, h)
        return h, h


class MemoryCell(nn.Module):
    """Each row attends over a memory of its own, the same at all steps."""

    state_size = 4

    def __init__(self, rows: int = 16) -> None:
        super().__init__()
        self.memory = nn.Parameter(torch.randn(rows, 3, 4))
        self.core = nn.RNNCell(3 + 4, 4)

    def row_consts(self, batch_size: int, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
        return {"memory": self.memory[:batch_size]}

    def forward(self, x: Tensor, h: Tensor, row_consts: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        memory = row_consts["memory"]
        weights = F.softmax(torch.einsum("rmh,rh->rm", memory, h), -1)
        context = torch.einsum("rm,rmh->rh", weights, memory)
        h = self.core(torch.cat([x, context], -1), h)
        return h, h


class NestedInputCell(nn.Module):
    """Two inputs a step, one of them with two axes of features and one of whole numbers."""

    state_size = 4

    def __init__(self) -> None:
        super().__init__()
        self.look, self.act = nn.Linear(6, 4), nn.Embedding(5, 4)
        self.back = nn.Linear(4, 4)

    def forward(self, x: dict[str, Tensor], h: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.look(x["image"].flatten(1)) + self.act(x["action"]) + self.back(h))
        return h, h


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, membrane: Tensor) -> Tensor:
        ctx.save_for_backward(membrane)
        return (membrane > 0).to(membrane.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (membrane,) = ctx.saved_tensors
        return grad / (1 + 4 * membrane.abs()) ** 2


class SpikingCell(nn.Module):
    """A leaky integrate-and-fire neuron with a gradient of its own."""

    state_size = 4

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(3, 4)
        self.leak = nn.Parameter(torch.tensor(0.8))

    def forward(self, x: Tensor, membrane: Tensor) -> tuple[Tensor, Tensor]:
        membrane = self.leak * membrane + self.map(x)
        spikes: Tensor = _Spike.apply(membrane - 0.3)  # type: ignore[assignment]
        return spikes, membrane - 0.3 * spikes


class FastWeightsCell(nn.Module):
    """A matrix per row as the state: an outer product is added, a product per row is read."""

    state_size = (4, torch.Size([4, 4]))

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(3 + 4, 4)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        h, fast = state
        h = self.map(torch.cat([x, h], -1))
        fast = 0.9 * fast + 0.5 * h.unsqueeze(2) * h.unsqueeze(1)
        h = torch.tanh(h + torch.bmm(fast, h.unsqueeze(2)).squeeze(2))
        return h, (h, fast)


class ConvCell(nn.Module):
    """A convolution over two axes of features."""

    state_size = torch.Size([2, 5])

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1 + 2, 2, 3, padding=1)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.conv(torch.cat([x, h], 1)))
        return h, h


class InPlaceCell(nn.Module):
    """Works in place on values of its own making."""

    state_size = 4

    def __init__(self) -> None:
        super().__init__()
        self.x, self.h = nn.Linear(3, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        pre = self.x(x)
        pre += self.h(h)
        h = pre.tanh_()
        out = torch.empty_like(h)
        out[:, :2] = h[:, 2:]
        out[:, 2:] = h[:, :2] * 2
        return out, h


class StackedLSTM(nn.Module):
    """Two of PyTorch's cells on top of each other, with a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.LSTMCell(3, 4), nn.LSTMCell(4, 4)])

    def initial_state(self, batch_size: int, dtype: torch.dtype, device: torch.device) -> list[tuple[Tensor, Tensor]]:
        zeros = torch.zeros(batch_size, 4, dtype=dtype, device=device)
        return [(zeros, zeros), (zeros, zeros)]

    def forward(self, x: Tensor, state: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        lower = self.layers[0](x, state[0])
        upper = self.layers[1](lower[0], state[1])
        return lower[0] + upper[0], [lower, upper]
