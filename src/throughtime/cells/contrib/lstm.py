"""LSTMs of TensorFlow's contrib: coupled gates, normalised weights, groups."""

from typing import Any

import torch
from torch import Tensor, nn

from throughtime.cells._base import RNNCell
from throughtime.cells._options import Activation, find_activation, read_clip, read_units
from throughtime.cells._parameters import (
    Dense,
    Initializer,
    Layout,
    SizedByInput,
    affine,
    glorot_uniform,
    zeros,
)
from throughtime.cells.lstm import LSTMStateTuple, join_lstm_state, split_lstm_state

__all__ = [
    "CoupledInputForgetGateLSTMCell",
    "GLSTMCell",
    "WeightNormLSTMCell",
]


class CoupledInputForgetGateLSTMCell(SizedByInput, RNNCell):
    """An LSTM that writes just what it forgets, i = 1 - f::

        j, f, o = split([x, h] @ W_0 + B)
        f = sigmoid(f + forget_bias + W_F_diag * c)                          # W_F_diag, W_O_diag: use_peepholes
        next_c = f * c + (1 - f) * activation(j)
        next_h = sigmoid(o + W_O_diag * next_c) * activation(next_c)
        output = next_h = clip(next_h @ W_P_0, -proj_clip, proj_clip)        # num_proj; proj_clip

    Parameters: `W_0` [I + P, 3 H], `B` [3 H]; `W_F_diag`, `W_O_diag` [H]; `W_P_0` [H, P].
    Not here: TensorFlow's `layer_norm` and its shards.

    Source: Greff et al. 2015, arXiv 1503.04069, section 3 (CIFG); TensorFlow 1.15,
    `tf.contrib.rnn.CoupledInputForgetGateLSTMCell`.

    >>> import torch
    >>> cell = CoupledInputForgetGateLSTMCell(5, use_peepholes=True)
    >>> output, state = cell(torch.randn(2, 3), cell.initial_state(2))
    >>> output.shape, cell.W_0.shape
    (torch.Size([2, 5]), torch.Size([8, 15]))
    """

    W_0: Tensor
    B: Tensor
    W_F_diag: Tensor
    W_O_diag: Tensor
    W_P_0: Tensor

    def __init__(
        self,
        num_units: int,
        use_peepholes: bool = False,
        initializer: Initializer | None = None,
        num_proj: int | None = None,
        proj_clip: float | None = None,
        *,
        forget_bias: float = 1.0,
        state_is_tuple: bool = True,
        activation: Activation | str | None = None,
        input_size: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_units = read_units("num_units", num_units)
        self.num_proj = None if num_proj is None else read_units("num_proj", num_proj)
        self.output_size = self.num_proj or self.num_units
        self.state_size = LSTMStateTuple(self.num_units, self.output_size)
        if not state_is_tuple:
            self.state_size = self.num_units + self.output_size
        self.use_peepholes = use_peepholes
        self.proj_clip = read_clip("proj_clip", proj_clip)
        self.forget_bias = forget_bias
        self.activation = find_activation(activation, "tanh")
        self._initializer = initializer or glorot_uniform
        self._declare(input_size, device, dtype)

    def layout(self, input_size: int) -> Layout:
        units, draw = self.num_units, self._initializer
        table: Layout = {"W_0": ((input_size + self.output_size, 3 * units), draw), "B": ((3 * units,), zeros)}
        if self.use_peepholes:
            table |= dict.fromkeys(("W_F_diag", "W_O_diag"), ((units,), draw))
        if self.num_proj is not None:
            table["W_P_0"] = ((units, self.num_proj), draw)
        return table

    def forward(self, inputs: Tensor, state: Any, row_consts: tuple = ()) -> tuple[Tensor, Any]:
        name = "CoupledInputForgetGateLSTMCell"
        c, h = split_lstm_state(name, state, self.state_size, self.num_units)
        j, f, o = affine(name, (inputs, h), self.W_0, self.B).chunk(3, -1)
        f = f + self.forget_bias
        if self.use_peepholes:
            f = f + self.W_F_diag * c
        f = torch.sigmoid(f)
        c = f * c + (1 - f) * self.activation(j)
        if self.use_peepholes:
            o = o + self.W_O_diag * c
        h = torch.sigmoid(o) * self.activation(c)
        if self.num_proj is not None:
            h = h @ self.W_P_0
        if self.proj_clip is not None:
            h = h.clamp(-self.proj_clip, self.proj_clip)
        return h, join_lstm_state(c, h, self.state_size)


class WeightNormLSTMCell(SizedByInput, RNNCell):
    """`LSTMCell` with peepholes, the columns of its two kernels rescaled to learned lengths::

        i, j, f, o = split(x @ (kernel[:I] / |kernel[:I]| * norm_0) + h @ (kernel[I:] / |kernel[I:]| * norm_1) + bias)

    with the length of each column, and the rest as in `LSTMCell`.

    Parameters: those of `LSTMCell`, and `norm_0`, `norm_1` [4 H]. Not here: TensorFlow's projection and its
    `norm=False`, which is `LSTMCell`.

    Source: Salimans and Kingma 2016, arXiv 1602.07868, equation 2; TensorFlow 1.15,
    `tf.contrib.rnn.WeightNormLSTMCell`.

    >>> import torch
    >>> cell = WeightNormLSTMCell(5)
    >>> output, state = cell(torch.randn(2, 3), cell.initial_state(2))
    >>> output.shape, cell.norm_1.shape
    (torch.Size([2, 5]), torch.Size([20]))
    """

    kernel: Tensor
    norm_0: Tensor
    norm_1: Tensor
    bias: Tensor
    w_f_diag: Tensor
    w_i_diag: Tensor
    w_o_diag: Tensor

    def __init__(
        self,
        num_units: int,
        use_peepholes: bool = False,
        cell_clip: float | None = None,
        initializer: Initializer | None = None,
        *,
        forget_bias: float = 1.0,
        activation: Activation | str | None = None,
        input_size: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        units = self.num_units = self.output_size = read_units("num_units", num_units)
        self.state_size = LSTMStateTuple(units, units)
        self.use_peepholes = use_peepholes
        self.cell_clip = read_clip("cell_clip", cell_clip)
        self.forget_bias = forget_bias
        self.activation = find_activation(activation, "tanh")
        self._initializer = initializer or glorot_uniform
        self._declare(input_size, device, dtype)

    def layout(self, input_size: int) -> Layout:
        units, draw = self.num_units, self._initializer
        table: Layout = {"kernel": ((input_size + units, 4 * units), draw)}
        table |= dict.fromkeys(("norm_0", "norm_1"), ((4 * units,), draw)) | {"bias": ((4 * units,), zeros)}
        if self.use_peepholes:
            table |= dict.fromkeys(("w_f_diag", "w_i_diag", "w_o_diag"), ((units,), draw))
        return table

    def forward(self, inputs: Tensor, state: Any, row_consts: tuple = ()) -> tuple[Tensor, LSTMStateTuple]:
        c, h = split_lstm_state("WeightNormLSTMCell", state, self.state_size)
        kernel = self.kernel
        split = kernel.shape[0] - self.num_units
        normed = torch.cat([_rescale(kernel[:split], self.norm_0), _rescale(kernel[split:], self.norm_1)])
        i, j, f, o = affine("WeightNormLSTMCell", (inputs, h), normed, self.bias).chunk(4, -1)
        if self.use_peepholes:
            f = f + self.w_f_diag * c
            i = i + self.w_i_diag * c
        c = c * torch.sigmoid(f + self.forget_bias) + torch.sigmoid(i) * self.activation(j)
        if self.cell_clip is not None:
            c = c.clamp(-self.cell_clip, self.cell_clip)
        if self.use_peepholes:
            o = o + self.w_o_diag * c
        h = torch.sigmoid(o) * self.activation(c)
        return h, LSTMStateTuple(c, h)


def _rescale(kernel: Tensor, lengths: Tensor) -> Tensor:
    """Columns of the given lengths; TensorFlow's bound keeps a column of zeros finite."""
    return kernel * torch.rsqrt(kernel.square().sum(0).clamp(min=1e-12)) * lengths


class GLSTMCell(RNNCell):
    """An LSTM in groups: the input and h are cut into G parts, and each part has gates of its own::

        for k in range(G): i_k, j_k, f_k, o_k = split([x_k, h_k] @ group<k>.kernel)
        i, j, f, o = concat(i_k) + bias_i, concat(j_k) + bias_j, concat(f_k) + bias_f, concat(o_k) + bias_o
        next_c = sigmoid(f + forget_bias) * c + sigmoid(i) * activation(j)
        output = next_h = sigmoid(o) * activation(next_c) @ projection.kernel           # num_proj

    Parameters: `group0.kernel` [(I + P) / G, 4 H / G] and so on, `bias_i`, `bias_j`, `bias_f`, `bias_o` [H];
    `projection.kernel` [H, P].

    Source: Kuchaiev and Ginsburg 2017, arXiv 1703.10722, section 2.3; TensorFlow 1.15, `tf.contrib.rnn.GLSTMCell`.

    >>> import torch
    >>> cell = GLSTMCell(6, number_of_groups=2)
    >>> output, state = cell(torch.randn(2, 4), cell.initial_state(2))
    >>> output.shape, cell.group0.kernel.shape
    (torch.Size([2, 6]), torch.Size([5, 12]))
    """

    def __init__(
        self,
        num_units: int,
        initializer: Initializer | None = None,
        num_proj: int | None = None,
        number_of_groups: int = 1,
        *,
        forget_bias: float = 1.0,
        activation: Activation | str | None = None,
        input_size: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        units = self.num_units = read_units("num_units", num_units)
        self.output_size = units if num_proj is None else read_units("num_proj", num_proj)
        self.state_size = LSTMStateTuple(units, self.output_size)
        self.number_of_groups = read_units("number_of_groups", number_of_groups)
        self.forget_bias = forget_bias
        self.activation = find_activation(activation, "tanh")
        widths = {"num_units": units, "num_proj": self.output_size, "input_size": input_size or 0}
        for name, width in widths.items():
            self._check_groups(name, width)
        height = None if input_size is None else (input_size + self.output_size) // number_of_groups
        draw, kind = initializer or glorot_uniform, {"device": device, "dtype": dtype}
        for k in range(number_of_groups):
            dense = Dense(4 * units // number_of_groups, None, draw, name=f"group{k}", input_size=height, **kind)
            self.add_module(f"group{k}", dense)
        for gate in "ijfo":
            self.register_parameter(f"bias_{gate}", nn.Parameter(torch.zeros(units, **kind)))
        self.projection = None
        if num_proj is not None:
            self.projection = Dense(num_proj, None, draw, name="GLSTMCell.projection", input_size=units, **kind)

    def forward(self, inputs: Tensor, state: Any, row_consts: tuple = ()) -> tuple[Tensor, LSTMStateTuple]:
        c, h = split_lstm_state("GLSTMCell", state, self.state_size)
        self._check_groups("the input size", inputs.shape[-1])
        groups = self.number_of_groups
        parts = zip(inputs.chunk(groups, -1), h.chunk(groups, -1))
        gates = [getattr(self, f"group{k}")(x, part).chunk(4, -1) for k, (x, part) in enumerate(parts)]
        i, j, f, o = (torch.cat(gate, -1) + getattr(self, f"bias_{name}") for name, gate in zip("ijfo", zip(*gates)))
        c = c * torch.sigmoid(f + self.forget_bias) + torch.sigmoid(i) * self.activation(j)
        h = torch.sigmoid(o) * self.activation(c)
        h = h if self.projection is None else self.projection(h)
        return h, LSTMStateTuple(c, h)

    def reset_parameters(self) -> None:
        for gate in "ijfo":
            nn.init.zeros_(getattr(self, f"bias_{gate}"))

    def _check_groups(self, name: str, width: int) -> None:
        if width % self.number_of_groups:
            raise ValueError(
                f"GLSTMCell: {name} must be divisible by number_of_groups, {self.number_of_groups}; got {width}."
            )
