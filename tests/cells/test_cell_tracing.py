"""A step is plain PyTorch: it traces with a symbolic batch, and torch.func and autocast take it."""

import pytest
import torch

from cells.symbolic import trace_for_any_rows
from throughtime._nested import flatten, leaves, map_leaves, unflatten
from throughtime.cells import (
    BasicLSTMCell,
    BasicRNNCell,
    DropoutWrapper,
    GRUCell,
    LSTMCell,
    MultiRNNCell,
    ResidualWrapper,
)

MAKERS = {
    "basic_rnn": lambda: BasicRNNCell(3, input_size=3),
    "basic_lstm": lambda: BasicLSTMCell(3, input_size=3),
    "basic_lstm_one_tensor": lambda: BasicLSTMCell(3, state_is_tuple=False, input_size=3),
    "lstm": lambda: LSTMCell(3, True, 0.5, num_proj=2, proj_clip=0.3, input_size=3),
    "gru": lambda: GRUCell(3, input_size=3),
    "stack": lambda: MultiRNNCell([LSTMCell(3, input_size=3), GRUCell(2, input_size=3)]),
    "stack_one_tensor": lambda: MultiRNNCell([GRUCell(3, input_size=3), BasicRNNCell(2, input_size=3)], False),
    "torch_cells": lambda: MultiRNNCell([torch.nn.LSTMCell(3, 3), torch.nn.GRUCell(3, 2)]),
    "residual": lambda: ResidualWrapper(GRUCell(3, input_size=3)),
    "variational": lambda: DropoutWrapper(LSTMCell(3, input_size=3), 0.5, 0.5, 0.5, True, 3),
}
OURS = [name for name in MAKERS if name != "torch_cells"]  # aten::lstm_cell asks for the batch size
CELLS = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
MUTATIONS = ("add_", "mul_", "copy_", "clamp_", "sigmoid_", "tanh_")


def arguments(cell, rows: int) -> list:
    state = map_leaves(torch.randn_like, cell.initial_state(rows, torch.float32))
    return [torch.randn(rows, 3), state, cell.row_consts(rows, torch.float32, torch.device("cpu"))]


@pytest.mark.parametrize("make", [MAKERS[name] for name in OURS], ids=OURS)
def test_traces_with_a_symbolic_batch(make) -> None:
    cell = make()
    graph = trace_for_any_rows(cell, arguments(cell, 7))
    targets = [str(node.target) for node in graph.graph.nodes]
    assert not [t for t in targets if any(mutation in t for mutation in MUTATIONS)]
    other = arguments(cell, 5)
    expected = leaves(cell(*other))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(graph(*leaves(other)), expected))


@pytest.mark.parametrize("make", [MAKERS[name] for name in OURS], ids=OURS)
def test_one_row_at_a_time_under_vmap(make) -> None:
    cell = make()
    rows = arguments(cell, 4)
    expected = leaves(cell(*rows))
    lone = [map_leaves(lambda leaf: leaf.unsqueeze(1), part) for part in rows]
    got = torch.func.vmap(lambda *args: tuple(leaves(cell(*args))))(*lone)
    assert all(torch.allclose(a.squeeze(1), b, atol=1e-6) for a, b in zip(got, expected))


@CELLS
def test_functional_call_and_forward_mode(make) -> None:
    cell, (x, state, consts) = make(), [None, None, None]
    x, state, consts = arguments(cell, 4)
    parameters = {name: weight.detach() for name, weight in cell.named_parameters()}

    def output(weights):
        return torch.func.functional_call(cell, weights, (x, state, consts) if leaves(consts) else (x, state))[0]

    value, change = torch.func.jvp(output, (parameters,), (parameters,))
    assert torch.equal(value, leaves(cell(x, state, consts) if leaves(consts) else cell(x, state))[0])
    gradient = torch.func.grad(lambda weights: output(weights).sum())(parameters)
    along = sum((gradient[name] * parameters[name]).sum() for name in parameters)
    assert along.item() == pytest.approx(change.sum().item(), rel=1e-3, abs=1e-5)


def test_autocast_rounds_products_and_mixed_dtypes_pass() -> None:
    cell = LSTMCell(3, input_size=3)
    x, state, _ = arguments(cell, 4)
    exact = cell(x, state)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = cell(x.bfloat16(), state)[0]
    assert not torch.equal(exact, rounded.float())
    assert torch.allclose(exact, rounded.float(), atol=0.05)


@CELLS
def test_gradcheck(make) -> None:
    cell = make().double()
    flat, structure = flatten(arguments(cell, 2))
    flat = [leaf.double().requires_grad_(k < 2) for k, leaf in enumerate(flat)]
    assert torch.autograd.gradcheck(lambda *args: tuple(leaves(cell(*unflatten(structure, args)))), flat)
