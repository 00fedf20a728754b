"""`unroll_loss` is the plain loop with a loss per step; its gradients too; it is traced once."""

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from throughtime import Recompute, SaveAll, SequenceError, Spill, dynamic_rnn, unroll_loss
from throughtime._pipeline import compilations
from throughtime.cells import DropoutWrapper, GRUCell, LSTMCell

BACKENDS = ["native", "portable"]
LENGTHS = [50, 7, 0, 33]


def squared(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().mean(-1)


def unreduced(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).abs()


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    return -(output.log_softmax(-1) * target).sum(-1)


def plain_losses(cell: Any, x: Tensor, y: Tensor, state: Any, loss_step: Any) -> tuple[Tensor, Any]:
    """The definition, for rows of LENGTHS: [B, T], zero past the end."""
    losses = x.new_zeros(x.shape[:2])
    finals = []
    for row, length in enumerate(LENGTHS):
        h = state[row : row + 1]
        for t in range(length):
            h = cell(x[row : row + 1, t], h)
            loss = loss_step(h, y[row : row + 1, t]).reshape(1, -1).sum()
            losses = losses.index_put((torch.tensor(row), torch.tensor(t)), loss)
        finals.append(h)
    return losses, torch.cat(finals)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("loss_step", [squared, unreduced])
def test_means_the_plain_loop(loss_step: Any, reduction: Any, backend: Any) -> None:
    cell = nn.GRUCell(3, 5).double()
    x, y = (torch.randn(4, 50, n, dtype=torch.float64, requires_grad=True) for n in (3, 5))
    h = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    wanted, final = plain_losses(cell, x, y, h, loss_step)
    weights = torch.rand(4, 50, dtype=torch.float64)
    reduced = {"mean": wanted.sum() / sum(LENGTHS), "sum": wanted.sum(), "none": wanted}[reduction]
    found, state = unroll_loss(cell, x, y, loss_step, LENGTHS, h, reduction=reduction, backend=backend)
    torch.testing.assert_close(found, reduced)
    torch.testing.assert_close(state, final)
    over = (x, y, h, *cell.parameters())
    totals = [
        ((loss * weights).sum() if reduction == "none" else loss) + end.sum()
        for loss, end in ((found, state), (reduced, final))
    ]
    for a, b in zip(*(torch.autograd.grad(total, over) for total in totals)):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
def test_time_major_and_classes(backend: Any) -> None:
    cell = nn.LSTMCell(3, 6)
    x, y = torch.randn(20, 4, 3), torch.randint(6, (20, 4))
    chances = nn.functional.one_hot(y, 6).float()
    outputs, _ = dynamic_rnn(cell, x, time_major=True)
    wanted = nn.functional.cross_entropy(outputs.flatten(0, 1), y.flatten(), reduction="none").view(20, 4)
    found, _ = unroll_loss(cell, x, chances, cross_entropy, reduction="none", time_major=True, backend=backend)
    torch.testing.assert_close(found, wanted)


def test_cells_that_find_their_sizes_at_the_first_call() -> None:
    cell = LSTMCell(5)
    loss, _ = unroll_loss(cell, torch.randn(2, 9, 3), torch.randn(2, 9, 5), squared, backend="native")
    loss.backward()
    assert all(p.grad is not None for p in cell.parameters())


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_drawn_once_a_row(backend: Any) -> None:
    cell = DropoutWrapper(GRUCell(8, input_size=3), output_keep_prob=0.5, variational_recurrent=True)
    x, y = torch.randn(3, 40, 3), torch.zeros(3, 40, 8)
    torch.manual_seed(2)
    outputs, _ = dynamic_rnn(cell, x, [40, 3, 20], backend=backend)
    torch.manual_seed(2)
    losses, _ = unroll_loss(cell, x, y, squared, [40, 3, 20], reduction="none", backend=backend)
    torch.testing.assert_close(losses, outputs.square().mean(-1))


def test_no_steps() -> None:
    loss, state = unroll_loss(nn.GRUCell(3, 5), torch.randn(2, 4, 3), torch.randn(2, 4, 5), squared, [0, 0])
    assert loss == 0
    assert torch.equal(state, torch.zeros(2, 5))


def test_is_traced_once() -> None:
    cell, x, y = nn.GRUCell(3, 5), torch.randn(2, 40, 3), torch.randn(2, 40, 5)
    before = compilations()
    for steps in (40, 40, 17):
        unroll_loss(cell, x[:, :steps], y[:, :steps], squared, backend="native")
    assert compilations() == before + 1


def test_a_loss_that_is_defined_anew_is_traced_once() -> None:
    cell, x, y = nn.GRUCell(3, 5), torch.randn(2, 40, 3), torch.randn(2, 40, 5)
    before = compilations()
    for _ in range(3):
        unroll_loss(cell, x, y, lambda output, target: (output - target).abs().sum(-1), backend="native")
    assert compilations() == before + 1


def test_another_loss_is_traced_anew() -> None:
    cell, x, y = nn.GRUCell(3, 5), torch.randn(2, 40, 3), torch.randn(2, 40, 5)
    found = [unroll_loss(cell, x, y, loss, backend="native")[0] for loss in (squared, unreduced, squared)]
    assert found[0] == found[2] != found[1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_cells_are_let_go(backend: Any) -> None:
    """The library keeps neither a cell nor what a loss closes over once its user dropped both."""

    def train() -> list[weakref.ref]:
        cell, scale = nn.GRUCell(3, 5), torch.ones(5, requires_grad=True)
        x, y = torch.randn(2, 9, 3), torch.randn(2, 9, 5)
        unroll_loss(cell, x, y, lambda o, t: (scale * (o - t)).abs(), backend=backend)[0].backward()
        return [weakref.ref(cell), weakref.ref(scale)]

    gone = train()
    gc.collect()
    assert [reference() for reference in gone] == [None, None]


def test_policies_change_no_bit() -> None:
    cell, x, y = nn.LSTMCell(3, 5), torch.randn(1, 400, 3), torch.randn(1, 400, 5)
    found = []
    for memory in (SaveAll(), None, Recompute(32), Spill()):
        loss, _ = unroll_loss(cell, x, y, squared, memory=memory, backend="native")
        found.append((loss.detach(), *torch.autograd.grad(loss, list(cell.parameters()))))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other))


@pytest.mark.parametrize(
    "loss_step", [lambda o, t: (o - t).square().mean(), lambda o, t: 3.0, lambda o, t: o[:2].sum(1)]
)
@pytest.mark.filterwarnings("ignore:dynamic_rnn runs this cell step by step")
@pytest.mark.parametrize("backend", ["auto", "portable"])
def test_a_loss_that_is_not_by_row(loss_step: Any, backend: Any) -> None:
    with pytest.raises(SequenceError, match="loss_step must return one loss per row"):
        unroll_loss(nn.GRUCell(3, 5), torch.randn(4, 6, 3), torch.randn(4, 6, 5), loss_step, backend=backend)


def test_an_unknown_reduction() -> None:
    with pytest.raises(ValueError, match="reduction must be 'mean', 'sum' or 'none', got 'max'"):
        unroll_loss(nn.GRUCell(3, 5), torch.randn(4, 6, 3), torch.randn(4, 6, 5), squared, reduction="max")  # type: ignore[arg-type]


def test_targets_of_another_length() -> None:
    with pytest.raises(SequenceError, match="share their batch and time axes"):
        unroll_loss(nn.GRUCell(3, 5), torch.randn(4, 6, 3), torch.randn(4, 7, 5), squared)
