"""Guarantee: the cell works on the real (row, step) pairs: their number is the sum of the lengths, not B x T.

The cell counts: each call, and the rows of each call.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from conformance.descriptors import BACKENDS, CALLS_THE_CELL
from conformance.layouts import LAYOUTS
from throughtime import bidirectional_dynamic_rnn, dynamic_rnn, static_rnn

COUNTING = [backend for backend in BACKENDS if backend in CALLS_THE_CELL]


class Counter:
    """A cell that notes how many rows each of its calls has."""

    state_size = 2

    def __init__(self) -> None:
        self.rows: list[int] = []

    def __call__(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        self.rows.append(len(x))
        return x, h


@pytest.mark.parametrize("backend", COUNTING)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_finished_rows_are_dropped(backend: str, layout: str) -> None:
    cell, lengths, chosen = Counter(), [2, 5, 1, 2], LAYOUTS[layout]
    inputs = chosen.encode(torch.randn(4, 5, 2), lengths)
    dynamic_rnn(cell, inputs, lengths if chosen.needs_lengths else None, backend=backend, **chosen.options)
    assert cell.rows == [4, 3, 1, 1, 1]
    assert sum(cell.rows) == sum(lengths)


@pytest.mark.parametrize("backend", COUNTING)
def test_no_step_beyond_the_longest_row(backend: str) -> None:
    cell = Counter()
    dynamic_rnn(cell, torch.randn(2, 1000, 2), [2, 1], backend=backend)
    assert cell.rows == [2, 1]


@pytest.mark.parametrize("backend", COUNTING)
def test_empty_rows_are_never_seen(backend: str) -> None:
    cell = Counter()
    dynamic_rnn(cell, torch.randn(3, 4, 2), [0, 2, 0], backend=backend)
    assert cell.rows == [1, 1]


@pytest.mark.parametrize("backend", COUNTING)
def test_a_reset_costs_no_step(backend: str) -> None:
    cell = Counter()
    dynamic_rnn(cell, torch.randn(2, 3, 2), [3, 2], reset=torch.ones(2, 3).bool(), backend=backend)
    assert cell.rows == [2, 2, 1]


@pytest.mark.parametrize("backend", COUNTING)
def test_both_directions(backend: str) -> None:
    forwards, backwards = Counter(), Counter()
    bidirectional_dynamic_rnn(forwards, backwards, torch.randn(3, 4, 2), [1, 4, 0], backend=backend)
    assert forwards.rows == backwards.rows == [2, 1, 1, 1]


def test_static() -> None:
    cell = Counter()
    static_rnn(cell, [torch.randn(2, 2) for _ in range(5)], sequence_length=[3, 1])
    assert cell.rows == [2, 1, 1]


@pytest.mark.parametrize("backend", COUNTING)
def test_an_unknown_start_costs_two_trials_of_one_row(backend: str) -> None:
    """A cell that says nothing of its state is tried with None, and with the zeros that this showed."""
    seen: list[Any] = []

    def cell(x: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor]:
        seen.append((len(x), h is None))
        h = torch.zeros_like(x) if h is None else h + x
        return h, h

    with pytest.raises(Exception, match="differs from cell"):
        dynamic_rnn(cell, torch.ones(3, 2, 2), backend=backend)
    assert seen == [(1, True), (1, False)]
