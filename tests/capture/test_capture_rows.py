"""Where the rows are: views and transpositions of merged and moved row axes, against real tensors."""

from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from throughtime.capture.graph import ROWS, Input
from throughtime.capture.interpret import run_node
from throughtime.capture.rows import FRONT, MixedRows, Place, find_place, graph_axes, graph_shape, list_sizes, moved
from throughtime.capture.values import Value, Values

B = 11  # a prime, as the rows of a trace are


def test_front() -> None:
    assert find_place((B, 3, 4), B) == FRONT
    assert graph_shape((B, 3, 4), FRONT) == (ROWS, 3, 4)
    assert find_place((3, 4), B) is None
    assert graph_shape((3, 4), None) == (3, 4)


def test_merged_and_moved() -> None:
    assert moved((B, 3, 4), FRONT, (3 * B, 4), B) == Place(0, 1, 3)
    assert moved((3, B, 4), Place(1), (3 * B, 4), B) == Place(0, 3, 1)
    assert moved((3 * B, 4), Place(0, 3, 1), (3, 4 * B), B) == Place(1, 1, 4)
    assert graph_shape((2, 12 * B, 5), Place(1, 3, 4)) == (ROWS, 2, 3, 4, 5)
    assert [graph_axes(i, Place(1, 3, 4)) for i in range(3)] == [(1,), (0, 2, 3), (4,)]
    assert [graph_axes(i, Place(1)) for i in range(3)] == [(1,), (0,), (2,)]


@pytest.mark.parametrize(
    ("before", "place", "after"),
    [((B, 4), FRONT, (4, B)), ((B, 4), FRONT, (2, 2 * B)), ((4, B), Place(1), (B * 2, 2))],
)
def test_a_view_that_cuts_rows(before: tuple[int, ...], place: Place, after: tuple[int, ...]) -> None:
    with pytest.raises(MixedRows, match="cuts the row axis"):
        moved(before, place, after, B)


def test_sizes_in_messages() -> None:
    assert list_sizes((B, 4, 3 * B, 0), B) == "[B, 4, 3*B, 0]"


def _run(v: Values, value: Value, env: dict[str, Tensor]) -> Tensor:
    for node in v.builder.nodes:
        env[node.name] = run_node(node, env, B)
    return env[value.ref.name]


def _as_the_cell_sees_it(graph: Tensor, sizes: tuple[int, ...], place: Place) -> Tensor:
    front = prod(sizes[: place.axis]) * place.before
    return graph.reshape(B, front, -1).transpose(0, 1).reshape(sizes)


@given(st.data())
def test_views_and_transpositions_agree_with_torch(data: st.DataObject) -> None:
    """A walk of random views that torch would take, until one mixes rows; each must say so or be right."""
    v = Values(B)
    sizes = (B, *data.draw(st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=3)))
    real = torch.arange(prod(sizes)).reshape(sizes)
    value = v.input(_described(sizes), sizes)
    env = {"x": real}
    for _ in range(data.draw(st.integers(1, 4))):
        if data.draw(st.booleans()):
            dims = data.draw(st.permutations(range(len(value.sizes))))
            real, value = real.permute(dims), v.permute(value, dims)
        else:
            new_sizes = _regrouped(data, tuple(value.sizes))
            real = real.reshape(new_sizes)
            try:
                value = v.view(value, new_sizes)
            except MixedRows:
                assert _mixes_rows(real, sizes)
                return
    assert value.place is not None
    assert torch.equal(_as_the_cell_sees_it(_run(v, value, env), value.sizes, value.place), real)


def _described(sizes: tuple[int, ...]) -> Input:
    return Input("x", "xs", "x", graph_shape(sizes, FRONT), torch.int64)


def _regrouped(data: st.DataObject, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Neighbouring axes merged, or one axis split in two."""
    axis = data.draw(st.integers(0, len(sizes) - 1))
    if data.draw(st.booleans()) and axis + 1 < len(sizes):
        return (*sizes[:axis], sizes[axis] * sizes[axis + 1], *sizes[axis + 2 :])
    factors = [f for f in range(1, sizes[axis] + 1) if sizes[axis] % f == 0]
    factor = data.draw(st.sampled_from(factors))
    return (*sizes[:axis], factor, sizes[axis] // factor, *sizes[axis + 1 :])


def _mixes_rows(real: Tensor, sizes: tuple[int, ...]) -> bool:
    """Whether no axis of this tensor is the rows alone, merged with whole neighbours."""
    row_of = real // prod(sizes[1:])
    for axis in range(row_of.dim()):
        for after in range(1, row_of.shape[axis] + 1):
            if row_of.shape[axis] % (after * B):
                continue
            split = row_of.reshape(*row_of.shape[:axis], -1, B, after, *row_of.shape[axis + 1 :])
            expected = torch.arange(B).reshape(B, *[1] * (split.dim() - axis - 2))
            if bool((split == expected).all()):
                return False
    return True
