"""A cell's step -> its graph for any number of rows, by PyTorch's own tracing."""

from typing import Any

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from throughtime._nested import flatten, leaves, unflatten

__all__ = ["trace_for_any_rows"]


def trace_for_any_rows(cell: nn.Module, arguments: list[Any]) -> GraphModule:
    """`graph(*leaves(arguments))` are the leaves of `cell(*arguments)`. Fails for a step that asks how many rows."""
    flat, structure = flatten(arguments)
    shapes = ShapeEnv()
    with FakeTensorMode(shape_env=shapes, allow_non_fake_inputs=True) as mode:

        def rows_only(leaf: Tensor) -> Tensor:
            axes = [DimDynamic.DUCK] + [DimDynamic.STATIC] * (leaf.dim() - 1)
            return mode.from_tensor(leaf, symbolic_context=StatelessSymbolicContext(axes))

        graph = make_fx(lambda *args: leaves(cell(*unflatten(structure, args))))(*map(rows_only, flat))
    assert not shapes.guards, "the step branches on the number of rows"
    return graph
