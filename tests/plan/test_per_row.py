"""What is done once for a row: before the steps, and after them with the sum over them in hand."""

import pytest

from plan.written import pair_of, step_of
from throughtime.plan.make import make_plan

STEP = step_of(
    """
    const w [4, 4]
    row_const m [B, 4]
    xs x [B, 4]
    carry h [B, 4]
    """,
    """
    k = mm(m, w) [B, 4]
    s = add(k, x) [B, 4]
    n = add(s, h) [B, 4]
    """,
    "n",
    "n",
)
COTANGENTS = """
    d_ys dy [B, 4]
    d_next_carry dn [B, 4]
"""


def plan_of(gradient, **results):
    return make_plan(pair_of(STEP, COTANGENTS, "g = add(dy, dn) [B, 4]\n" + gradient, d_carry="g", **results))


def names(nodes):
    return [node.name for node in nodes]


def test_a_product_of_row_consts_is_done_before_the_steps():
    plan = plan_of("")
    assert names(plan.once) == ["k"]
    assert [names(stage.nodes) for stage in plan.forward] == [["s", "n"]]


def test_its_gradients_are_done_after_them():
    plan = plan_of(
        """
        wt = permute(w, dims=[1, 0]) [4, 4]
        gm = mm(g, wt) [B, 4]
        mt = permute(m, dims=[1, 0]) [4, B]
        gw = mm(mt, g) [4, 4]
        """,
        d_consts="gw",
        d_row_consts="gm",
    )
    assert plan.row_sums == ("g",)
    assert [node.op for node in plan.after] == ["mm", "outer"]
    assert plan.reductions == ()
    assert [names(stage.nodes) for stage in plan.backward] == [["g"]]


def test_a_product_that_a_step_needs_is_done_in_the_step():
    plan = plan_of("wt = permute(w, dims=[1, 0]) [4, 4]\ngm = mm(g, wt) [B, 4]", d_row_consts="gm", d_xs="gm")
    assert plan.row_sums == ("gm",)
    assert plan.after == ()


@pytest.mark.parametrize(
    "product",
    [
        "gm = mm(gs, w) [B, 4]\ngs = mul(g, x) [B, 4]",
        "gm = mm(gs, w) [B, 4]\ngs = tanh(g) [B, 4]",
    ],
)
def test_what_is_not_linear_in_gradients_comes_before_the_sum(product):
    product, factor = product.splitlines()
    plan = plan_of(f"{factor}\n{product}", d_row_consts="gm")
    assert plan.row_sums == ("gs",)
    assert names(plan.after) == ["gm"]


@pytest.mark.parametrize(
    ("follows", "waits"),
    [
        ("r = mul(p, m) [B, 4]", True),
        ("r = div(p, m) [B, 4]", True),
        ("r = add(p, g) [B, 4]", True),
        ("r = sub(0.0, p) [B, 4]", True),
        ("c = gt(m, 0.0) [B, 4] bool\nr = where(c, p, 0.0) [B, 4]", True),
        ("z = full(shape=[B, 4], value=0.0) [B, 4]\nr = add(p, z) [B, 4]", True),
        ("r = mul(p, x) [B, 4]", False),
        ("r = mul(p, p) [B, 4]", False),
        ("r = div(m, p) [B, 4]", False),
        ("r = add(p, 1.0) [B, 4]", False),
        ("r = add(p, m) [B, 4]", False),
        ("r = exp(p) [B, 4]", False),
        ("c = gt(x, 0.0) [B, 4] bool\nr = where(c, p, 0.0) [B, 4]", False),
        ("c = gt(m, 0.0) [B, 4] bool\nr = where(c, p, 1.0) [B, 4]", False),
    ],
)
def test_what_follows_a_product_waits_with_it_if_it_is_linear(follows, waits):
    plan = plan_of(f"p = mm(g, w) [B, 4]\n{follows}", d_row_consts="r")
    assert ("p" in names(plan.after)) == waits
    assert plan.row_sums == (("g",) if waits else ("r",))


def test_sums_and_views_without_a_product_are_done_in_the_step():
    plan = plan_of(
        "v = view(g, shape=[B, 2, 2]) [B, 2, 2]\nr = sum(v, dims=[1], keepdim=False) [B, 2]", d_row_consts="r"
    )
    assert plan.row_sums == ("r",)
    assert plan.after == ()


def test_a_view_before_a_product_waits_too():
    plan = plan_of("v = view(g, shape=[B, 4]) [B, 4]\nr = mm(v, w) [B, 4]", d_row_consts="r")
    assert plan.row_sums == ("g",)
    assert names(plan.after) == ["v", "r"]


def test_the_part_of_a_concatenation_that_is_the_same_at_all_steps_leaves_the_product():
    step = step_of(
        """
        const w [8, 4]
        row_const m [B, 4]
        xs x [B, 4]
        """,
        "a = cat(x, m, dim=1) [B, 8]\ny = mm(a, w) [B, 4]",
        "y",
        "",
    )
    plan = make_plan(pair_of(step, "d_ys dy [B, 4]"))
    assert [node.op for node in plan.once if "B" in node.shape] == ["mm"]
    assert [[node.op for node in stage.nodes] for stage in plan.forward] == [["mm", "add"]]
