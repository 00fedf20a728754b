"""gather_tree and its kin, against the walk that they mean."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from throughtime import LSTMStateTuple
from throughtime.decode import gather_tree, gather_tree_from_array, tile_batch


def walk(ids, parents, length, end, row, k):
    steps = len(ids)
    found, beam = [end] * steps, k
    for t in reversed(range(min(length, steps))):
        found[t] = int(ids[t, row, beam])
        beam = int(parents[t, row, beam])
    if end in found:
        found = [*found[: found.index(end)], *[end] * (steps - found.index(end))]
    return found


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 6), st.integers(1, 3), st.integers(1, 4), st.integers(0, 2**31))
def test_gather_tree_is_the_walk(steps: int, rows: int, beams: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 4, (steps, rows, beams), generator=g)
    parents = torch.randint(0, beams, (steps, rows, beams), generator=g)
    lengths = torch.randint(0, steps + 3, (rows,), generator=g)
    for end in (0, 9):
        got = gather_tree(ids, parents, lengths, end)
        for row in range(rows):
            for k in range(beams):
                assert got[:, row, k].tolist() == walk(ids, parents, int(lengths[row]), end, row, k)


def test_arrays_follow_the_same_paths() -> None:
    torch.manual_seed(0)
    parents = torch.randint(0, 3, (5, 2, 3))
    lengths = torch.tensor([[5, 4, 5], [2, 1, 2]])
    array = torch.arange(5 * 2 * 3 * 2).view(5, 2, 3, 2)
    got = gather_tree_from_array(array, parents, lengths)
    assert torch.equal(gather_tree_from_array(array.flatten(1, 2), parents, lengths), got.flatten(1, 2))
    for row in range(2):
        for k in range(3):
            beam, longest = k, int(lengths[row].max())
            for t in reversed(range(5)):
                here = beam if t < int(lengths[row, k]) else k
                assert torch.equal(got[t, row, k], array[t, row, here])
                beam = int(parents[t, row, beam]) if t < longest else beam


def test_tile_batch_takes_nested_values() -> None:
    state = LSTMStateTuple(torch.arange(2), torch.arange(4).view(2, 2))
    tiled = tile_batch({"state": state}, 2)["state"]
    assert tiled.c.tolist() == [0, 0, 1, 1]
    assert tiled.h.tolist() == [[0, 1], [0, 1], [2, 3], [2, 3]]


@pytest.mark.parametrize("parent", [-1, 3, 4])
def test_a_parent_must_be_a_beam(parent: int) -> None:
    """TensorFlow lets the number of beams itself pass."""
    ids, parents = torch.zeros(3, 2, 3, dtype=torch.long), torch.zeros(3, 2, 3, dtype=torch.long)
    parents[2, 1, 0] = parent
    with pytest.raises(ValueError, match="invalid parent id at step 2, row 1"):
        gather_tree(ids, parents, [3, 3], 9)
    gather_tree(ids, parents, [3, 2], 9)  # past the row's length nothing is read
