"""A cell -> its graph, run plainly, compared with the cell itself and with autograd, for several batch sizes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from throughtime._nested import Nested, leaves, map_leaves
from throughtime._state import split_result
from throughtime.capture import ROWS, Input, Node, StepTrace, trace_step
from throughtime.capture.interpret import run_backward, run_forward

__all__ = ["assert_agrees", "assert_traced_agrees", "operators", "row"]

TOLERANCES = {torch.float32: 2e-5, torch.float64: 1e-10}


def row(*sizes: int, dtype: torch.dtype = torch.float32, requires_grad: bool = False) -> Tensor:
    """An example of one row."""
    return torch.zeros(1, *sizes, dtype=dtype, requires_grad=requires_grad)


def operators(trace: StepTrace) -> set[str]:
    return {node.op for node in (*trace.pair.forward.nodes, *trace.pair.backward_nodes)}


def assert_agrees(
    cell: Any, xs: Nested, state: Nested, row_consts: Nested = (), rows: Sequence[int] = (1, 2, 7, 13), scale: float = 1
) -> StepTrace:
    """Traces on the examples, then compares on random numbers; `scale` loosens the tolerance."""
    trace = trace_step(cell, xs, state, row_consts)
    for count in rows:
        assert_traced_agrees(trace, cell, xs, state, row_consts, count, scale)
    return trace


def assert_traced_agrees(
    trace: StepTrace, cell: Any, xs: Nested, state: Nested, row_consts: Nested, rows: int, scale: float = 1
) -> None:
    xs, row_consts = (map_leaves(lambda t: _drawn(t, rows, t.requires_grad), n) for n in (xs, row_consts))
    state = map_leaves(lambda t: _drawn(t, rows, True), state)
    given = (xs, state, row_consts) if leaves(row_consts) else (xs, state)
    output, next_state = split_result(cell(*given), state)
    outs = leaves(output) + leaves(next_state)
    inputs = [*trace.read_consts(cell), *leaves(row_consts), *leaves(xs), *leaves(state)]
    env = _bound(trace, ("const", "row_const", "xs", "carry"), inputs)
    env = run_forward(trace.pair.forward, env, rows)
    tolerance = scale * TOLERANCES[_precision(outs)]
    for name, out in zip((*trace.pair.forward.ys, *trace.pair.forward.next_carry), outs, strict=True):
        _assert_close(env[name], out.detach(), tolerance, f"output {name}")
    cotangents = [torch.randn_like(o) for o in outs if o.is_floating_point()]
    env = run_backward(trace.pair, env, _bound_cotangents(trace, cotangents), rows)
    _assert_shapes(trace, env, rows)
    _assert_gradients(trace, env, inputs, outs, cotangents, tolerance)


def _drawn(example: Tensor, rows: int, requires_grad: bool) -> Tensor:
    sizes = (rows, *example.shape[1:])
    if example.is_floating_point():
        return torch.randn(sizes, dtype=example.dtype).requires_grad_(requires_grad)
    return torch.randint(0, 2 if example.dtype == torch.bool else 3, sizes).to(example.dtype)


def _precision(tensors: Sequence[Tensor]) -> torch.dtype:
    return torch.float64 if all(t.dtype in (torch.float64, torch.int64) for t in tensors) else torch.float32


def _bound(trace: StepTrace, kinds: Sequence[Any], tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    described = [i for kind in kinds for i in trace.pair.forward.of_kind(kind)]
    return {i.name: t.detach() for i, t in zip(described, tensors, strict=True)}


def _bound_cotangents(trace: StepTrace, cotangents: Sequence[Tensor]) -> dict[str, Tensor]:
    return {i.name: c for i, c in zip(trace.pair.backward_inputs, cotangents, strict=True)}


def _assert_shapes(trace: StepTrace, env: dict[str, Tensor], rows: int) -> None:
    """What the graph says of its values is so, and rows are on the first axis but for the one exception."""
    values: tuple[Input | Node, ...] = (
        *trace.pair.forward.inputs,
        *trace.pair.forward.nodes,
        *trace.pair.backward_nodes,
    )
    for value in values:
        shape = tuple(rows if n == ROWS else n for n in value.shape)
        assert (shape, value.dtype) == (tuple(env[value.name].shape), env[value.name].dtype), value
        assert ROWS not in value.shape[1:] or (isinstance(value, Node) and value.op == "permute"), value


def _assert_gradients(
    trace: StepTrace, env: dict[str, Tensor], inputs: list[Tensor], outs: list[Tensor], d_outs: list[Tensor], tol: float
) -> None:
    pair = trace.pair
    names = [*pair.d_consts, *pair.d_row_consts, *pair.d_xs, *pair.d_carry]
    assert all(name is None for name, t in zip(names, inputs, strict=True) if not t.requires_grad)
    wanted = [(name, t) for name, t in zip(names, inputs) if t.requires_grad]
    floating = [o for o in outs if o.is_floating_point()]
    pairs = [(o, d) for o, d in zip(floating, d_outs, strict=True) if o.requires_grad]
    if not wanted or not pairs:
        assert all(name is None for name in names)
        return
    used, d_used = zip(*pairs)
    expected = torch.autograd.grad(used, [t for _, t in wanted], d_used, allow_unused=True)
    for (name, tensor), gradient in zip(wanted, expected):
        zeros = torch.zeros_like(tensor)
        _assert_close(
            env[name] if name else zeros, zeros if gradient is None else gradient, 5 * tol, f"gradient {name}"
        )


def _assert_close(actual: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    largest = float(expected.detach().nan_to_num().abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(
        actual,
        expected,
        rtol=tolerance,
        atol=tolerance * max(1.0, largest),
        equal_nan=True,
        msg=lambda m: f"{what}: {m}",
    )
