"""Products of concatenations and slices of products: when they are taken apart, and when not."""

from plan.written import pair_of, step_of
from throughtime.plan.normalise import normalise

INPUTS = """
    const w [8, 8]
    const t [4, 12]
    const v [12, 4]
    xs x [B, 4]
    carry h [B, 4]
    carry g [B, 4]
"""


def calls(pair):
    """`["mm(x, slice)", ...]`: operators with their operands, inputs by name and nodes by operator."""
    graph = normalise(pair)

    def word(name):
        return graph.nodes[name].op if name in graph.nodes else name

    return [f"{node.op}({', '.join(map(word, node.operands))})" for node in graph.nodes.values()]


def test_the_part_of_a_concatenation_that_is_free_leaves_the_product():
    step = step_of(
        INPUTS,
        """
        a = cat(x, h, g, dim=1) [B, 12]
        b = mm(a, v) [B, 4]
        c = add(b, g) [B, 4]
        """,
        "",
        "b c",
    )
    assert calls(pair_of(step)) == [
        *("slice(v)", "mm(x, slice)", "cat(h, g)", "slice(v)", "mm(cat, slice)", "add(mm, mm)"),
        "add(add, g)",
    ]


def test_the_lower_layers_state_leaves_the_product_of_the_upper_one():
    step = step_of(
        INPUTS,
        """
        a = add(h, x) [B, 4]
        b = cat(a, g, dim=1) [B, 8]
        c = mm(b, w) [B, 8]
        d = slice(c, dim=1, start=0, end=4, step=1) [B, 4]
        e = slice(c, dim=1, start=4, end=8, step=1) [B, 4]
        f = mul(d, e) [B, 4]
        """,
        "",
        "a f",
    )
    assert "mm(add, slice)" in calls(pair_of(step))
    assert "mm(g, slice)" in calls(pair_of(step))


def test_a_concatenation_of_states_only_and_one_outside_of_loops_stay():
    step = step_of(
        INPUTS,
        """
        a = cat(h, g, dim=1) [B, 8]
        b = mm(a, w) [B, 8]
        c = slice(b, dim=1, start=0, end=4, step=1) [B, 4]
        d = slice(b, dim=1, start=4, end=8, step=1) [B, 4]
        e = cat(x, c, d, dim=1) [B, 12]
        y = mm(e, v) [B, 4]
        """,
        "y",
        "c d",
    )
    assert calls(pair_of(step)) == ["cat(h, g)", "mm(cat, w)", "slice(mm)", "slice(mm)", "cat(x, slice, slice)",
                                    "mm(cat, v)"]  # fmt: skip


def test_columns_that_leave_the_loop_and_columns_that_nobody_uses_leave_the_product():
    step = step_of(
        INPUTS,
        """
        a = mm(h, t) [B, 12]
        b = slice(a, dim=1, start=0, end=4, step=1) [B, 4]
        c = slice(a, dim=1, start=4, end=8, step=1) [B, 4]
        d = add(b, x) [B, 4]
        """,
        "c",
        "d g",
    )
    assert calls(pair_of(step)) == ["slice(t)", "mm(h, slice)", "slice(t)", "mm(h, slice)", "add(mm, x)"]


BIASES = """
    const w [4, 4]
    const p [4]
    const q [4]
    xs x [B, 4]
    carry h [B, 4]
    carry g [B, 4]
"""


def test_biases_of_one_sum_are_added_once_per_call():
    step = step_of(
        BIASES,
        """
        a = mm(x, w) [B, 4]
        b = add(p, a) [B, 4]
        c = mm(h, w) [B, 4]
        d = add(c, q) [B, 4]
        e = add(b, d) [B, 4]
        f = add(e, p) [B, 4]
        i = tanh(f) [B, 4]
        """,
        "i",
        "i f",
    )
    assert calls(pair_of(step)) == [
        *("mm(x, w)", "mm(h, w)"),
        *("add(p, q)", "add(add, p)", "add(add, mm)", "add(add, mm)", "tanh(add)"),
    ]


def test_biases_stay_where_a_sum_is_a_value_of_its_own_or_has_no_product():
    step = step_of(
        BIASES,
        """
        a = mm(x, w) [B, 4]
        b = add(a, p) [B, 4]
        c = add(b, q) [B, 4]
        d = add(h, p) [B, 4]
        e = add(d, q) [B, 4]
        """,
        "b",
        "c e",
    )
    assert calls(pair_of(step)) == ["mm(x, w)", "add(mm, p)", "add(add, q)", "add(h, p)", "add(add, q)"]


def test_a_gradient_is_taken_apart_like_the_product_it_belongs_to():
    step = step_of(
        INPUTS,
        """
        a = cat(x, h, dim=1) [B, 8]
        b = mm(a, w) [B, 8]
        c = slice(b, dim=1, start=0, end=4, step=1) [B, 4]
        d = slice(b, dim=1, start=4, end=8, step=1) [B, 4]
        e = mul(c, d) [B, 4]
        """,
        "e",
        "e g",
    )
    pair = pair_of(
        step,
        """
        d_ys dy [B, 4]
        d_next_carry de [B, 4]
        d_next_carry dg [B, 4]
        """,
        """
        f = add(dy, de) [B, 4]
        gc = mul(f, d) [B, 4]
        gd = mul(f, c) [B, 4]
        gb = cat(gc, gd, dim=1) [B, 8]
        wt = permute(w, dims=[1, 0]) [8, 8]
        ga = mm(gb, wt) [B, 8]
        gx = slice(ga, dim=1, start=0, end=4, step=1) [B, 4]
        gh = slice(ga, dim=1, start=4, end=8, step=1) [B, 4]
        at = permute(a, dims=[1, 0]) [8, B]
        gw = mm(at, gb) [8, 8]
        """,
        d_consts="gw - -",
        d_xs="gx",
        d_carry="gh dg",
    )
    found = calls(pair)
    assert [call for call in found if call.startswith("outer")] == ["outer(x, cat)", "outer(h, cat)"]
    assert [call for call in found if call.startswith("cat")] == ["cat(mul, mul)", "cat(outer, outer)"]
    assert found.count("mm(cat, slice)") == 2
    assert "slice(add)" in found, "the gates are cut from their sum, which stays whole"


def test_equal_nodes_are_one():
    step = step_of(
        INPUTS,
        """
        a = tanh(x) [B, 4]
        b = tanh(x) [B, 4]
        c = mul(a, b) [B, 4]
        d = mul(b, a) [B, 4]
        e = add(h, 1.0) [B, 4]
        f = add(h, 1) [B, 4]
        """,
        "c d",
        "e f",
    )
    assert calls(pair_of(step)) == ["tanh(x)", "mul(tanh, tanh)", "add(h)", "add(h)"]
