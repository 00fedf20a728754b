"""What a call keeps is let go at once: nothing waits for the garbage collector."""

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from throughtime import Recompute, SaveAll, Spill, dynamic_rnn, unroll_loss
from throughtime.loop.native import execute

CELL = nn.LSTMCell(3, 5)


@pytest.fixture
def garbage() -> Iterator[list[Any]]:
    """What only the collector would have found."""
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    yield gc.garbage
    gc.set_debug(0)
    gc.garbage.clear()
    gc.enable()


def squared(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().mean(-1)


@pytest.mark.parametrize("memory", [SaveAll(), Recompute(32), Spill()], ids=str)
def test_no_tensor_waits_for_the_collector(memory: Any, request: pytest.FixtureRequest) -> None:
    def train() -> None:
        x, y = torch.randn(3, 100, 3), torch.randn(3, 100, 5)
        dynamic_rnn(CELL, x, [100, 40, 7], memory=memory, backend="native")[0].sum().backward()
        unroll_loss(CELL, x, y, squared, memory=memory, backend="native")[0].backward()

    train()
    left = request.getfixturevalue("garbage")
    train()
    gc.collect()
    assert [type(thing) for thing in left if isinstance(thing, Tensor)] == []


@pytest.mark.parametrize("memory", [Recompute(32), Spill()], ids=str)
def test_one_segment_is_held_at_a_time(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    held, go = [], execute._Backward.go

    def noting(backward: Any, start: int, stop: int) -> None:
        held.append(len(backward.kept.residuals))
        go(backward, start, stop)

    monkeypatch.setattr(execute._Backward, "go", noting)
    monkeypatch.setattr("throughtime.plan.memory.SEGMENT_BYTES", 1000)
    dynamic_rnn(CELL, torch.randn(3, 200, 3), memory=memory, backend="native")[0].sum().backward()
    assert held == [1] * 7
