"""StepGraph, StepPair -> their values, with PyTorch operators. Plain: what a graph means, not how to run it fast."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from throughtime.capture.graph import ROWS, Node, Ref, Shape, StepGraph, StepPair

__all__ = ["run_backward", "run_forward", "run_node"]

Env = dict[str, Tensor]


def run_forward(graph: StepGraph, inputs: Mapping[str, Tensor], rows: int) -> Env:
    """Every value of the step by name, the inputs included."""
    return _run_all(graph.nodes, dict(inputs), rows)


def run_backward(pair: StepPair, forward: Mapping[str, Tensor], cotangents: Mapping[str, Tensor], rows: int) -> Env:
    """Every value of the pair by name: `forward` is what `run_forward` gave, `cotangents` the backward inputs."""
    return _run_all(pair.backward_nodes, {**forward, **cotangents}, rows)


def _run_all(nodes: Sequence[Node], env: Env, rows: int) -> Env:
    for node in nodes:
        env[node.name] = run_node(node, env, rows)
    return env


def run_node(node: Node, env: Mapping[str, Tensor], rows: int) -> Tensor:
    """One node on its operands; `rows` is how many rows there are."""
    run = _RUN.get(node.op)
    if run is not None:
        return run(node, [_operand(a, env) for a in node.args], rows)
    return _run_in_aten(node, env, rows)


def _operand(argument: Any, env: Mapping[str, Tensor]) -> Any:
    if isinstance(argument, Ref):
        return env[argument.name]
    return tuple(_operand(a, env) for a in argument) if isinstance(argument, tuple) else argument


def _sizes(shape: Shape, rows: int) -> list[int]:
    return [rows if n == ROWS else int(n) for n in shape]


def _product(node: Node, args: list[Any], rows: int) -> Tensor:
    """Rounded operands multiply exactly in the dtype of the result, which is that of the accumulator."""
    a, b = (x.to(node.dtype) for x in args)
    return torch.matmul(a, b)


def _reduction(reduce: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(node: Node, args: list[Any], rows: int) -> Tensor:
        return reduce(args[0], node.attributes["dims"], keepdim=node.attributes["keepdim"])

    return run


def _prod(x: Tensor, dims: Sequence[int], keepdim: bool) -> Tensor:
    for dim in sorted(dims, reverse=True):
        x = x.prod(dim, keepdim=keepdim)
    return x


def _slice(node: Node, args: list[Any], rows: int) -> Tensor:
    a = node.attributes
    return args[0][(slice(None),) * a["dim"] + (slice(a["start"], a["end"], a["step"]),)]


def _embedding_backward(node: Node, args: list[Any], rows: int) -> Tensor:
    d_y, index = args
    entries, padding = node.attributes["num_weights"], node.attributes["padding_idx"]
    return torch.ops.aten.embedding_dense_backward(d_y, index, entries, padding, False)


def _embedding(node: Node, args: list[Any], rows: int) -> Tensor:
    table, index = args
    return table[index.long()]


def _convolution(node: Node, args: list[Any], rows: int) -> Tensor:
    wide = [None if x is None else x.to(node.dtype) for x in args]
    return torch.ops.aten.convolution(*wide, **node.attributes)


def _convolution_backward(node: Node, args: list[Any], rows: int) -> Tensor:
    options = node.attributes
    output = options.pop("output")
    d_y, x, w = (a.to(node.dtype) for a in args)
    wanted = [i == output for i in range(3)]
    bias_sizes = [w.shape[1] * options["groups"] if options["transposed"] else w.shape[0]]
    return torch.ops.aten.convolution_backward(d_y, x, w, bias_sizes, **options, output_mask=wanted)[output]


def _pad(node: Node, args: list[Any], rows: int) -> Tensor:
    """PyTorch counts from the last axis."""
    both = list(zip(node.attributes["before"], node.attributes["after"]))
    behind = [0, 0] * (len(node.shape) - 1 - len(both))
    return torch.nn.functional.pad(
        args[0], [*behind, *(n for pair in reversed(both) for n in pair)], value=node.attributes["value"]
    )


def _windows(node: Node, args: list[Any], rows: int) -> Tensor:
    """[B, *L, C] -> [B, *P, *K, C]"""
    (x,), options = args, node.attributes
    axes = range(1, x.dim() - 1)
    for axis, size, step, apart in zip(axes, options["kernel"], options["stride"], options["dilation"]):
        x = x.unfold(axis, apart * (size - 1) + 1, step)[..., ::apart]
    return x.movedim(len(axes) + 1, -1)


def _along(node: Node, args: list[Any], rows: int) -> Tensor:
    """PyTorch has the axis second: scatter(x, dim, index, source)."""
    return getattr(torch.ops.aten, node.op)(args[0], node.attributes["dim"], *args[1:])


def _floor_divide(node: Node, args: list[Any], rows: int) -> Tensor:
    return torch.div(*_tensors(args), rounding_mode="floor")


def _trunc_divide(node: Node, args: list[Any], rows: int) -> Tensor:
    return torch.div(*_tensors(args), rounding_mode="trunc")


def _where(node: Node, args: list[Any], rows: int) -> Tensor:
    condition, *choices = args
    return torch.where(condition, *(torch.as_tensor(c, dtype=node.dtype, device=condition.device) for c in choices))


_RUN: dict[str, Callable[[Node, list[Any], int], Tensor]] = {
    "mm": _product,
    "bmm": _product,
    "sum": _reduction(torch.sum),
    "amax": _reduction(torch.amax),
    "amin": _reduction(torch.amin),
    "prod": _reduction(_prod),
    "slice": _slice,
    "where": _where,
    "gather": _along,
    "scatter": _along,
    "scatter_add": _along,
    "index_select": _along,
    "index_add": _along,
    "index_copy": _along,
    "embedding": _embedding,
    "embedding_dense_backward": _embedding_backward,
    "convolution": _convolution,
    "convolution_backward": _convolution_backward,
    "pad": _pad,
    "windows": _windows,
    "floor_divide": _floor_divide,
    "trunc_divide": _trunc_divide,
    "add": lambda node, args, rows: torch.add(*_tensors(args)),
    "view": lambda node, args, rows: args[0].reshape(_sizes(node.shape, rows)),
    "expand": lambda node, args, rows: args[0].expand(_sizes(node.shape, rows)),
    "permute": lambda node, args, rows: args[0].permute(node.attributes["dims"]),
    "cat": lambda node, args, rows: torch.cat(args, node.attributes["dim"]),
    "to_dtype": lambda node, args, rows: args[0].to(node.dtype),
    "full": lambda node, args, rows: torch.full(_sizes(node.shape, rows), node.attributes["value"], dtype=node.dtype),
    "constant": lambda node, args, rows: torch.tensor(node.attributes["data"], dtype=node.dtype),
}


def _run_in_aten(node: Node, env: Mapping[str, Tensor], rows: int) -> Tensor:
    """Operators that have the arguments that PyTorch's have, in its order; attributes by its names."""
    namespace, _, name = node.op.rpartition("::")
    operator = getattr(getattr(torch.ops, namespace or "aten"), name)
    options = node.attributes
    output = options.pop("output", None)
    args = [_operand(a, env) for a in node.args]
    if not options and all(isinstance(a, (Tensor, int, float)) for a in args):
        args = _tensors(args)
    result = operator(*_with_rows(args, rows), **options)
    return result if output is None else result[output]


def _with_rows(value: Any, rows: int) -> Any:
    if isinstance(value, (list, tuple)):
        return [_with_rows(v, rows) for v in value]
    return rows if isinstance(value, str) and value == ROWS else value


def _tensors(args: Sequence[Any]) -> list[Tensor]:
    """Numbers as tensors of the other operands' dtype."""
    like = [a for a in args if isinstance(a, Tensor)][-1]
    return [a if isinstance(a, Tensor) else torch.tensor(a, dtype=like.dtype, device=like.device) for a in args]
