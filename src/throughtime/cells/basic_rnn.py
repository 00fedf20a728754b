"""The simple recurrent step: one affine map of input and state, one activation."""

import torch
from torch import Tensor

from throughtime.cells._base import RNNCell
from throughtime.cells._options import Activation, find_activation, read_units
from throughtime.cells._parameters import Layout, SizedByInput, affine, glorot_uniform, zeros

__all__ = ["BasicRNNCell"]


class BasicRNNCell(SizedByInput, RNNCell):
    """`output = next_state = activation([x, h] @ kernel + bias)`

    Args:
        num_units: the width H of state and output.
        activation: a callable or a name; tanh by default.
        input_size: I, by default found at the first call.

    Parameters: `kernel` [I + H, H], `bias` [H].

    Source: Elman 1990, "Finding structure in time"; TensorFlow 1.15, `tf.nn.rnn_cell.BasicRNNCell`.

    >>> import torch, throughtime
    >>> cell = throughtime.BasicRNNCell(5)
    >>> output, state = cell(torch.randn(2, 3), cell.initial_state(2))
    >>> output.shape, torch.equal(output, state), cell.kernel.shape
    (torch.Size([2, 5]), True, torch.Size([8, 5]))
    """

    kernel: Tensor
    bias: Tensor

    def __init__(
        self,
        num_units: int,
        activation: Activation | str | None = None,
        *,
        input_size: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_units = self.state_size = self.output_size = read_units("num_units", num_units)
        self.activation = find_activation(activation, "tanh")
        self._declare(input_size, device, dtype)

    def layout(self, input_size: int) -> Layout:
        units = self.num_units
        return {"kernel": ((input_size + units, units), glorot_uniform), "bias": ((units,), zeros)}

    def forward(self, inputs: Tensor, state: Tensor, row_consts: tuple = ()) -> tuple[Tensor, Tensor]:
        h = self.activation(affine("BasicRNNCell", (inputs, state), self.kernel, self.bias))
        return h, h
