"""Guarantee: noise in a cell is reproducible from PyTorch's seed, and distributed as in the plain loop."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from conformance.descriptors import BACKENDS
from throughtime import dynamic_rnn
from throughtime.cells import DropoutWrapper, GRUCell


class Noisy(nn.Module):
    state_size = 64

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        return F.dropout(x, 0.25), h


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_seed_one_result(backend: str) -> None:
    x = torch.ones(4, 10, 64)
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(dynamic_rnn(Noisy(), x, [10, 3, 0, 7], backend=backend)[0])
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_new_call_draws_anew(backend: str) -> None:
    x = torch.ones(4, 10, 64)
    assert not torch.equal(*(dynamic_rnn(Noisy(), x, backend=backend)[0] for _ in range(2)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_distribution(backend: str) -> None:
    """10,240 draws: dropped with p = 0.25, the others scaled by 1 / 0.75, no two steps or rows alike."""
    torch.manual_seed(0)
    outputs, _ = dynamic_rnn(Noisy(), torch.ones(16, 10, 64), backend=backend)
    kept = outputs != 0
    assert torch.equal(outputs[kept], torch.full_like(outputs[kept], 1 / 0.75))
    assert abs(float(kept.double().mean()) - 0.75) < 4 * (0.25 * 0.75 / kept.numel()) ** 0.5
    masks = {tuple(mask.tolist()) for mask in kept.flatten(0, 1)}
    assert len(masks) == 160


@pytest.mark.parametrize("backend", BACKENDS)
def test_masks_drawn_once_a_sequence(backend: str) -> None:
    torch.manual_seed(0)
    cell = DropoutWrapper(GRUCell(8, input_size=8), output_keep_prob=0.5, variational_recurrent=True)
    outputs, _ = dynamic_rnn(cell, torch.randn(4, 6, 8), [6, 2, 4, 6], backend=backend)
    kept = outputs != 0
    assert torch.equal(kept[0], kept[0, :1].expand(6, 8)), "one mask for all steps of a row"
    assert not torch.equal(kept[0, 0], kept[3, 0]), "another for another row"


def attend_with_dropout(h: Tensor) -> Tensor:
    """PyTorch puts the heads of a row on the axis of rows."""
    weights, value = torch.full((h.shape[0] * 2, 3, 3), 1 / 3, dtype=h.dtype), h.view(-1, 1, 2).repeat(1, 3, 1)
    return torch.bmm(F.dropout(weights, 0.5), value)[:, 0].reshape(h.shape)


DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout": lambda h: F.dropout(h, 0.3),
    "dropout of heads": attend_with_dropout,
    "bernoulli": lambda h: torch.bernoulli(torch.sigmoid(h)),
    "rand": lambda h: torch.rand(h.shape[0], 4, dtype=h.dtype),
    "normal": lambda h: torch.normal(h, 2.0),
    "normal, of a deviation": lambda h: torch.normal(1.0, h.square() + 1),
    "normal, of both": lambda h: torch.normal(h, h.square() + 1),
    "normal, of a size": lambda h: torch.normal(1.0, 2.0, h.shape, dtype=h.dtype),
    "exponential": lambda h: torch.empty_like(h).exponential_(2.0),
    "gumbel softmax": lambda h: F.gumbel_softmax(h, tau=0.7),
    "randint": lambda h: torch.randint(9, h.shape).to(h.dtype) + torch.randint(-2, 3, h.shape).to(h.dtype),
    "randint_like": lambda h: torch.randint_like(h, 9) + torch.randint_like(h, -2, 3),
    "randint_like, of a dtype": lambda h: torch.randint_like(h, 9, dtype=torch.int64).to(h.dtype),
}


class Drawing(nn.Module):
    def __init__(self, draw: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.draw = draw

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        y = self.draw(h)
        return y, torch.tanh(x + h + y / 8)


@pytest.mark.parametrize("draw", DRAWS)
def test_both_backends_draw_the_same(draw: str) -> None:
    cell = Drawing(DRAWS[draw])
    x = torch.randn(3, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = []
    for backend in BACKENDS:
        torch.manual_seed(5)
        outputs, state = dynamic_rnn(cell, x, [6, 1, 3], x[:, 0], backend=backend)
        found.append((outputs, state))
        assert not torch.equal(outputs[0, 0], outputs[0, 1])
    for got in found[1:]:
        torch.testing.assert_close(got, found[0])
