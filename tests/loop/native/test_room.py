"""Guarantee: room that nothing uses is lent again, never while something uses it, and little of it is kept."""

import gc

import torch

from throughtime import dynamic_rnn
from throughtime.loop.native.room import Room, room

SHAPE = (300, 100)


def test_lent_again_when_nothing_uses_it() -> None:
    own = Room(1 << 20)
    tensor = own.empty(SHAPE, torch.float32)
    address, view = tensor.data_ptr(), tensor[5:]
    del tensor
    other = own.empty(SHAPE, torch.float32)
    assert other.data_ptr() != address  # a view still uses it
    del view
    assert own.kept > 0
    assert own.empty(SHAPE, torch.float32).data_ptr() == address


def test_shape_and_dtype() -> None:
    own = Room(1 << 20)
    for dtype in (torch.float32, torch.float64, torch.int64):
        for shape in (SHAPE, (0, 3), (1, 1), (50_001,)):
            tensor = own.empty(shape, dtype)
            assert tensor.shape == shape
            assert tensor.dtype == dtype
            assert tensor.data_ptr() % 16 == 0
            tensor.fill_(1)


def test_sizes_that_are_near_share_room() -> None:
    own = Room(1 << 20)
    address = own.empty((30_000,), torch.float32).data_ptr()
    assert own.empty((30_100,), torch.float32).data_ptr() == address


def test_little_is_kept() -> None:
    own = Room(1 << 20)
    held = [own.empty((100_000,), torch.float32) for _ in range(6)]
    del held
    assert 0 < own.kept <= 1 << 20


def test_outputs_are_the_users_own() -> None:
    """What a call returns does not change when the next call runs."""
    cell, x = torch.nn.GRUCell(8, 64), torch.randn(64, 40, 8)
    outputs, _ = dynamic_rnn(cell, x, backend="native")
    before = outputs.detach().clone()
    gradient = torch.autograd.grad(outputs.sum(), list(cell.parameters()), retain_graph=True)
    other, _ = dynamic_rnn(cell, -x, backend="native")
    other.sum().backward()
    del other
    gc.collect()
    assert torch.equal(outputs, before)
    assert all(map(torch.equal, gradient, torch.autograd.grad(outputs.sum(), list(cell.parameters()))))
    assert room.kept > 0
