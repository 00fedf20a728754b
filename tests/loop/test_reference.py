"""A plan, run plainly, gives what the loop over the cell gives: outputs, final state and each gradient by name."""

from random import Random

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from conformance.cases import assert_same, by_definition, draw_case
from conformance.descriptors import DESCRIPTORS, by_name
from conformance.strategies import random_cells
from loop.by_plan import by_plan, plan_case
from plan.odd_cells import ODD
from plan.plain_pair import bind_random, run_pair, run_plan
from plan.random_pairs import random_pair
from throughtime import cells
from throughtime.capture import trace_step
from throughtime.plan.make import make_plan

SOME = by_name("nn.GRUCell", "MultiRNNCell", "row constants", "whole-number state", "convolution", "learned start")
CHUNKS = [1, 3, 32]
# To make a failing case smaller traces it anew hundreds of times; the case as it is found says enough.
PHASES = [Phase.explicit, Phase.reuse, Phase.generate]


@pytest.mark.parametrize("descriptor", [pytest.param(d, id=d.name) for d in (*DESCRIPTORS, *ODD)])
def test_every_cell(descriptor):
    case = draw_case(descriptor, [3, 0, 7, 2, 7], initial=descriptor.name != "learned start")
    want = by_definition(case)
    planned = plan_case(case)
    for chunk in CHUNKS:
        assert_same(by_plan(planned, chunk), want, case.dtype)


@settings(max_examples=25, phases=PHASES)
@given(st.sampled_from([*SOME, *ODD]), st.lists(st.integers(0, 5), max_size=4), st.integers(1, 6), st.integers(0, 100))
def test_any_lengths_in_any_chunks(descriptor, lengths, chunk, seed):
    case = draw_case(descriptor, lengths, max(lengths, default=0) + 1, seed=seed, initial=True)
    assert_same(by_plan(plan_case(case), chunk), by_definition(case), case.dtype)


@settings(max_examples=25, phases=PHASES)
@given(random_cells(), st.lists(st.integers(0, 4), min_size=1, max_size=3), st.integers(1, 4), st.integers(0, 100))
def test_cells_at_random(descriptor, lengths, chunk, seed):
    case = draw_case(descriptor, lengths, seed=seed, initial=True)
    assert_same(by_plan(plan_case(case), chunk), by_definition(case), case.dtype)


LENGTHS = st.lists(st.sampled_from([0, 1, 2, 5, 7]), min_size=1, max_size=4).map(lambda ls: sorted(ls, reverse=True))


@settings(max_examples=60)
@given(st.integers(0, 2**32), LENGTHS)
def test_whatever_a_step_and_its_backward_part_compute_the_plan_computes(seed, lengths):
    assert_plan_is_pair(random_pair(Random(seed)), lengths)


def test_noise_is_read_in_both_directions():
    cell = cells.DropoutWrapper(cells.LSTMCell(4, input_size=3), 0.7, 0.6, 0.8).double()
    state = cell.initial_state(2, torch.float64)
    pair = trace_step(cell, torch.zeros(2, 3, dtype=torch.float64, requires_grad=True), state).pair
    assert len(pair.forward.of_kind("noise")) == 3
    assert_plan_is_pair(pair, [5, 4, 1, 0])


def assert_plan_is_pair(pair, lengths):
    bound = bind_random(pair, lengths, seed=0)
    want = run_pair(pair, bound)
    plan = make_plan(pair)
    for chunk in CHUNKS:
        got = run_plan(plan, bound, chunk)
        for what, a, b in named(got, want):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11, msg=lambda text, what=what: f"{what}: {text}")


def named(got, want):
    """(name, got, wanted) of every output, final carry and gradient that is not None."""
    columns = {"ys": (got[0], want[0]), "carry": (got[1], want[1])}
    for kind in ("consts", "row_consts", "xs", "carry"):
        columns[f"d_{kind}"] = (getattr(got[2], kind), getattr(want[2], kind))
    for kind, (ours, theirs) in columns.items():
        assert [a is None for a in ours] == [b is None for b in theirs], kind
        yield from ((f"{kind}[{i}]", a, b) for i, (a, b) in enumerate(zip(ours, theirs)) if a is not None)
