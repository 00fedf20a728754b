"""StepPair -> LoopPlan: what goes where, and what is refused."""

import pytest

from plan.written import pair_of, step_of
from throughtime._errors import PlanError
from throughtime.plan.make import make_plan

STEP = step_of(
    """
    const w [4, 4]
    xs x [B, 4]
    carry h [B, 4]
    carry count [B, 4] int64
    """,
    """
    v = mul(w, 2.0) [4, 4]
    a = mm(x, v) [B, 4]
    b = add(a, h) [B, 4]
    next_count = add(count, 1) [B, 4] int64
    """,
    "b h",
    "b next_count",
)
COTANGENTS = """
    d_ys db [B, 4]
    d_ys dh [B, 4]
    d_next_carry dn [B, 4]
"""


def test_what_depends_on_consts_is_done_once_and_its_gradient_after_the_sums():
    gradient = """
        g = add(db, dn) [B, 4]
        gh = add(g, dh) [B, 4]
        xt = permute(x, dims=[1, 0]) [4, B]
        gv = mm(xt, g) [4, 4]
        gw = mul(gv, 2.0) [4, 4]
        vt = permute(v, dims=[1, 0]) [4, 4]
        gx = mm(g, vt) [B, 4]
    """
    plan = make_plan(pair_of(STEP, COTANGENTS, gradient, d_consts="gw", d_xs="gx", d_carry="gh -"))
    assert [node.name for node in plan.once] == ["v", "vt"]
    assert [node.op for node in plan.reductions] == ["outer"]
    assert [node.name for node in plan.after] == ["gw"]
    assert plan.d_consts == ("gw",)
    assert plan.saved == plan.traced == ()
    assert [(s.kind, s.carries) for s in plan.backward] == [("loop", ("d h",)), ("batched", ())]


def test_a_whole_number_state_has_a_loop_and_no_gradient():
    plan = make_plan(pair_of(STEP, COTANGENTS, d_carry="dn -"))
    assert [s.carries for s in plan.forward] == [(), ("count", "h")]
    assert plan.backward == ()


def test_only_the_backward_part_of_a_step_that_needs_gradients_is_planned():
    gradient = "g = mul(db, db) [B, 4]"
    plan = make_plan(pair_of(STEP, COTANGENTS, gradient, d_carry="- -"))
    assert plan.backward == plan.reductions == plan.after == ()


@pytest.mark.parametrize(
    "gradient",
    [
        "gw = amax(g, dims=[0], keepdim=False) [4, 4]",
        "t = permute(g, dims=[1, 0]) [4, B]\ngw = mm(t, t) [4, 4]",
        "gw = sum(g, dims=[1], keepdim=False) [4, 4]",
    ],
)
def test_a_gradient_that_cannot_be_split_over_the_steps_is_refused(gradient):
    nodes = "g = add(db, dn) [B, 4]\n" + gradient
    with pytest.raises(PlanError, match="cannot be split over the steps"):
        make_plan(pair_of(STEP, COTANGENTS, nodes, d_consts="gw"))
