"""The gated recurrent unit, with the reset gate before the product, as in the paper and in TensorFlow 1."""

import torch
from torch import Tensor

from throughtime.cells._base import RNNCell
from throughtime.cells._options import Activation, find_activation, read_units
from throughtime.cells._parameters import Dense, Initializer, glorot_uniform, ones, zeros

__all__ = ["GRUCell"]


class GRUCell(RNNCell):
    """A state that is mixed with a candidate, unit by unit::

        r, u = split(sigmoid([x, h] @ gates.kernel + gates.bias))
        candidate = activation([x, r * h] @ candidate.kernel + candidate.bias)
        output = next_state = u * h + (1 - u) * candidate

    (`nn.GRUCell` multiplies by r after the product: another cell.)

    Args:
        num_units: the width H of state and output.
        activation: a callable or a name; tanh by default.
        kernel_initializer, bias_initializer: callables that fill a tensor in place, for both kernels and for both
            biases; by default Glorot's uniform, and 1 for the gates' bias, 0 for the candidate's.
        input_size: I, by default found at the first call.

    Parameters: `gates.kernel` [I + H, 2 H] in the order r, u, `gates.bias`, `candidate.kernel` [I + H, H],
    `candidate.bias`.

    Source: Cho et al. 2014, arXiv 1406.1078, equations 5 to 8; TensorFlow 1.15, `tf.nn.rnn_cell.GRUCell`.

    >>> import torch, throughtime
    >>> cell = throughtime.GRUCell(5)
    >>> output, state = cell(torch.randn(2, 3), cell.initial_state(2))
    >>> output.shape, [name for name, _ in cell.named_parameters()]
    (torch.Size([2, 5]), ['gates.kernel', 'gates.bias', 'candidate.kernel', 'candidate.bias'])
    """

    def __init__(
        self,
        num_units: int,
        activation: Activation | str | None = None,
        *,
        kernel_initializer: Initializer | None = None,
        bias_initializer: Initializer | None = None,
        input_size: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        units = self.num_units = self.state_size = self.output_size = read_units("num_units", num_units)
        self.activation = find_activation(activation, "tanh")
        kernel = kernel_initializer or glorot_uniform
        height = None if input_size is None else input_size + units
        sized = {"name": "GRUCell", "input_size": height, "device": device, "dtype": dtype}
        self.gates = Dense(2 * units, bias_initializer or ones, kernel, **sized)
        self.candidate = Dense(units, bias_initializer or zeros, kernel, **sized)

    def forward(self, inputs: Tensor, state: Tensor, row_consts: tuple = ()) -> tuple[Tensor, Tensor]:
        r, u = torch.sigmoid(self.gates(inputs, state)).chunk(2, -1)
        candidate = self.activation(self.candidate(inputs, r * state))
        h = u * state + (1 - u) * candidate
        return h, h
