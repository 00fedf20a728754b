"""Guarantee: a backend that cannot run a cell says so; `backend="auto"` then takes the slower one and says it."""

import warnings

import pytest

from conformance.cases import assert_same, by_definition, by_library, draw_case
from conformance.descriptors import DESCRIPTORS, Descriptor, by_name
from throughtime import BackendError, BackendWarning

REFUSED = [(descriptor, backend) for descriptor in DESCRIPTORS for backend in sorted(descriptor.refused_by)]


@pytest.mark.parametrize(("descriptor", "backend"), REFUSED, ids=[f"{d.name}-{backend}" for d, backend in REFUSED])
def test_a_refusal_is_still_one(descriptor: Descriptor, backend: str) -> None:
    """When this fails, the backend has learnt the cell: take it out of `refused_by`."""
    with pytest.raises(BackendError, match="cannot run this cell"):
        by_library(draw_case(descriptor, [2, 1]), backend)


@pytest.mark.parametrize("descriptor", by_name("log gamma"), ids=lambda descriptor: descriptor.name)
def test_never_a_silent_slow_path(descriptor: Descriptor) -> None:
    case = draw_case(descriptor, [3, 0, 2], fresh=True)
    with pytest.warns(BackendWarning, match="step by step in PyTorch"):
        got = by_library(case, "auto")
    assert_same(got, by_definition(case), case.dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        by_library(case, "auto")
