"""The plans of cells: as golden text, and what matters in them."""

from functools import cache

import pytest
import torch

from conformance.cases import draw_case
from conformance.descriptors import DESCRIPTORS
from loop.by_plan import plan_case
from plan.odd_cells import ODD
from throughtime import cells
from throughtime.capture import trace_step
from throughtime.plan.loop_plan import LoopPlan
from throughtime.plan.make import make_plan
from throughtime.plan.stages import find_loops

TABLE = {descriptor.name: descriptor for descriptor in (*DESCRIPTORS, *ODD)}
PRINTED = [
    *("nn.RNNCell", "nn.GRUCell", "nn.LSTMCell", "LSTMCell, all options", "GRUCell", "MultiRNNCell"),
    *("layer-norm LSTM", "weight norm", "token ids", "row constants", "nested dict state", "matrix state"),
    *("custom gradient", "whole-number state", "convolution", "linear in the state", "shift register"),
    *("delayed product", "untouched memory", "put back", "projected memory"),
]


@cache
def plan_of(name: str) -> LoopPlan:
    return plan_case(draw_case(TABLE[name], [2, 1], dtype=torch.float32, initial=True)).plan


@pytest.mark.parametrize("name", PRINTED)
def test_the_plan_as_text(name, golden):
    golden(f"plans/{name.replace(' ', '_').replace(',', '')}", str(plan_of(name)))


def test_the_plan_of_a_cell_with_dropout_as_text(golden):
    cell = cells.DropoutWrapper(cells.LSTMCell(4, input_size=3), 0.7, 0.6, 0.8)
    golden("plans/DropoutWrapper", str(make_plan(trace_step(cell, torch.zeros(2, 3), cell.initial_state(2)).pair)))


@pytest.mark.parametrize("name", sorted(TABLE))
def test_products_in_a_loop_are_those_that_the_state_goes_round_through(name):
    plan = plan_of(name)
    carries = [carry.name for carry in plan.of_kind("carry")]
    d_carries = [c.name for c in plan.cotangents if c.kind == "d_next_carry"]
    gradients = [g for g, c in zip(plan.d_carry, plan.of_kind("carry")) if c.dtype.is_floating_point]
    back = {c: g for c, g in zip(d_carries, gradients) if g is not None}
    for stages, feedback in ((plan.forward, dict(zip(carries, plan.next_carry))), (plan.backward, back)):
        loops = find_loops([node for stage in stages for node in stage.nodes], feedback)
        for stage in stages:
            assert (stage.kind == "loop") == bool(stage.carries)
            products = [node.name for node in stage.nodes if node.op in ("mm", "bmm", "convolution", "embedding")]
            assert stage.kind == "batched" or set(products) <= set(loops)


@pytest.mark.parametrize("name", sorted(TABLE))
def test_what_contracts_the_rows_is_outside_of_all_stages(name):
    plan = plan_of(name)
    staged = [node for stage in (*plan.forward, *plan.backward) for node in stage.nodes]
    assert all(node.shape[0] == "B" for node in staged)
    assert all("B" not in node.shape for node in plan.reductions)


@pytest.mark.parametrize("name", sorted(TABLE))
def test_names_are_known_before_they_are_read(name):
    plan = plan_of(name)
    inputs = {i.name for i in plan.inputs}
    once = inputs | {node.name for node in plan.once}
    forward = _check_order(plan.forward, once)
    assert {*plan.ys, *plan.next_carry} <= forward
    assert set(plan.saved) <= forward - {*plan.ys, *plan.next_carry} - inputs
    unchanged = {c.name for c, after in zip(plan.of_kind("carry"), plan.next_carry) if c.name == after}
    traced = {plan.of_kind("carry")[i].name for i in plan.traced} | {plan.next_carry[i] for i in plan.traced}
    carries = {c.name for c in plan.of_kind("carry")}
    kept = (once - carries) | {*plan.saved, *plan.ys} | traced | unchanged | {c.name for c in plan.cotangents}
    backward = _check_order(plan.backward, kept)
    read = {operand for node in plan.reductions for operand in node.operands}
    results = {name for name in (*plan.d_xs, *plan.d_carry) if name}
    assert read | results | set(plan.row_sums) <= backward
    sums = {*once, *plan.row_sums, *(node.name for node in plan.reductions)}
    for node in plan.after:
        assert set(node.operands) <= sums
        sums.add(node.name)
    assert {name for name in (*plan.d_consts, *plan.d_row_consts) if name} <= sums


def _check_order(stages, known):
    known = set(known)
    for stage in stages:
        for node in stage.nodes:
            assert set(node.operands) <= known, node
            known.add(node.name)
    return known


def widths(plan):
    return sorted(plan.shape_of(name)[1] for name in plan.saved)


def ops(stages, kind):
    return [node.op for stage in stages if stage.kind == kind for node in stage.nodes]


@pytest.mark.parametrize("name", ["nn.LSTMCell", "BasicLSTMCell", "weight norm"])
def test_an_lstm_stores_four_gates_beside_its_states(name):
    plan = plan_of(name)
    assert widths(plan) == [4, 4, 4, 4]
    assert plan.traced == (0, 1)
    assert ops(plan.forward, "batched") == ["mm"]
    assert ops(plan.forward, "loop").count("mm") == ops(plan.backward, "loop").count("mm") == 1
    assert sorted(node.op for node in plan.reductions) == ["outer", "outer", "sum"]


@pytest.mark.parametrize(("name", "stored"), [("nn.GRUCell", [4, 4, 4, 4]), ("GRUCell", [4, 8]), ("nn.RNNCell", [])])
def test_a_gated_unit_stores_its_gates(name, stored):
    plan = plan_of(name)
    assert widths(plan) == stored
    assert plan.traced == (0,)


def test_a_stack_is_a_loop_per_layer():
    plan = plan_of("MultiRNNCell")
    assert [stage.carries for stage in plan.forward if stage.carries] == [
        ("state[0].c", "state[0].h"),
        ("state[1].c", "state[1].h"),
        ("state[2]",),
    ]
    assert [stage.kind for stage in plan.forward] == ["batched", "loop"] * 3
    assert [stage.carries[0] for stage in plan.backward if stage.carries] == [
        "d state[2]",
        "d state[1].c",
        "d state[0].c",
    ]


def test_weight_norm_is_done_once_and_its_gradient_once_after():
    plan = plan_of("weight norm")
    assert "sum" in [node.op for node in plan.once]
    assert "div" in [node.op for node in plan.once]
    assert "mul" in [node.op for node in plan.after]
    original = next(i for i, c in enumerate(plan.of_kind("const")) if c.path.endswith("weight_hh.original1"))
    assert plan.d_consts[original] in {node.name for node in plan.after}


def test_a_table_is_looked_up_outside_of_the_loop_and_again_rather_than_stored():
    plan = plan_of("token ids")
    assert ops(plan.forward, "batched") == ["embedding"], "the table is small: its product is made once a call"
    assert [node.op for node in plan.once].count("mm") == 1
    assert ops(plan.backward, "batched").count("embedding") == 1
    assert "embedding_dense_backward" in [node.op for node in plan.reductions]
    assert widths(plan) == [4, 4, 4, 4]


def test_layer_normalisation_stores_what_it_normalised_and_its_scale():
    plan = plan_of("layer-norm LSTM")
    assert widths(plan) == [1, 1, 1, 4, 4, 4, 4, 16, 16]
    assert ops(plan.forward, "batched").count("sum") == 2, "the input's share is normalised before the loop"


def test_a_state_that_is_elementwise_has_no_product_in_its_loop():
    plan = plan_of("linear in the state")
    assert ops(plan.forward, "batched") == ["mm"]
    assert not {"mm", "bmm"} & set(ops(plan.forward, "loop") + ops(plan.backward, "loop"))


@pytest.mark.parametrize("name", ["shift register", "delayed product", "no state", "input is state"])
def test_what_only_looks_like_a_loop_is_none(name):
    plan = plan_of(name)
    assert [stage.kind for stage in (*plan.forward, *plan.backward) if stage.kind == "loop"] == []


def test_what_each_row_keeps_is_projected_once_and_so_is_its_gradient():
    plan = plan_of("projected memory")
    memory = plan.of_kind("row_const")[0].name
    assert [node.op for node in plan.once if memory in node.operands] == ["mm"]
    staged = [node for stage in (*plan.forward, *plan.backward) for node in stage.nodes]
    assert [node.op for node in staged if node.op == "mm" and memory in node.operands] == []
    assert [(node.op, node.shape[0]) for node in plan.after[:2]] == [("mm", "B"), ("outer", 4)]


def test_a_memory_that_no_step_changes_is_not_stored():
    plan = plan_of("untouched memory")
    (memory,) = [i for i, c in enumerate(plan.of_kind("carry")) if "memory" in c.path]
    assert memory not in plan.traced
    assert [stage.carries for stage in plan.forward if stage.carries] == [("state['h']",)]


def test_a_step_in_inference_stores_nothing():
    cell = cells.LSTMCell(4, input_size=3).requires_grad_(False)
    plan = make_plan(trace_step(cell, torch.zeros(2, 3), cell.initial_state(2)).pair)
    assert plan.reductions == plan.after == ()
    assert len(plan.forward) == 2
