"""LSTMs with each gate and the memory normalised over the units."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from throughtime.cells._base import RNNCell
from throughtime.cells._options import Activation, find_activation, read_clip, read_keep_prob, read_units
from throughtime.cells._parameters import Initializer, Layout, SizedByInput, affine, glorot_uniform, zeros
from throughtime.cells.lstm import LSTMStateTuple, split_lstm_state

__all__ = ["LayerNormBasicLSTMCell", "LayerNormLSTMCell"]

_GATES = ("input", "transform", "forget", "output")


class _LayerNorm(nn.Module):
    """`(x - mean(x)) / sqrt(var(x) + 1e-12) * gamma + beta`, with TensorFlow's names and epsilon."""

    def __init__(self, units: int, gain: float, shift: float, **kind: Any) -> None:
        super().__init__()
        self.gain, self.shift = gain, shift
        self.gamma = nn.Parameter(torch.empty(units, **kind))
        self.beta = nn.Parameter(torch.empty(units, **kind))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.gamma, self.gain)
        nn.init.constant_(self.beta, self.shift)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (x.shape[-1],), self.gamma, self.beta, 1e-12)


def _add_norms(cell: nn.Module, units: int, names: tuple[str, ...], gain: float, shift: float, **kind: Any) -> None:
    for name in names:
        cell.add_module(name, _LayerNorm(units, gain, shift, **kind))


class LayerNormBasicLSTMCell(SizedByInput, RNNCell):
    """An LSTM with each gate and c normalised, and dropout of what is written into c::

        i, j, f, o = split([x, h] @ kernel)                                  # + bias without layer_norm
        i, j, f, o = input(i), transform(j), forget(f), output(o)            # layer norms
        next_c = state(c * sigmoid(f + forget_bias) + sigmoid(i) * drop(activation(j)))
        output = next_h = activation(next_c) * sigmoid(o)

    (Another cell than TensorFlow Addons' `LayerNormLSTMCell`, which normalises all gates together.)

    Parameters: `kernel` [I + H, 4 H]; `gamma` and `beta` [H] of `input`, `transform`, `forget`, `output`, `state`; or,
    without `layer_norm`, `bias`.

    Source: Ba et al. 2016, arXiv 1607.06450, and Semeniuta et al. 2016, arXiv 1603.05118; TensorFlow 1.15,
    `tf.contrib.rnn.LayerNormBasicLSTMCell`.

    >>> import torch
    >>> cell = LayerNormBasicLSTMCell(5)
    >>> output, state = cell(torch.randn(2, 3), cell.initial_state(2))
    >>> output.shape, cell.forget.gamma.shape
    (torch.Size([2, 5]), torch.Size([5]))
    """

    kernel: Tensor
    bias: Tensor

    def __init__(
        self,
        num_units: int,
        forget_bias: float = 1.0,
        activation: Activation | str | None = None,
        layer_norm: bool = True,
        norm_gain: float = 1.0,
        norm_shift: float = 0.0,
        dropout_keep_prob: float = 1.0,
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
        self.layer_norm = layer_norm
        self.dropout_keep_prob = read_keep_prob("dropout_keep_prob", dropout_keep_prob)
        self._declare(input_size, device, dtype)
        if layer_norm:
            _add_norms(self, units, (*_GATES, "state"), norm_gain, norm_shift, device=device, dtype=dtype)

    def layout(self, input_size: int) -> Layout:
        units = self.num_units
        table: Layout = {"kernel": ((input_size + units, 4 * units), glorot_uniform)}
        if not self.layer_norm:
            table["bias"] = ((4 * units,), zeros)
        return table

    def forward(self, inputs: Tensor, state: Any, row_consts: tuple = ()) -> tuple[Tensor, LSTMStateTuple]:
        c, h = split_lstm_state("LayerNormBasicLSTMCell", state, self.state_size)
        bias = None if self.layer_norm else self.bias
        gates = affine("LayerNormBasicLSTMCell", (inputs, h), self.kernel, bias).chunk(4, -1)
        i, j, f, o = (self._norm(name, gate) for name, gate in zip(_GATES, gates))
        g = F.dropout(self.activation(j), 1.0 - self.dropout_keep_prob, self.training)
        c = self._norm("state", c * torch.sigmoid(f + self.forget_bias) + torch.sigmoid(i) * g)
        h = self.activation(c) * torch.sigmoid(o)
        return h, LSTMStateTuple(c, h)

    def _norm(self, name: str, value: Tensor) -> Tensor:
        return getattr(self, name)(value) if self.layer_norm else value


class LayerNormLSTMCell(SizedByInput, RNNCell):
    """`LSTMCell` with peepholes, and with each gate and c normalised::

        i, j, f, o = split([x, h] @ kernel)                                  # + bias without layer_norm
        i, j, f, o = input(i), transform(j), forget(f), output(o)            # layer norms
        i, f = i + w_i_diag * c, f + w_f_diag * c                            # use_peepholes
        next_c = clip(state(c * sigmoid(f + forget_bias) + sigmoid(i) * activation(j)))    # cell_clip
        output = next_h = sigmoid(o + w_o_diag * next_c) * activation(next_c)

    Parameters: those of `LSTMCell`; with `layer_norm` also `gamma` and `beta` [H] of `input`, `transform`, `forget`,
    `output`, `state`, and no `bias` (TensorFlow makes one and does not use it). Not here: its projection.

    Source: Ba et al. 2016, arXiv 1607.06450; TensorFlow 1.15, `tf.contrib.rnn.LayerNormLSTMCell`.

    >>> import torch
    >>> cell = LayerNormLSTMCell(5, layer_norm=True)
    >>> output, state = cell(torch.randn(2, 3), cell.initial_state(2))
    >>> output.shape, cell.state.beta.shape
    (torch.Size([2, 5]), torch.Size([5]))
    """

    kernel: Tensor
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
        layer_norm: bool = False,
        norm_gain: float = 1.0,
        norm_shift: float = 0.0,
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
        self.layer_norm = layer_norm
        self._initializer = initializer or glorot_uniform
        self._declare(input_size, device, dtype)
        if layer_norm:
            _add_norms(self, units, (*_GATES, "state"), norm_gain, norm_shift, device=device, dtype=dtype)

    def layout(self, input_size: int) -> Layout:
        units = self.num_units
        table: Layout = {"kernel": ((input_size + units, 4 * units), self._initializer)}
        if not self.layer_norm:
            table["bias"] = ((4 * units,), zeros)
        if self.use_peepholes:
            table |= dict.fromkeys(("w_f_diag", "w_i_diag", "w_o_diag"), ((units,), self._initializer))
        return table

    def forward(self, inputs: Tensor, state: Any, row_consts: tuple = ()) -> tuple[Tensor, LSTMStateTuple]:
        c, h = split_lstm_state("LayerNormLSTMCell", state, self.state_size)
        bias = None if self.layer_norm else self.bias
        gates = affine("LayerNormLSTMCell", (inputs, h), self.kernel, bias).chunk(4, -1)
        i, j, f, o = (self._norm(name, gate) for name, gate in zip(_GATES, gates))
        if self.use_peepholes:
            f = f + self.w_f_diag * c
            i = i + self.w_i_diag * c
        c = self._norm("state", c * torch.sigmoid(f + self.forget_bias) + torch.sigmoid(i) * self.activation(j))
        if self.cell_clip is not None:
            c = c.clamp(-self.cell_clip, self.cell_clip)
        if self.use_peepholes:
            o = o + self.w_o_diag * c
        h = torch.sigmoid(o) * self.activation(c)
        return h, LSTMStateTuple(c, h)

    def _norm(self, name: str, value: Tensor) -> Tensor:
        return getattr(self, name)(value) if self.layer_norm else value
