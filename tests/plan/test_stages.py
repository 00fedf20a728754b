"""What is sequential, and where the rest stands."""

from plan.written import step_of
from throughtime.plan.stages import make_stages


def stages_of(inputs, nodes, next_carry):
    step = step_of(inputs, nodes, "", next_carry)
    carries = [c.name for c in step.of_kind("carry")]
    stages = make_stages(step.nodes, dict(zip(carries, step.next_carry)), {name: f"state.{name}" for name in carries})
    return [(s.kind, " ".join(node.name for node in s.nodes), " ".join(s.carries)) for s in stages]


INPUTS = """
    const w [4, 4]
    xs x [B, 4]
    carry h [B, 4]
    carry g [B, 4]
"""


def test_a_product_of_the_inputs_leaves_and_cheap_work_on_inputs_joins_the_loop():
    found = stages_of(
        INPUTS,
        """
        a = mm(x, w) [B, 4]
        b = tanh(x) [B, 4]
        c = mm(h, w) [B, 4]
        d = add(a, c) [B, 4]
        e = add(d, b) [B, 4]
        """,
        "e g",
    )
    assert found == [("batched", "a", ""), ("loop", "b c d e", "state.h")]


def test_each_layer_is_a_loop_with_batched_work_in_between():
    found = stages_of(
        INPUTS,
        """
        a = mm(h, w) [B, 4]
        b = add(a, x) [B, 4]
        c = mm(b, w) [B, 4]
        d = mm(g, w) [B, 4]
        e = add(c, d) [B, 4]
        y = mm(e, w) [B, 4]
        """,
        "b e",
    )
    assert found == [
        ("loop", "a b", "state.h"),
        ("batched", "c", ""),
        ("loop", "d e", "state.g"),
        ("batched", "y", ""),
    ]


def test_states_that_need_each_other_are_one_loop():
    found = stages_of(
        INPUTS,
        """
        a = add(h, g) [B, 4]
        b = mul(h, x) [B, 4]
        """,
        "a b",
    )
    assert found == [("loop", "a b", "state.g state.h")]


def test_independent_states_share_a_stage():
    found = stages_of(
        INPUTS,
        """
        a = add(h, x) [B, 4]
        b = mul(g, x) [B, 4]
        """,
        "a b",
    )
    assert found == [("loop", "a b", "state.g state.h")]


def test_a_delayed_input_needs_no_loop():
    found = stages_of(
        INPUTS,
        """
        a = sub(x, h) [B, 4]
        b = mm(g, w) [B, 4]
        c = add(a, b) [B, 4]
        """,
        "x h",
    )
    assert found == [("batched", "a b c", "")]


def test_a_delayed_product_is_read_in_the_stage_after_it():
    found = stages_of(
        INPUTS,
        """
        a = mm(x, w) [B, 4]
        b = mm(h, w) [B, 4]
        c = tanh(h) [B, 4]
        """,
        "a g",
    )
    assert found == [("batched", "a", ""), ("batched", "b c", "")]


def test_a_value_that_is_read_a_step_later_is_not_moved_behind_its_reader():
    found = stages_of(
        INPUTS,
        """
        a = tanh(x) [B, 4]
        b = mul(h, x) [B, 4]
        c = mm(b, w) [B, 4]
        d = add(c, a) [B, 4]
        """,
        "a g",
    )
    assert found == [("batched", "a", ""), ("batched", "b c d", "")]


def test_the_state_of_a_loop_may_be_delayed_in_the_loop_and_batched_behind_it():
    found = stages_of(
        INPUTS,
        """
        a = mm(h, w) [B, 4]
        b = add(a, x) [B, 4]
        c = tanh(g) [B, 4]
        d = mm(g, w) [B, 4]
        """,
        "b b",
    )
    assert found == [("loop", "a b c", "state.h"), ("batched", "d", "")]


def test_states_that_change_places_are_known_from_the_start():
    assert stages_of(INPUTS, "a = mm(h, w) [B, 4]", "g h") == [("batched", "a", "")]


def test_what_a_loop_computes_for_a_later_product_stays_in_its_pass():
    found = stages_of(
        INPUTS,
        """
        a = add(h, x) [B, 4]
        b = tanh(a) [B, 4]
        c = mm(b, w) [B, 4]
        """,
        "a g",
    )
    assert found == [("loop", "a b", "state.h"), ("batched", "c", "")]


def test_a_step_without_nodes_has_no_stages():
    assert stages_of(INPUTS, "", "x h") == []
