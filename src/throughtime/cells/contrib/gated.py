"""Gated cells of TensorFlow's contrib with one state: update gate, intersection, minimal, chaos-free; and NAS."""

from typing import Any

import torch
from torch import Tensor

from throughtime.cells._base import RNNCell
from throughtime.cells._options import Activation, find_activation, read_units
from throughtime.cells._parameters import (
    Dense,
    Initializer,
    Layout,
    SizedByInput,
    affine,
    glorot_uniform,
    ones,
    zeros,
)
from throughtime.cells.lstm import LSTMStateTuple, split_lstm_state

__all__ = ["CFNCell", "IntersectionRNNCell", "MinimalRNNCell", "NASCell", "UGRNNCell"]


class UGRNNCell(SizedByInput, RNNCell):
    """The update gate RNN::

        g, c = split([x, h] @ kernel + bias)
        g = sigmoid(g + forget_bias)
        output = next_state = g * h + (1 - g) * activation(c)

    Parameters: `kernel` [I + H, 2 H], `bias` [2 H].

    Source: Collins et al. 2016, arXiv 1611.09913, section 2.1; TensorFlow 1.15, `tf.contrib.rnn.UGRNNCell`.

    >>> import torch
    >>> cell = UGRNNCell(5)
    >>> output, state = cell(torch.randn(2, 3), cell.initial_state(2))
    >>> output.shape, cell.kernel.shape
    (torch.Size([2, 5]), torch.Size([8, 10]))
    """

    kernel: Tensor
    bias: Tensor

    def __init__(
        self,
        num_units: int,
        initializer: Initializer | None = None,
        forget_bias: float = 1.0,
        activation: Activation | str | None = None,
        *,
        input_size: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_units = self.state_size = self.output_size = read_units("num_units", num_units)
        self.forget_bias = forget_bias
        self.activation = find_activation(activation, "tanh")
        self._initializer = initializer or glorot_uniform
        self._declare(input_size, device, dtype)

    def layout(self, input_size: int) -> Layout:
        units = self.num_units
        return {"kernel": ((input_size + units, 2 * units), self._initializer), "bias": ((2 * units,), zeros)}

    def forward(self, inputs: Tensor, state: Tensor, row_consts: tuple = ()) -> tuple[Tensor, Tensor]:
        g, c = affine("UGRNNCell", (inputs, state), self.kernel, self.bias).chunk(2, -1)
        g = torch.sigmoid(g + self.forget_bias)
        h = g * state + (1 - g) * self.activation(c)
        return h, h


class IntersectionRNNCell(SizedByInput, RNNCell):
    """The +RNN: one gate mixes the state through time, another the input through depth::

        x = x @ in_projection.kernel + in_projection.bias                    # num_in_proj
        gh, h_new, gy, y = split([x, h] @ kernel + bias)
        gh, gy = sigmoid(gh + forget_bias), sigmoid(gy + forget_bias)
        next_state = gh * h + (1 - gh) * tanh(h_new)
        output = gy * x + (1 - gy) * y_activation(y)

    The input, or its projection, must be as wide as the state.

    Parameters: `kernel` [2 H, 4 H], `bias` [4 H]; `in_projection.kernel` [I, H], `in_projection.bias` [H].

    Source: Collins et al. 2016, arXiv 1611.09913, section 2.2; TensorFlow 1.15, `tf.contrib.rnn.IntersectionRNNCell`.

    >>> import torch
    >>> cell = IntersectionRNNCell(5, num_in_proj=5)
    >>> output, state = cell(torch.randn(2, 3), cell.initial_state(2))
    >>> output.shape, state.shape
    (torch.Size([2, 5]), torch.Size([2, 5]))
    """

    kernel: Tensor
    bias: Tensor

    def __init__(
        self,
        num_units: int,
        num_in_proj: int | None = None,
        initializer: Initializer | None = None,
        forget_bias: float = 1.0,
        y_activation: Activation | str | None = None,
        *,
        input_size: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_units = self.state_size = self.output_size = read_units("num_units", num_units)
        if num_in_proj is not None and num_in_proj != num_units:
            raise ValueError(f"IntersectionRNNCell: num_in_proj must be num_units, {num_units}; got {num_in_proj}.")
        self.forget_bias = forget_bias
        self.y_activation = find_activation(y_activation, "relu")
        self._initializer = initializer or glorot_uniform
        # The kernel's height is known without the input: with a projection or without, x is as wide as h.
        self._declare(num_units, device, dtype)
        self.in_projection = None
        if num_in_proj is not None:
            sized = {"input_size": input_size, "device": device, "dtype": dtype}
            self.in_projection = Dense(
                num_units, zeros, self._initializer, name="IntersectionRNNCell.in_projection", **sized
            )

    def layout(self, input_size: int) -> Layout:
        units = self.num_units
        return {"kernel": ((2 * units, 4 * units), self._initializer), "bias": ((4 * units,), zeros)}

    def forward(self, inputs: Tensor, state: Tensor, row_consts: tuple = ()) -> tuple[Tensor, Tensor]:
        x = inputs if self.in_projection is None else self.in_projection(inputs)
        if x.shape[-1] != self.num_units:
            raise ValueError(
                f"IntersectionRNNCell: the input must be as wide as the state, {self.num_units}; got {x.shape[-1]}. "
                f"Pass num_in_proj={self.num_units} to project it."
            )
        gh, h, gy, y = affine("IntersectionRNNCell", (x, state), self.kernel, self.bias).chunk(4, -1)
        gh, gy = torch.sigmoid(gh + self.forget_bias), torch.sigmoid(gy + self.forget_bias)
        return gy * x + (1 - gy) * self.y_activation(y), gh * state + (1 - gh) * torch.tanh(h)


class MinimalRNNCell(SizedByInput, RNNCell):
    """The input is embedded first, and the embedding is mixed with the state::

        z = activation(x @ kernel[:I])
        u = sigmoid([z, h] @ kernel[I:] + bias)
        output = next_state = u * h + (1 - u) * z

    Parameters: `kernel` [I + 2 H, H], `bias` [H], 1 at first.

    Source: Chen 2017, arXiv 1711.06788, equations 1 to 3; TensorFlow 1.15, `tf.contrib.rnn.MinimalRNNCell`.

    >>> import torch
    >>> cell = MinimalRNNCell(5)
    >>> output, state = cell(torch.randn(2, 3), cell.initial_state(2))
    >>> output.shape, cell.kernel.shape
    (torch.Size([2, 5]), torch.Size([13, 5]))
    """

    kernel: Tensor
    bias: Tensor

    def __init__(
        self,
        units: int,
        activation: Activation | str | None = None,
        kernel_initializer: Initializer | None = None,
        bias_initializer: Initializer | None = None,
        *,
        input_size: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.units = self.state_size = self.output_size = read_units("units", units)
        self.activation = find_activation(activation, "tanh")
        self._initializers = kernel_initializer or glorot_uniform, bias_initializer or ones
        self._declare(input_size, device, dtype)

    def layout(self, input_size: int) -> Layout:
        kernel, bias = self._initializers
        return {"kernel": ((input_size + 2 * self.units, self.units), kernel), "bias": ((self.units,), bias)}

    def forward(self, inputs: Tensor, state: Tensor, row_consts: tuple = ()) -> tuple[Tensor, Tensor]:
        kernel = self.kernel
        split = kernel.shape[0] - 2 * self.units
        z = self.activation(affine("MinimalRNNCell", (inputs,), kernel[:split]))
        u = torch.sigmoid(affine("MinimalRNNCell", (z, state), kernel[split:], self.bias))
        h = u * state + (1 - u) * z
        return h, h


class CFNCell(SizedByInput, RNNCell):
    """The chaos-free network: without input its state goes to zero::

        v, w = x @ kernel[:, :2 H], x @ kernel[:, 2 H:]
        theta, eta = split(sigmoid(v + h @ recurrent_kernel + bias))
        output = next_state = theta * activation(h) + (1 - eta) * activation(w)

    Parameters: `kernel` [I, 3 H], `recurrent_kernel` [H, 2 H], `bias` [2 H], 1 at first.

    Source: Laurent and von Brecht 2016, arXiv 1612.06212, equations 1 to 3 (with eta for 1 - eta);
    TensorFlow 1.15, `tf.contrib.rnn.CFNCell`.

    >>> import torch
    >>> cell = CFNCell(5)
    >>> output, state = cell(torch.randn(2, 3), cell.initial_state(2))
    >>> output.shape, cell.recurrent_kernel.shape
    (torch.Size([2, 5]), torch.Size([5, 10]))
    """

    kernel: Tensor
    recurrent_kernel: Tensor
    bias: Tensor

    def __init__(
        self,
        units: int,
        activation: Activation | str | None = None,
        kernel_initializer: Initializer | None = None,
        bias_initializer: Initializer | None = None,
        *,
        input_size: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.units = self.state_size = self.output_size = read_units("units", units)
        self.activation = find_activation(activation, "tanh")
        self._initializers = kernel_initializer or glorot_uniform, bias_initializer or ones
        self._declare(input_size, device, dtype)

    def layout(self, input_size: int) -> Layout:
        (kernel, bias), units = self._initializers, self.units
        return {
            "kernel": ((input_size, 3 * units), kernel),
            "recurrent_kernel": ((units, 2 * units), kernel),
            "bias": ((2 * units,), bias),
        }

    def forward(self, inputs: Tensor, state: Tensor, row_consts: tuple = ()) -> tuple[Tensor, Tensor]:
        v, w = affine("CFNCell", (inputs,), self.kernel).split([2 * self.units, self.units], -1)
        gates = v + affine("CFNCell", (state,), self.recurrent_kernel) + self.bias
        theta, eta = torch.sigmoid(gates).chunk(2, -1)
        h = theta * self.activation(state) + (1 - eta) * self.activation(w)
        return h, h


class NASCell(SizedByInput, RNNCell):
    """The cell that an architecture search found, with eight products of x and h::

        a = x @ kernel;  b = h @ recurrent_kernel + bias                      # bias: use_bias
        s0 = tanh(tanh(sigmoid(a0 + b0) * relu(a1 + b1)) + c)
        s1 = tanh(sigmoid(a2 + b2) + relu(a3 * b3))
        s2 = tanh(tanh(a4 + b4) * sigmoid(a5 + b5))
        s3 = sigmoid(tanh(a6 + b6) + sigmoid(a7 + b7))
        next_c = s0 * s1
        output = next_h = tanh(next_c * tanh(s2 + s3)) @ projection_weights   # num_proj

    Parameters: `kernel` [I, 8 H], `recurrent_kernel` [P, 8 H], `bias` [8 H], `projection_weights` [H, P].

    Source: Zoph and Le 2017, arXiv 1611.01578, appendix; TensorFlow 1.15, `tf.contrib.rnn.NASCell`.

    >>> import torch
    >>> cell = NASCell(5)
    >>> output, state = cell(torch.randn(2, 3), cell.initial_state(2))
    >>> output.shape, cell.kernel.shape
    (torch.Size([2, 5]), torch.Size([3, 40]))
    """

    kernel: Tensor
    recurrent_kernel: Tensor
    bias: Tensor
    projection_weights: Tensor

    def __init__(
        self,
        num_units: int,
        num_proj: int | None = None,
        use_bias: bool = False,
        *,
        input_size: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_units = read_units("num_units", num_units)
        self.num_proj = None if num_proj is None else read_units("num_proj", num_proj)
        self.use_bias = use_bias
        self.output_size = self.num_proj or self.num_units
        self.state_size = LSTMStateTuple(self.num_units, self.output_size)
        self._declare(input_size, device, dtype)

    def layout(self, input_size: int) -> Layout:
        units = self.num_units
        table: Layout = {
            "kernel": ((input_size, 8 * units), glorot_uniform),
            "recurrent_kernel": ((self.output_size, 8 * units), glorot_uniform),
        }
        if self.use_bias:
            table["bias"] = ((8 * units,), zeros)
        if self.num_proj is not None:
            table["projection_weights"] = ((units, self.num_proj), glorot_uniform)
        return table

    def forward(self, inputs: Tensor, state: Any, row_consts: tuple = ()) -> tuple[Tensor, LSTMStateTuple]:
        c, h = split_lstm_state("NASCell", state, self.state_size)
        a = affine("NASCell", (inputs,), self.kernel).chunk(8, -1)
        b = affine("NASCell", (h,), self.recurrent_kernel, self.bias if self.use_bias else None).chunk(8, -1)
        s0 = torch.tanh(torch.tanh(torch.sigmoid(a[0] + b[0]) * torch.relu(a[1] + b[1])) + c)
        s1 = torch.tanh(torch.sigmoid(a[2] + b[2]) + torch.relu(a[3] * b[3]))
        s2 = torch.tanh(torch.tanh(a[4] + b[4]) * torch.sigmoid(a[5] + b[5]))
        s3 = torch.sigmoid(torch.tanh(a[6] + b[6]) + torch.sigmoid(a[7] + b[7]))
        c = s0 * s1
        h = torch.tanh(c * torch.tanh(s2 + s3))
        if self.num_proj is not None:
            h = h @ self.projection_weights
        return h, LSTMStateTuple(c, h)
