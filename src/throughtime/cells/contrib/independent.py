"""Cells whose units see only their own past: the recurrence is elementwise, and only the input has a product."""

from typing import Any

import torch
from torch import Tensor, nn

from throughtime.cells._base import RNNCell
from throughtime.cells._options import Activation, find_activation, read_units
from throughtime.cells._parameters import Layout, SizedByInput, affine, glorot_uniform, ones, zeros
from throughtime.cells.lstm import LSTMStateTuple, split_lstm_state

__all__ = ["IndRNNCell", "IndyGRUCell", "IndyLSTMCell", "SRUCell"]


def _recurrent(weight: Tensor) -> None:
    nn.init.uniform_(weight, -1.0, 1.0)


class IndRNNCell(SizedByInput, RNNCell):
    """`output = next_state = activation(x @ kernel_w + h * kernel_u + bias)`

    Parameters: `kernel_w` [I, H], `kernel_u` [1, H] (U(-1, 1) at first), `bias` [H].

    Source: Li et al. 2018, arXiv 1803.04831, equation 3; TensorFlow 1.15, `tf.contrib.rnn.IndRNNCell`.

    >>> import torch
    >>> cell = IndRNNCell(5, "relu")
    >>> output, state = cell(torch.randn(2, 3), cell.initial_state(2))
    >>> output.shape, cell.kernel_u.shape
    (torch.Size([2, 5]), torch.Size([1, 5]))
    """

    kernel_w: Tensor
    kernel_u: Tensor
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
        return {
            "kernel_w": ((input_size, units), glorot_uniform),
            "kernel_u": ((1, units), _recurrent),
            "bias": ((units,), zeros),
        }

    def forward(self, inputs: Tensor, state: Tensor, row_consts: tuple = ()) -> tuple[Tensor, Tensor]:
        x = affine("IndRNNCell", (inputs,), self.kernel_w, self.bias)
        h = self.activation(x + state * self.kernel_u.squeeze(0))
        return h, h


class IndyGRUCell(RNNCell):
    """A GRU with elementwise recurrence::

        r, u = split(sigmoid(x @ gates.kernel_w + [h, h] * gates.kernel_u + gates.bias))
        candidate = activation(x @ candidate.kernel + r * h * candidate.kernel_u + candidate.bias)
        output = next_state = u * h + (1 - u) * candidate

    Parameters: `gates.kernel_w` [I, 2 H], `gates.kernel_u` [1, 2 H], `gates.bias` (1 at first); `candidate.kernel`
    [I, H], `candidate.kernel_u` [1, H], `candidate.bias`.

    Source: Gonnet and Deselaers 2019, arXiv 1903.08023; TensorFlow 1.15, `tf.contrib.rnn.IndyGRUCell`.

    >>> import torch
    >>> cell = IndyGRUCell(5)
    >>> output, state = cell(torch.randn(2, 3), cell.initial_state(2))
    >>> output.shape, cell.gates.kernel_u.shape
    (torch.Size([2, 5]), torch.Size([1, 10]))
    """

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
        units = self.num_units = self.state_size = self.output_size = read_units("num_units", num_units)
        self.activation = find_activation(activation, "tanh")
        sized = {"input_size": input_size, "device": device, "dtype": dtype}
        self.gates = _Diagonal(2 * units, "kernel_w", ones, **sized)
        self.candidate = _Diagonal(units, "kernel", zeros, **sized)

    def forward(self, inputs: Tensor, state: Tensor, row_consts: tuple = ()) -> tuple[Tensor, Tensor]:
        r, u = torch.sigmoid(self.gates(inputs, torch.cat([state, state], -1))).chunk(2, -1)
        h = u * state + (1 - u) * self.activation(self.candidate(inputs, r * state))
        return h, h


class _Diagonal(SizedByInput):
    """`x @ kernel + h * kernel_u + bias`; TensorFlow has two names for the kernel, `kernel_w` and `kernel`."""

    kernel_u: Tensor
    bias: Tensor

    def __init__(self, units: int, kernel: str, bias: Any, **sized: Any) -> None:
        super().__init__()
        self.units, self._kernel, self._bias_initializer = units, kernel, bias
        self._declare(**sized)

    def layout(self, input_size: int) -> Layout:
        return {
            self._kernel: ((input_size, self.units), glorot_uniform),
            "kernel_u": ((1, self.units), _recurrent),
            "bias": ((self.units,), self._bias_initializer),
        }

    def forward(self, inputs: Tensor, h: Tensor) -> Tensor:
        return affine("IndyGRUCell", (inputs,), getattr(self, self._kernel), self.bias) + h * self.kernel_u.squeeze(0)


class IndyLSTMCell(SizedByInput, RNNCell):
    """An LSTM with elementwise recurrence::

        i, j, f, o = split(x @ kernel_w + [h, h, h, h] * kernel_u + bias)
        next_c = c * sigmoid(f + forget_bias) + sigmoid(i) * activation(j)
        output = next_h = activation(next_c) * sigmoid(o)

    Parameters: `kernel_w` [I, 4 H], `kernel_u` [1, 4 H], `bias` [4 H].

    Source: Gonnet and Deselaers 2019, arXiv 1903.08023; TensorFlow 1.15, `tf.contrib.rnn.IndyLSTMCell`.

    >>> import torch
    >>> cell = IndyLSTMCell(5)
    >>> output, state = cell(torch.randn(2, 3), cell.initial_state(2))
    >>> output.shape, state.c.shape
    (torch.Size([2, 5]), torch.Size([2, 5]))
    """

    kernel_w: Tensor
    kernel_u: Tensor
    bias: Tensor

    def __init__(
        self,
        num_units: int,
        forget_bias: float = 1.0,
        activation: Activation | str | None = None,
        *,
        input_size: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        units = self.num_units = self.output_size = read_units("num_units", num_units)
        self.state_size = LSTMStateTuple(units, units)
        self.forget_bias = forget_bias
        self.activation = find_activation(activation, "tanh")
        self._declare(input_size, device, dtype)

    def layout(self, input_size: int) -> Layout:
        width = 4 * self.num_units
        return {
            "kernel_w": ((input_size, width), glorot_uniform),
            "kernel_u": ((1, width), _recurrent),
            "bias": ((width,), zeros),
        }

    def forward(self, inputs: Tensor, state: Any, row_consts: tuple = ()) -> tuple[Tensor, LSTMStateTuple]:
        c, h = split_lstm_state("IndyLSTMCell", state, self.state_size)
        x = affine("IndyLSTMCell", (inputs,), self.kernel_w, self.bias)
        i, j, f, o = (x + torch.cat([h, h, h, h], -1) * self.kernel_u.squeeze(0)).chunk(4, -1)
        c = c * torch.sigmoid(f + self.forget_bias) + torch.sigmoid(i) * self.activation(j)
        h = self.activation(c) * torch.sigmoid(o)
        return h, LSTMStateTuple(c, h)


class SRUCell(SizedByInput, RNNCell):
    """The simple recurrent unit: linear in its state, with gates that see the input only::

        z, f, r, skip = split(x @ kernel)
        f, r = split(sigmoid([f, r] + bias))
        next_state = f * c + (1 - f) * z
        output = r * activation(next_state) + (1 - r) * skip

    Parameters: `kernel` [I, 4 H], `bias` [2 H].

    Source: Lei et al. 2018, arXiv 1709.02755, equations 1 to 4; TensorFlow 1.15, `tf.contrib.rnn.SRUCell`.

    >>> import torch
    >>> cell = SRUCell(5)
    >>> output, c = cell(torch.randn(2, 3), cell.initial_state(2))
    >>> output.shape, c.shape
    (torch.Size([2, 5]), torch.Size([2, 5]))
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
        return {"kernel": ((input_size, 4 * units), glorot_uniform), "bias": ((2 * units,), zeros)}

    def forward(self, inputs: Tensor, state: Tensor, row_consts: tuple = ()) -> tuple[Tensor, Tensor]:
        units = self.num_units
        z, gates, skip = affine("SRUCell", (inputs,), self.kernel).split([units, 2 * units, units], -1)
        f, r = torch.sigmoid(gates + self.bias).chunk(2, -1)
        c = f * state + (1 - f) * z
        return r * self.activation(c) + (1 - r) * skip, c
