"""Guarantee: noise in a cell is reproducible from PyTorch's seed, and distributed as in the plain loop."""

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
