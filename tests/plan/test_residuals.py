"""What is stored for the backward pass, and what is computed again."""

import torch

from plan.written import step_of
from throughtime.plan.residuals import choose_residuals

INPUTS = """
    const w [4, 4]
    xs x [B, 4]
    carry h [B, 4]
    carry k [B, 4]
"""


def residuals_of(nodes, needed, next_carry="h k", inputs=INPUTS):
    step = step_of(inputs, nodes, "", next_carry)
    free = {i.name for i in step.inputs if i.kind != "carry"}
    found = choose_residuals(step.nodes, needed.split(), free, step.inputs, step.next_carry)
    return " ".join(found.saved), found.traced, " ".join(node.name for node in found.recomputed)


def test_arithmetic_on_inputs_is_done_again():
    assert residuals_of("a = tanh(x) [B, 4]\nb = add(a, 1.0) [B, 4]", "b") == ("", (), "a b")


def test_a_product_is_not_done_again():
    assert residuals_of("a = mm(x, w) [B, 4]", "a") == ("a", (), "")


def test_a_long_chain_is_stored_where_that_is_cheaper():
    nodes = "a = tanh(x) [B, 4]\nb = sin(a) [B, 4]\nc = exp(b) [B, 4]"
    assert residuals_of(nodes, "c") == ("c", (), "")
    assert residuals_of(nodes, "a b c") == ("", (), "a b c"), "each is one function away from the one before"


def test_of_values_with_one_source_the_source_is_stored():
    nodes = """
        a = mm(x, w) [B, 4]
        b = add(a, 1.0) [B, 4]
        c = mul(a, x) [B, 4]
        d = add(a, x) [B, 4]
    """
    assert residuals_of(nodes, "b c d") == ("a", (), "b c d")
    assert residuals_of(nodes, "b") == ("b", (), "")


def test_a_narrow_source_is_stored_instead_of_what_it_is_spread_to():
    nodes = """
        a = mm(x, w) [B, 4]
        b = view(a, shape=[B, 1, 4]) [B, 1, 4]
        c = expand(b, shape=[B, 9, 4]) [B, 9, 4]
        d = tanh(c) [B, 9, 4]
    """
    assert residuals_of(nodes, "d") == ("a", (), "b c d")


def test_a_slice_is_stored_alone_where_the_rest_is_not_needed():
    nodes = """
        a = mm(x, w) [B, 4]
        b = slice(a, dim=1, start=0, end=2, step=1) [B, 2]
        c = slice(a, dim=1, start=2, end=4, step=1) [B, 2]
    """
    assert residuals_of(nodes, "b") == ("b", (), "")
    assert residuals_of(nodes, "b c") == ("a", (), "b c")


def test_a_narrow_sum_is_stored_and_a_wide_one_is_not_done_for_it_again():
    nodes = """
        a = mul(x, x) [B, 64]
        b = sum(a, dims=[1], keepdim=True) [B, 1]
        c = mul(x, b) [B, 64]
    """
    inputs = "xs x [B, 64]\ncarry h [B, 4]\ncarry k [B, 4]"
    assert residuals_of(nodes, "c", inputs=inputs) == ("b", (), "c")


def test_a_state_that_is_needed_is_traced_and_gives_its_next_value_too():
    assert residuals_of("a = mm(h, w) [B, 4]", "h a", "a k") == ("", (0,), "")


def test_a_next_state_that_is_needed_is_traced_not_saved():
    assert residuals_of("a = mm(x, w) [B, 4]", "a", "k a") == ("", (1,), "")


def test_a_state_is_traced_where_that_gives_more_than_what_is_computed_from_it():
    nodes = """
        a = mul(h, x) [B, 4]
        b = add(h, x) [B, 4]
        c = mm(a, w) [B, 4]
    """
    assert residuals_of(nodes, "a b", "c k") == ("", (0,), "a b")


def test_a_state_that_no_step_changes_is_there():
    assert residuals_of("a = add(h, x) [B, 4]", "a h", "h k") == ("", (), "a")


def test_a_mask_costs_less_than_a_number():
    nodes = """
        a = mm(x, w) [B, 4] float32
        b = gt(a, 0.0) [B, 4] bool
    """
    assert residuals_of(nodes, "b") == ("b", (), "")
    found = residuals_of(nodes + "c = to_dtype(b, dtype=6) [B, 4] float32", "c")
    assert found == ("b", (), "c")
    assert torch.bool.itemsize < torch.float32.itemsize
