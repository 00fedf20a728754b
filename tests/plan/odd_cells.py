"""Cells whose state moves in odd ways: delayed, handed on, left alone, put back, dropped."""

import torch
from torch import Tensor, nn

from conformance.definition import real, whole
from conformance.descriptors import Descriptor, Subject

__all__ = ["ODD"]


class ShiftRegister(nn.Module):
    """Convolves over the last three inputs, which are its state."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(9, 4)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        last, before = state
        return torch.tanh(self.map(torch.cat([x, last, before], -1))), (x, last)


class DelayedProduct(nn.Module):
    """Reads, one step late, what needs no state."""

    def __init__(self) -> None:
        super().__init__()
        self.map, self.read = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor, late: Tensor) -> tuple[Tensor, Tensor]:
        return self.read(torch.tanh(late)) * x[:, :2], self.map(x)


class Untouched(nn.Module):
    """Attends over a memory that it carries in its state and never changes."""

    def __init__(self) -> None:
        super().__init__()
        self.ask = nn.Linear(3 + 4, 4)

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        memory, h = state["memory"], state["h"]
        query = self.ask(torch.cat([x, h], -1))
        weights = torch.softmax((memory * query.unsqueeze(1)).sum(-1), -1)
        h = torch.tanh((weights.unsqueeze(-1) * memory).sum(1))
        return weights, {"memory": memory, "h": h}


class Swapped(nn.Module):
    """Two states that change places; the output is one of them as it came."""

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        left, right = state
        return left, (right, left)


class InputIsState(nn.Module):
    """The next state, and an output, are the input itself."""

    def forward(self, x: Tensor, state: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        return (x, x - state), x


class TwoCopies(nn.Module):
    """One value becomes two states."""

    def __init__(self) -> None:
        super().__init__()
        self.core = nn.GRUCell(3, 4)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        h = self.core(x, state[0])
        return h - state[1], (h, h)


class PutBack(nn.Module):
    """Begins again where a flag among the inputs says so."""

    def __init__(self, rows: int = 16) -> None:
        super().__init__()
        self.core = nn.LSTMCell(3, 4)
        self.start = nn.Parameter(torch.randn(rows, 4))

    def row_consts(self, batch_size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        return self.start[:batch_size]

    def forward(
        self, x: dict[str, Tensor], state: tuple[Tensor, Tensor], start: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        again = x["again"] == 0
        h, c = (torch.where(again, start, leaf) for leaf in state)
        h, c = self.core(x["x"], (h, c))
        return h, (h, c)


class Linear(nn.Module):
    """Elementwise and linear in the state; its gates come from the input alone."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(3, 8)

    def forward(self, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        forget, new = self.map(x).chunk(2, -1)
        forget = torch.sigmoid(forget)
        c = forget * c + (1 - forget) * new
        return torch.tanh(c), c


class JoinedState(nn.Module):
    """Two layers whose states are columns of one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.lower, self.upper = nn.GRUCell(3, 4), nn.RNNCell(4, 2)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        low, high = state.split([4, 2], -1)
        low = self.lower(x, low)
        high = self.upper(low, high)
        return high, torch.cat([low, high], -1)


class AttentionOverProjection(nn.Module):
    """Projects the memory of each row inside the step, though it is the same at all steps."""

    def __init__(self, rows: int = 16) -> None:
        super().__init__()
        self.memory = nn.Parameter(torch.randn(rows, 3, 5))
        self.keys, self.query = nn.Linear(5, 4), nn.Linear(3 + 4, 4)
        self.score = nn.Linear(4, 1, bias=False)

    def row_consts(self, batch_size: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor]:
        return (self.memory[:batch_size],)

    def forward(self, x: Tensor, h: Tensor, row_consts: tuple[Tensor]) -> tuple[Tensor, Tensor]:
        (memory,) = row_consts
        query = self.query(torch.cat([x, h], -1))
        scores = self.score(torch.tanh(self.keys(memory) + query.unsqueeze(1))).squeeze(-1)
        context = torch.bmm(torch.softmax(scores, -1).unsqueeze(1), memory).squeeze(1)
        return context, torch.tanh(query)


def _made(make):
    def with_dtype(dtype: torch.dtype) -> Subject:
        cell = make().to(dtype)
        return Subject(cell, dict(cell.named_parameters()))

    return with_dtype


def _step(cell, x, state, row_consts):
    return cell(x, state, row_consts) if hasattr(cell, "row_consts") else cell(x, state)


def _row(name, make, inputs, state, output):
    return Descriptor(name, _made(make), inputs, state, output, _step, knows_start=False)


# fmt: off
ODD = [
    _row("shift register", ShiftRegister, real(3), (real(3), real(3)), real(4)),
    _row("delayed product", DelayedProduct, real(3), real(4), real(2)),
    _row("untouched memory", Untouched, real(3), {"memory": real(3, 4), "h": real(4)}, real(3)),
    _row("swapped states", Swapped, real(3), (real(4), real(4)), real(4)),
    _row("input is state", InputIsState, real(3), real(3), (real(3), real(3))),
    _row("two copies", TwoCopies, real(3), (real(4), real(4)), real(4)),
    _row("put back", PutBack, {"x": real(3), "again": whole(3, 1)}, (real(4), real(4)), real(4)),
    _row("linear in the state", Linear, real(3), real(4), real(4)),
    _row("joined state", JoinedState, real(3), real(6), real(2)),
    _row("projected memory", AttentionOverProjection, real(3), real(4), real(5)),
]
# fmt: on
