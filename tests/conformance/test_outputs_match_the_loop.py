"""Guarantee: outputs and final state are those of the plain loop over the user's own cell."""

from dataclasses import replace

import pytest
import torch

from conformance.cases import assert_same, by_definition, by_library, draw_case
from conformance.descriptors import TOLERANCES, Descriptor, over

LENGTHS = {"full": [4, 4, 4], "ragged": [2, 5, 1, 5, 3], "with empty rows": [0, 3, 0, 1], "one row": [3]}


@over()
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_outputs_and_state(descriptor: Descriptor, backend: str, lengths: list[int], dtype: torch.dtype) -> None:
    case = draw_case(descriptor, lengths, max(lengths) + 1, dtype)
    with torch.no_grad():
        got, want = by_library(case, backend), by_definition(case)
    assert_same(replace(got, gradients={}), replace(want, gradients={}), dtype)
