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


@pytest.mark.parametrize(("memory", "rooms"), [(Recompute(32), [1]), (Spill(), [2, 2])], ids=str)
def test_segments_share_room(memory: Any, rooms: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a pass, also where the backward pass begins with the shortest: one each, two beside a file."""
    passes: list[list[tuple[int, ...]]] = []
    room, begin = execute._Pass._room, execute._Pass.__init__

    def beginning(self: Any, *given: Any) -> None:
        passes.append([])
        begin(self, *given)

    def noting(self: Any, *given: Any) -> dict[str, Tensor]:
        made = room(self, *given)
        passes[-1].append(tuple(tensor.data_ptr() for tensor in made.values()))
        held.append(made)
        return made

    held: list[dict[str, Tensor]] = []  # so that no address is another's later
    monkeypatch.setattr(execute._Pass, "__init__", beginning)
    monkeypatch.setattr(execute._Pass, "_room", noting)
    monkeypatch.setattr("throughtime.plan.memory.SEGMENT_BYTES", 1000)
    x = torch.randn(3, 200, 3)
    dynamic_rnn(CELL, x, [200, 90, 10], memory=memory, backend="native")[0].sum().backward()
    assert [len(found) for found in passes if found] == [7] * len(rooms)
    assert [len(set(found)) for found in passes if found] == rooms
