"""Cells at random: the native backend gives what the plain loop gives, outputs, states and all gradients by name.

`THROUGHTIME_RANDOM_CELLS=10000` says how many cells to try, and `THROUGHTIME_FIRST_CELL=500` which is the first: the
seed of a cell makes it and its call.
"""

import os
from random import Random

import pytest
import torch

from loop.native.random_cells import Call, check, random_call
from throughtime import BackendError

FIRST = int(os.environ.get("THROUGHTIME_FIRST_CELL", "0"))
COUNT = int(os.environ.get("THROUGHTIME_RANDOM_CELLS", "500"))
PARTS = 50


@pytest.mark.parametrize("part", range(PARTS))
def test_cells_at_random(part: int) -> None:
    """Each part tries its share of the cells to the end, and tells all that do not agree."""
    wrong = [told for seed in range(FIRST + part, FIRST + COUNT, PARTS) if (told := difference(seed))]
    assert not wrong, "\n\n".join(wrong)


def difference(seed: int) -> str | None:
    """What is wrong with the cell of a seed, and the cell; None where nothing is. A refusal is wrong too."""
    call = call_of(seed)
    try:
        check(call, torch.float64 if seed % 2 else torch.float32)
    except (AssertionError, BackendError) as error:
        return f"cell {seed}: {error}\n{call!r}"
    return None


def call_of(seed: int) -> Call:
    return random_call(Random(seed))
