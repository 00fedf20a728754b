"""Batches: every row once, alike in length, in an order fixed by seed and epoch, dealt to processes."""

import numpy as np
import pytest
import torch

from fit.made_data import ragged_rows
from throughtime.fit.data.batches import Batch, Batches, padding_share
from throughtime.fit.data.table import Table


def ragged_table(count: int = 200) -> Table:
    rows = ragged_rows(count)["steps"]
    flat = np.asarray([x for row in rows for x in row], np.float32)[:, None]
    lengths = np.asarray([len(row) for row in rows])
    return Table(flat, lengths, np.arange(count) % 2, np.full(count, ""), np.arange(count))


def seen(batches: Batches) -> list[list[int]]:
    return [batch.rows.tolist() for batch in batches]


def test_every_row_comes_once_with_its_own_steps() -> None:
    table = ragged_table()
    rows = []
    for batch in Batches(table, 16, seed=3):
        assert batch.labels is not None
        assert batch.total == len(batch.rows)
        for row, length, values, label in zip(batch.rows, batch.lengths, batch.values, batch.labels):
            rows.append(int(row))
            own = table.values[table.steps_of(np.asarray([int(row)]))]
            assert torch.equal(values[:length], torch.from_numpy(own))
            assert (values[length:] == 0).all()
            assert label == row % 2
    assert sorted(rows) == list(range(200))


def test_the_order_hangs_on_seed_and_epoch_alone() -> None:
    table = ragged_table()
    first = Batches(table, 16, seed=3)
    order = seen(first)
    assert seen(Batches(table, 16, seed=3)) == order
    assert seen(Batches(table, 16, seed=4)) != order
    first.set_epoch(1)
    assert seen(first) != order
    first.set_epoch(0)
    assert seen(first) == order


def test_padding_is_small() -> None:
    table = ragged_table(2000)
    assert padding_share(Batches(table, 16, seed=0)) < 0.03
    by_chance = Batches(table, 16, seed=0)
    lengths = table.lengths[np.random.default_rng(0).permutation(2000)].reshape(-1, 16)
    assert 1 - lengths.sum() / (lengths.max(1) * 16).sum() > 0.3
    assert padding_share(by_chance) < 0.03


@pytest.mark.parametrize("position", [0, 1, 7, 12])
def test_going_on_from_a_position(position: int) -> None:
    table = ragged_table()
    whole = seen(Batches(table, 16, seed=3))
    stopped = Batches(table, 16, seed=3)
    iterator = iter(stopped)
    for _ in range(position):
        next(iterator)
    state = stopped.state_dict()
    resumed = Batches(table, 16, seed=3)
    resumed.load_state_dict(state)
    assert seen(resumed) == whole[position:]
    assert seen(resumed) == whole, "the next epoch begins at its beginning"


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_each_batch(world: int) -> None:
    table = ragged_table(33)  # batches of 8, the last of one row
    alone = list(Batches(table, 8, seed=1))
    shares = [list(Batches(table, 8, seed=1, rank=rank, world=world)) for rank in range(world)]
    for whole, *parts in zip(alone, *shares):
        assert sorted(torch.cat([part.rows for part in parts]).tolist()) == sorted(whole.rows.tolist())
        assert {part.total for part in parts} == {whole.total}
        work = [int(part.lengths.sum()) for part in parts]
        assert max(work) - min(work) <= int(whole.lengths.max())


def test_tokens_stay_whole_numbers() -> None:
    table = Table(np.asarray([3, 1, 2]), np.asarray([1, 2]), None, np.full(2, ""), np.arange(2))
    (batch,) = Batches(table, 5)
    assert isinstance(batch, Batch)
    assert batch.labels is None
    assert batch.values.dtype == torch.int64
    assert batch.values.tolist() == [[1, 2], [3, 0]]
