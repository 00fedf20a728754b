"""Batches in which no row has a step: they have a backward pass, in which everything gets exact zeros."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from throughtime import GRUCell, Recompute, dynamic_rnn, unroll_loss

BACKENDS = ["native", "portable"]
EMPTY = [(3, 5, [0, 0, 0]), (3, 0, None), (0, 5, None)]
EMPTY_IDS = ["lengths 0", "T 0", "B 0"]


class Scaled(nn.Module):
    """A parameter that is used, one that is not, a tensor that is made of another, and a division by a zero state."""

    state_size = 4

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRUCell(3, 4)
        self.unused = nn.Parameter(torch.ones(2))
        self.raw = nn.Parameter(torch.ones(4))
        self.scale = self.raw * 2

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        return self.scale / h, self.gru(x, h)


def is_zero(gradient: Tensor | None) -> bool:
    return gradient is not None and bool((gradient == 0).all())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("rows", "steps", "lengths"), EMPTY, ids=EMPTY_IDS)
@pytest.mark.parametrize("of", ["outputs", "state"])
def test_whatever_the_step_reads_gets_zeros(of: str, rows: int, steps: int, lengths: Any, backend: Any) -> None:
    """Zero times the infinity that the step divides by would be NaN."""
    cell, x = Scaled(), torch.randn(rows, steps, 3, requires_grad=True)
    outputs, state = dynamic_rnn(cell, x, lengths, backend=backend)
    assert outputs.shape == (rows, steps, 4)
    used = [*cell.gru.parameters(), cell.raw, cell.scale, x]
    loss = outputs.sum() if of == "outputs" else state.sum()
    found = torch.autograd.grad(loss, [*used, cell.unused], allow_unused=True)
    assert all(map(is_zero, found[:-1]))
    assert found[-1] is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_final_state_is_a_copy_of_the_first_and_passes_its_gradient_on(backend: Any) -> None:
    """Entry by entry, a negative zero and a NaN too."""
    start = torch.tensor([[-0.0, float("nan"), 1.0, 2.0]], requires_grad=True)
    _, state = dynamic_rnn(Scaled(), torch.randn(1, 5, 3), [0], start, backend=backend)
    assert state.detach().numpy().tobytes() == start.detach().numpy().tobytes()
    assert state.data_ptr() != start.data_ptr()
    (found,) = torch.autograd.grad(state, start, torch.arange(4.0)[None])
    assert found.tolist() == [[0.0, 1.0, 2.0, 3.0]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_closed_over_tensors_row_constants_and_the_start_of_resets(backend: Any) -> None:
    outside, scale = torch.ones(3, requires_grad=True), torch.ones(2, 3, requires_grad=True)
    put_back = torch.zeros(2, 3, requires_grad=True)

    class Cell(nn.Module):
        state_size = 3

        def row_consts(self, batch_size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
            return scale

        def forward(self, x: Tensor, h: Tensor, row_consts: Tensor) -> tuple[Tensor, Tensor]:
            h = (h + x * outside) * row_consts
            return h, h

    reset = torch.zeros(2, 5, dtype=torch.bool)
    outputs, _ = dynamic_rnn(Cell(), torch.ones(2, 5, 3), [0, 0], reset=reset, reset_state=put_back, backend=backend)
    assert all(map(is_zero, torch.autograd.grad(outputs.sum(), [outside, scale, put_back])))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("rows", "steps", "lengths"), EMPTY, ids=EMPTY_IDS)
def test_a_loss_per_step(rows: int, steps: int, lengths: Any, backend: Any) -> None:
    cell, scale = GRUCell(4, input_size=3), torch.ones(4, requires_grad=True)
    x, y = torch.randn(rows, steps, 3), torch.randn(rows, steps, 4)

    def squared(output: Tensor, target: Tensor) -> Tensor:
        return (scale * output - target).square().mean(-1)

    loss, _ = unroll_loss(cell, x, y, squared, lengths, memory=Recompute(), backend=backend)
    loss.backward()
    assert loss.item() == 0
    assert all(is_zero(value.grad) for value in (*cell.parameters(), scale))


@pytest.mark.parametrize("backend", BACKENDS)
def test_where_nothing_is_trained_there_is_no_graph(backend: Any) -> None:
    x = torch.randn(3, 5, 3)
    with torch.no_grad():
        outputs, state = dynamic_rnn(Scaled(), x, [0, 0, 0], backend=backend)
    frozen, _ = dynamic_rnn(nn.GRUCell(3, 4).requires_grad_(False), x, [0, 0, 0], backend=backend)
    assert not any(value.requires_grad for value in (outputs, state, frozen))


def test_whole_numbers_in_the_state_stay_as_they_are() -> None:
    def counts(x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Any]:
        h, n = state
        return h, (h + x, n + 1)

    x = torch.randn(2, 5, 3, requires_grad=True)
    _, (h, n) = dynamic_rnn(counts, x, [0, 0], (torch.zeros(2, 3), torch.tensor([3, 4])), backend="portable")
    h.sum().backward()
    assert is_zero(x.grad)
    assert n.tolist() == [3, 4]


def test_under_transforms_of_functions_and_with_forward_derivatives() -> None:
    gru = nn.GRUCell(3, 4)
    values: dict[str, Tensor] = dict(gru.named_parameters())

    def loss(values: dict[str, Tensor], x: Tensor) -> Tensor:
        def cell(x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            return (torch.func.functional_call(gru, values, (x, h)),) * 2

        return dynamic_rnn(cell, x, [0, 0], torch.zeros(2, 4), backend="portable")[0].sum()

    x = torch.randn(2, 5, 3)
    assert all(map(is_zero, torch.func.grad(loss)(values, x).values()))
    assert torch.func.vmap(lambda x: loss(values, x))(torch.randn(3, 2, 5, 3)).tolist() == [0, 0, 0]
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        assert loss(values, dual).item() == 0
