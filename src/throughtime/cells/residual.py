"""A cell whose input is added to its output."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from throughtime._nested import Nested, leaves, leaves_with_paths, map_leaves, same_structure
from throughtime.cells._inner import CellWrapper, call_cell

__all__ = ["ResidualWrapper"]


class ResidualWrapper(CellWrapper):
    """`output = residual_fn(x, cell_output)`, by default `x + cell_output`, leaf by leaf.

    Args:
        cell: the cell inside; its output must be shaped like its input, unless `residual_fn` is given.
        residual_fn: (inputs, outputs) -> outputs, both as nested as the cell has them.

    Source: Wu et al. 2016, arXiv 1609.08144, section 3.1; TensorFlow 1.15, `tf.nn.rnn_cell.ResidualWrapper`.

    >>> import torch, throughtime
    >>> cell = throughtime.ResidualWrapper(throughtime.GRUCell(3))
    >>> x = torch.randn(2, 3)
    >>> output, state = cell(x, cell.initial_state(2))
    >>> torch.equal(output, x + state)
    True
    """

    def __init__(self, cell: Any, residual_fn: Callable[[Nested, Nested], Nested] | None = None) -> None:
        super().__init__(cell)
        self.residual_fn = residual_fn

    def forward(self, inputs: Nested, state: Nested, row_consts: Nested = ()) -> tuple[Nested, Nested]:
        outputs, next_state = call_cell(self.cell, inputs, state, row_consts)
        return (self.residual_fn or _add)(inputs, outputs), next_state


def _add(inputs: Nested, outputs: Nested) -> Nested:
    if not same_structure(inputs, outputs):
        raise ValueError(
            "ResidualWrapper: the cell's output must be nested like its input. Pass residual_fn(inputs, outputs)."
        )
    for (path, x), y in zip(leaves_with_paths(inputs, "inputs"), leaves(outputs)):
        # Only the features: rows are a symbol while a step is traced.
        if x.shape[1:] != y.shape[1:]:
            raise ValueError(
                f"ResidualWrapper: the cell's output must be shaped like its input. {path} is {_width(x)} wide, its "
                f"output {_width(y)}. Give the cell {_width(x)} units, or pass residual_fn(inputs, outputs)."
            )
    return map_leaves(lambda x, y: x + y, inputs, outputs)


def _width(leaf: Tensor) -> str:
    return " x ".join(map(str, leaf.shape[1:]))
