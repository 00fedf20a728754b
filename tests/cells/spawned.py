"""What a spawned worker runs; it must be importable there by name."""

from typing import Any

import torch

from throughtime._nested import leaves


def step_values(cell: Any, inputs: torch.Tensor) -> list[list[float]]:
    """Output and next state of one step from the initial state, as plain numbers."""
    with torch.no_grad():
        result = cell(inputs, cell.initial_state(len(inputs), inputs.dtype))
    return [leaf.flatten().tolist() for leaf in leaves(result)]


def parameter_dtypes(cell: Any) -> list[str]:
    return [str(weight.data.dtype) for weight in cell.parameters()]
