"""Guarantee: nested inputs, states and outputs keep structure and types; keys pair by name, not by place."""

from collections import namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conformance.cases import by_library, draw_case
from conformance.descriptors import BACKENDS, Descriptor, by_name, over
from conformance.user_cells import Readings
from throughtime import StateError, dynamic_rnn
from throughtime._nested import map_leaves, same_structure
from throughtime.cells import LSTMCell, LSTMStateTuple

Pair = namedtuple("Pair", ["a", "b"])


@over()
def test_structures_are_those_of_the_cell(descriptor: Descriptor, backend: str) -> None:
    result = by_library(draw_case(descriptor, [2, 0, 3]), backend)
    assert same_structure(result.outputs, map_leaves(lambda _: torch.zeros(1), descriptor.output))
    assert same_structure(result.state, map_leaves(lambda _: torch.zeros(1), descriptor.state))
    assert type(result.outputs) is type(descriptor.output) or isinstance(result.outputs, Tensor)
    assert type(result.state) is type(descriptor.state) or isinstance(result.state, Tensor)


@over(by_name("nested output"))
def test_named_tuples_come_out_as_themselves(descriptor: Descriptor, backend: str) -> None:
    outputs = by_library(draw_case(descriptor, [2, 3]), backend).outputs
    assert isinstance(outputs, Readings)
    assert outputs.level.shape == (2, 3)
    assert outputs.parts["field"].shape == (2, 3, 2, 2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_plain_tuple_may_stand_for_a_named_one(backend: str) -> None:
    start = (torch.randn(2, 4), torch.randn(2, 4))
    _, state = dynamic_rnn(LSTMCell(4), torch.randn(2, 3, 3), [2, 0], start, backend=backend)
    assert isinstance(state, LSTMStateTuple)
    assert torch.equal(state.c[1], start[0][1])
    assert torch.equal(state.h[1], start[1][1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_keys_in_another_order_pair_by_name(backend: str) -> None:
    """The cell, and the initial state, list the keys of a state in orders of their own. All leaves have one shape."""

    class Cell(nn.Module):
        state_size = {"a": 2, "b": 2}  # noqa: RUF012

        def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Any, Any]:
            return {"y": state["a"], "x": x}, {"b": state["b"], "a": state["a"] + x}

    a, b = torch.full((1, 2), 10.0), torch.full((1, 2), 20.0)
    for start in ({"a": a, "b": b}, {"b": b, "a": a}):
        for reset_state in (None, {"b": b, "a": a}):
            reset = torch.zeros(1, 3).bool() if reset_state is None else torch.tensor([[True, False, False]])
            outputs, state = dynamic_rnn(
                Cell(), torch.ones(1, 3, 2), None, start, reset=reset, reset_state=reset_state, backend=backend
            )
            assert state["a"].tolist() == [[13, 13]]
            assert state["b"].tolist() == [[20, 20]]
            assert outputs["y"][0, :, 0].tolist() == [10, 11, 12]


@pytest.mark.parametrize("backend", BACKENDS)
def test_outputs_with_keys_in_another_order_at_some_steps(backend: str) -> None:
    calls = []

    def cell(x: Tensor, h: Tensor) -> tuple[Any, Tensor]:
        calls.append(0)
        return ({"a": x, "b": -x} if len(calls) % 2 else {"b": -x, "a": x}), h

    outputs, _ = dynamic_rnn(cell, torch.ones(1, 4, 2), None, torch.zeros(1, 1), backend="portable")
    assert (outputs["a"] == 1).all()
    assert (outputs["b"] == -1).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("wrap", [tuple, list, lambda leaves: Pair(*leaves), lambda leaves: dict(zip("ab", leaves))])
def test_any_structure_of_inputs(backend: str, wrap: Any) -> None:
    inputs = wrap([torch.ones(2, 3, 2), torch.full((2, 3, 4), 2.0)])
    kind = type(inputs)

    def cell(x: Any, h: Tensor) -> tuple[Any, Tensor]:
        if type(x) is not kind:
            raise TypeError(f"the cell got a {type(x).__name__}")
        return x, h

    outputs, _ = dynamic_rnn(cell, inputs, [3, 1], torch.zeros(2, 1), backend=backend)
    assert type(outputs) is type(inputs)
    widths = map_leaves(lambda leaf: leaf.shape[-1], outputs)
    assert widths == wrap([2, 4])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_pair_is_output_and_state_only_if_its_second_part_is_shaped_like_the_state(backend: str) -> None:
    x, start = torch.ones(1, 2, 3), (torch.zeros(1, 3), torch.zeros(1, 3))
    outputs, _ = dynamic_rnn(lambda x, s: (s[0] + x, s[1]), x, None, start, backend=backend)
    assert outputs[0, :, 0].tolist() == [1, 2], "a state only: the output is its first leaf"
    outputs, _ = dynamic_rnn(lambda x, s: (-x, (s[0] + x, s[1])), x, None, start, backend=backend)
    assert outputs[0, :, 0].tolist() == [-1, -1]


WRONG_RETURNS = {
    "another size": (
        lambda x, s: (x, (s[0], s[1][:, :1])),
        r"state\[1\]: expected float32\[[2B], 3\], got float32\[[2B], 1\]",
    ),
    "another dtype": (lambda x, s: (x, (s[0].double(), s[1])), r"state\[0\]: expected float32\[[2B], 3\], got float64"),
    "fewer rows": (lambda x, s: (x, (s[0][:1], s[1])), r"state\[0\]: expected float32\[[2B], 3\], got float32\[1, 3\]"),
    "not a tensor": (lambda x, s: (x, (s[0], None)), r"state\[1\]: expected float32\[[2B], 3\], got NoneType"),
    "another structure": (lambda x, s: (x, (s[0],)), "alone or as the second of a pair"),
    "output only": (lambda x, s: x, "alone or as the second of a pair"),
    "nothing": (lambda x, s: None, "alone or as the second of a pair"),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("cell", "message"), WRONG_RETURNS.values(), ids=WRONG_RETURNS)
def test_a_state_of_another_shape_is_refused(backend: str, cell: Any, message: str) -> None:
    start = (torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(StateError, match=message) as caught:
        dynamic_rnn(cell, torch.ones(2, 2, 3), None, start, backend=backend)
    assert "the cell must return a state" in str(caught.value)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("output", [lambda x: None, lambda x: x.mean(), lambda x: x[:1], lambda x: {"y": 3.0}])
def test_an_output_without_rows_is_refused(backend: str, output: Any) -> None:
    with pytest.raises(StateError, match="every leaf of a cell's output has one entry per row"):
        dynamic_rnn(lambda x, h: (output(x), h), torch.ones(2, 2, 3), None, torch.zeros(2, 4), backend=backend)
