"""`truncated` is back-propagation through time cut by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from throughtime import SequenceError, truncated

CELL = nn.GRUCell(3, 5).double()
X = torch.randn(4, 50, 3, dtype=torch.float64)
LENGTHS = [50, 7, 0, 33]


def by_hand(x: Tensor, lengths: list[int], h: Tensor, window: int, stride: int) -> tuple[list[Tensor], list[Tensor]]:
    """(outputs of each window, gradients of the weights and of x of each window's sum of squares)."""
    found, gradients = [], []
    for start in range(0, x.shape[1], stride):
        stop = min(start + window, x.shape[1])
        outputs, carried = [], h
        for t in range(start, stop):
            if t == start + stride:
                h = carried.detach()
            runs = torch.tensor([[t < length] for length in lengths])
            carried = torch.where(runs, CELL(x[:, t], carried), carried)
            outputs.append(torch.where(runs, carried, 0.0))
        if stop <= start + stride:
            h = carried.detach()
        found.append(torch.stack(outputs, 1))
        gradients.append(torch.autograd.grad(found[-1].square().sum(), [*CELL.parameters(), x], retain_graph=True))
        if stop == x.shape[1]:
            break
    return found, gradients


@pytest.mark.parametrize(("window", "stride"), [(20, 20), (20, 7), (50, 50), (60, 30), (1, 1), (32, None)])
@pytest.mark.parametrize("backend", ["native", "portable"])
def test_means_the_loop_cut_by_hand(window: int, stride: int | None, backend: Any) -> None:
    x = X.clone().requires_grad_()
    h = torch.randn(4, 5, dtype=torch.float64)
    outputs, gradients = by_hand(x, LENGTHS, h, window, stride or window)
    windows = 0
    for wanted, wanted_gradients, found in zip(
        outputs, gradients, truncated(CELL, x, window, stride, LENGTHS, h, backend=backend), strict=True
    ):
        torch.testing.assert_close(found.outputs, wanted)
        over = torch.autograd.grad(found.outputs.square().sum(), [*CELL.parameters(), x])
        for a, b in zip(over, wanted_gradients, strict=True):
            torch.testing.assert_close(a, b)
        windows += 1
    assert windows == len(outputs)


def test_windows_cover_every_step_once() -> None:
    fresh = [(w.start, w.stop, w.fresh) for w in truncated(CELL, X, window=20, stride=8)]
    assert fresh == [(0, 20, 20), (8, 28, 8), (16, 36, 8), (24, 44, 8), (32, 50, 6)]
    whole = torch.cat([w.outputs[:, -w.fresh :] for w in truncated(CELL, X, window=20, stride=8)], 1)
    (once,) = truncated(CELL, X, window=50)
    torch.testing.assert_close(whole, once.outputs)


def test_the_first_window_reaches_the_initial_state() -> None:
    h = torch.zeros(4, 5, dtype=torch.float64, requires_grad=True)
    reached = []
    for w in truncated(CELL, X, window=25, initial_state=h):
        reached.append(torch.autograd.grad(w.outputs.sum(), h, allow_unused=True)[0] is not None)
    assert reached == [True, False]


@pytest.mark.parametrize("make", [iter, list, tuple])
def test_an_iterable_of_windows(make: Any) -> None:
    parts = list(X.split([10, 30, 10], 1))
    found = list(truncated(CELL, make(parts)))
    (once,) = truncated(CELL, X, window=50)
    assert [(w.start, w.stop, w.fresh) for w in found] == [(0, 10, 10), (10, 40, 30), (40, 50, 10)]
    torch.testing.assert_close(torch.cat([w.outputs for w in found], 1), once.outputs)
    torch.testing.assert_close(found[-1].state, once.state)


def test_a_memory_map_that_is_closed_to_writing(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X.numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for a, b in zip(truncated(CELL, mapped, window=20), truncated(CELL, X, window=20), strict=True):
        assert torch.equal(a.outputs, b.outputs)


def test_windows_are_read_when_they_are_asked_for() -> None:
    read = []

    def parts() -> Any:
        for k in range(3):
            read.append(k)
            yield X[:, :10]

    windows = truncated(CELL, parts())
    next(windows)
    assert read == [0]


@pytest.mark.parametrize("window", [None, 0, -3])
def test_no_window(window: int | None) -> None:
    with pytest.raises(SequenceError, match="window is a number of steps, at least 1, got"):
        truncated(CELL, X, window=window)


@pytest.mark.parametrize("stride", [0, 21])
def test_a_stride_that_leaves_steps_out(stride: int) -> None:
    with pytest.raises(SequenceError, match="stride must lie between 1 and the window of 20 steps"):
        truncated(CELL, X, window=20, stride=stride)


@pytest.mark.parametrize("given", [{"stride": 3}, {"sequence_length": [1, 2]}])
def test_an_iterable_knows_its_windows(given: Any) -> None:
    with pytest.raises(SequenceError, match="an iterable brings its windows itself; leave stride and lengths out"):
        truncated(CELL, iter([X]), **given)


@pytest.mark.parametrize("inputs", [[X, X[:, 1:]], [torch.zeros(3)], iter([X]), [], "text"])
def test_inputs_without_common_axes(inputs: Any) -> None:
    with pytest.raises(SequenceError, match="that share their first two axes"):
        truncated(CELL, inputs, window=3)
