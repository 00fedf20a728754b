"""LSTMs over images, lines and volumes: every product is a convolution."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from throughtime.cells._base import RNNCell
from throughtime.cells._options import read_units
from throughtime.cells._parameters import Initializer, Layout, SizedByInput, check_input, glorot_uniform, zeros
from throughtime.cells.lstm import LSTMStateTuple, split_lstm_state

__all__ = ["Conv1DLSTMCell", "Conv2DLSTMCell", "Conv3DLSTMCell", "ConvLSTMCell"]

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class ConvLSTMCell(SizedByInput, RNNCell):
    """An LSTM whose input, c and h are [B, *space, channels]::

        i, j, f, o = split(convolve([x, h], kernel) + biases)
        next_c = c * sigmoid(f + forget_bias) + sigmoid(i) * tanh(j)
        next_h = tanh(next_c) * sigmoid(o)
        output = [next_h, x] if skip_connection else next_h

    with zeros around the borders, so that all have the same space. (TensorFlow's skip connection also goes into
    h, which contradicts its own `state_size`; here h is the LSTM's.)

    Args:
        conv_ndims: the number of axes of the space, 1 to 3.
        input_shape: (*space, channels) of one step's input.
        output_channels: C, the channels of c and h.
        kernel_shape: one width for each axis.
        initializers: fills the kernel in place; by default Glorot's uniform.

    Parameters: `kernel` [*kernel_shape, channels + C, 4 C] in the order i, j, f, o, `biases` [4 C].

    Source: Shi et al. 2015, arXiv 1506.04214, equation 3, without peepholes; TensorFlow 1.15,
    `tf.contrib.rnn.ConvLSTMCell`.

    >>> import torch
    >>> cell = ConvLSTMCell(2, (8, 9, 3), output_channels=4, kernel_shape=(3, 3))
    >>> output, state = cell(torch.randn(2, 8, 9, 3), cell.initial_state(2))
    >>> output.shape, cell.kernel.shape
    (torch.Size([2, 8, 9, 4]), torch.Size([3, 3, 7, 16]))
    """

    kernel: Tensor
    biases: Tensor

    def __init__(
        self,
        conv_ndims: int,
        input_shape: Sequence[int],
        output_channels: int,
        kernel_shape: Sequence[int],
        use_bias: bool = True,
        skip_connection: bool = False,
        forget_bias: float = 1.0,
        initializers: Initializer | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if conv_ndims not in _CONVOLUTIONS or len(input_shape) != conv_ndims + 1 or len(kernel_shape) != conv_ndims:
            raise ValueError(
                f"ConvLSTMCell: conv_ndims is 1, 2 or 3, input_shape has one entry more (the channels), kernel_shape "
                f"has as many; got {conv_ndims}, {tuple(input_shape)} and {tuple(kernel_shape)}."
            )
        *space, channels = input_shape
        self.conv_ndims, self.kernel_shape = conv_ndims, tuple(kernel_shape)
        self.output_channels = read_units("output_channels", output_channels)
        self.use_bias, self.skip_connection, self.forget_bias = use_bias, skip_connection, forget_bias
        hidden = torch.Size([*space, output_channels])
        self.state_size = LSTMStateTuple(hidden, hidden)
        self.output_size = torch.Size([*space, output_channels + channels * skip_connection])
        self._initializer = initializers or glorot_uniform
        self._declare(channels, device, dtype)

    def layout(self, input_size: int) -> Layout:
        channels = self.output_channels
        table: Layout = {"kernel": ((*self.kernel_shape, input_size + channels, 4 * channels), self._initializer)}
        if self.use_bias:
            table["biases"] = ((4 * channels,), zeros)
        return table

    def forward(self, inputs: Tensor, state: Any, row_consts: tuple = ()) -> tuple[Tensor, LSTMStateTuple]:
        c, h = split_lstm_state("ConvLSTMCell", state, self.state_size)
        kernel = self.kernel
        check_input("ConvLSTMCell", inputs, kernel)
        # PyTorch's convolutions have the channels first: [B, C, *space] and [4 C, C, *kernel_shape].
        kernel = kernel.movedim((-1, -2), (0, 1))
        image = torch.cat([inputs, h], -1).movedim(-1, 1)
        padding = [width // 2 for width in self.kernel_shape]
        gates = _CONVOLUTIONS[self.conv_ndims](image, kernel, padding=padding).movedim(1, -1)
        gates = self._without_first(gates)
        i, j, f, o = (gates + self.biases if self.use_bias else gates).chunk(4, -1)
        c = c * torch.sigmoid(f + self.forget_bias) + torch.sigmoid(i) * torch.tanh(j)
        h = torch.tanh(c) * torch.sigmoid(o)
        return (torch.cat([h, inputs], -1) if self.skip_connection else h), LSTMStateTuple(c, h)

    def _without_first(self, gates: Tensor) -> Tensor:
        """An even kernel has one zero less before than after (TensorFlow's SAME), so its first result is dropped."""
        for axis, width in enumerate(self.kernel_shape, start=1):
            gates = gates.narrow(axis, 1, gates.shape[axis] - 1) if width % 2 == 0 else gates
        return gates


def Conv1DLSTMCell(*args: Any, **kwargs: Any) -> ConvLSTMCell:
    """`ConvLSTMCell(1, ...)`, TensorFlow's name."""
    return ConvLSTMCell(1, *args, **kwargs)


def Conv2DLSTMCell(*args: Any, **kwargs: Any) -> ConvLSTMCell:
    """`ConvLSTMCell(2, ...)`, TensorFlow's name."""
    return ConvLSTMCell(2, *args, **kwargs)


def Conv3DLSTMCell(*args: Any, **kwargs: Any) -> ConvLSTMCell:
    """`ConvLSTMCell(3, ...)`, TensorFlow's name."""
    return ConvLSTMCell(3, *args, **kwargs)
