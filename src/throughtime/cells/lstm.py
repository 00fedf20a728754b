"""Long short-term memory: the basic cell, and the one with peepholes, clipping and projection."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

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

__all__ = ["BasicLSTMCell", "LSTMCell", "LSTMStateTuple"]


class LSTMStateTuple(NamedTuple):
    """The state of an LSTM, or its sizes: the memory c first, then the output h (PyTorch's order is h, c)."""

    c: Any
    h: Any

    @property
    def dtype(self) -> torch.dtype:
        if self.c.dtype != self.h.dtype:
            raise TypeError(f"LSTMStateTuple: c and h must have one dtype, got {self.c.dtype} and {self.h.dtype}.")
        return self.c.dtype


class BasicLSTMCell(SizedByInput, RNNCell):
    """Long short-term memory without options::

        i, j, f, o = split([x, h] @ kernel + bias)
        next_c = c * sigmoid(f + forget_bias) + sigmoid(i) * activation(j)
        output = next_h = activation(next_c) * sigmoid(o)

    Args:
        num_units: the width H of c, h and the output.
        forget_bias: added to f at run time; it is no part of `bias`.
        state_is_tuple: False makes the state one tensor [B, 2 H], c first.
        activation: a callable or a name; tanh by default.
        input_size: I, by default found at the first call.

    Parameters: `kernel` [I + H, 4 H] in the order i, j, f, o, `bias` [4 H].

    Source: Zaremba et al. 2014, arXiv 1409.2329; TensorFlow 1.15, `tf.nn.rnn_cell.BasicLSTMCell`.

    >>> import torch, throughtime
    >>> cell = throughtime.BasicLSTMCell(5)
    >>> output, state = cell(torch.randn(2, 3), cell.initial_state(2))
    >>> torch.equal(output, state.h), cell.kernel.shape
    (True, torch.Size([8, 20]))
    """

    kernel: Tensor
    bias: Tensor

    def __init__(
        self,
        num_units: int,
        forget_bias: float = 1.0,
        state_is_tuple: bool = True,
        activation: Activation | str | None = None,
        *,
        input_size: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        units = self.num_units = self.output_size = read_units("num_units", num_units)
        self.state_size = LSTMStateTuple(units, units) if state_is_tuple else 2 * units
        self.state_is_tuple = state_is_tuple
        self.forget_bias = forget_bias
        self.activation = find_activation(activation, "tanh")
        self._declare(input_size, device, dtype)

    def layout(self, input_size: int) -> Layout:
        units = self.num_units
        return {"kernel": ((input_size + units, 4 * units), glorot_uniform), "bias": ((4 * units,), zeros)}

    def forward(self, inputs: Tensor, state: Any, row_consts: tuple = ()) -> tuple[Tensor, Any]:
        c, h = split_lstm_state("BasicLSTMCell", state, self.state_size)
        i, j, f, o = affine("BasicLSTMCell", (inputs, h), self.kernel, self.bias).chunk(4, -1)
        c = c * torch.sigmoid(f + self.forget_bias) + torch.sigmoid(i) * self.activation(j)
        h = self.activation(c) * torch.sigmoid(o)
        return h, join_lstm_state(c, h, self.state_size)


class LSTMCell(SizedByInput, RNNCell):
    """Long short-term memory with peepholes, clipping and a projection, each of them only if asked for::

        i, j, f, o = split([x, h] @ kernel + bias)
        i, f = i + w_i_diag * c, f + w_f_diag * c                             # use_peepholes
        next_c = c * sigmoid(f + forget_bias) + sigmoid(i) * activation(j)
        next_c = clip(next_c, -cell_clip, cell_clip)                          # cell_clip
        o = o + w_o_diag * next_c                                             # use_peepholes
        next_h = sigmoid(o) * activation(next_c)
        next_h = clip(next_h @ projection.kernel, -proj_clip, proj_clip)      # num_proj; proj_clip
        output = next_h

    Args:
        num_units: the width H of c.
        use_peepholes: let the gates see c.
        cell_clip: bound of c, above 0. (TensorFlow's `cell_clip=0` clips all to 0; here 0 is an error.)
        initializer: fills a kernel or a peephole vector in place; by default Glorot's uniform.
        num_proj: the width P of h and the output; by default H, without a projection.
        proj_clip: bound of the projected h, above 0.
        forget_bias: added to f at run time; it is no part of `bias`.
        state_is_tuple: False makes the state one tensor [B, H + P], c first.
        activation: a callable or a name; tanh by default.
        input_size: I, by default found at the first call.

    Parameters: `kernel` [I + P, 4 H] in the order i, j, f, o, `bias` [4 H]; `w_f_diag`, `w_i_diag`, `w_o_diag` [H];
    `projection.kernel` [H, P].

    Source: Hochreiter and Schmidhuber 1997; peepholes and projection from Sak et al. 2014, arXiv 1402.1128,
    equations 7 to 14; TensorFlow 1.15, `tf.nn.rnn_cell.LSTMCell`.

    >>> import torch, throughtime
    >>> cell = throughtime.LSTMCell(5, use_peepholes=True, num_proj=2)
    >>> output, state = cell(torch.randn(4, 3), cell.initial_state(4))
    >>> output.shape, state.c.shape, cell.kernel.shape
    (torch.Size([4, 2]), torch.Size([4, 5]), torch.Size([5, 20]))
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
        self.output_size = self.num_units if num_proj is None else read_units("num_proj", num_proj)
        if proj_clip is not None and num_proj is None:
            raise ValueError("LSTMCell: proj_clip bounds the projected output; pass num_proj with it.")
        self.state_size = LSTMStateTuple(self.num_units, self.output_size)
        if not state_is_tuple:
            self.state_size = self.num_units + self.output_size
        self.use_peepholes = use_peepholes
        self.cell_clip = read_clip("cell_clip", cell_clip)
        self.proj_clip = read_clip("proj_clip", proj_clip)
        self.forget_bias = forget_bias
        self.state_is_tuple = state_is_tuple
        self.activation = find_activation(activation, "tanh")
        self._initializer = initializer or glorot_uniform
        self._declare(input_size, device, dtype)
        self.projection = None
        if num_proj is not None:
            sized = {"name": "LSTMCell.projection", "input_size": num_units, "device": device, "dtype": dtype}
            self.projection = Dense(num_proj, kernel=self._initializer, **sized)

    def layout(self, input_size: int) -> Layout:
        units = self.num_units
        table: Layout = {
            "kernel": ((input_size + self.output_size, 4 * units), self._initializer),
            "bias": ((4 * units,), zeros),
        }
        if self.use_peepholes:
            table |= dict.fromkeys(("w_f_diag", "w_i_diag", "w_o_diag"), ((units,), self._initializer))
        return table

    def forward(self, inputs: Tensor, state: Any, row_consts: tuple = ()) -> tuple[Tensor, Any]:
        c, h = split_lstm_state("LSTMCell", state, self.state_size, self.num_units)
        i, j, f, o = affine("LSTMCell", (inputs, h), self.kernel, self.bias).chunk(4, -1)
        if self.use_peepholes:
            f = f + self.w_f_diag * c
            i = i + self.w_i_diag * c
        c = c * torch.sigmoid(f + self.forget_bias) + torch.sigmoid(i) * self.activation(j)
        if self.cell_clip is not None:
            c = c.clamp(-self.cell_clip, self.cell_clip)
        if self.use_peepholes:
            o = o + self.w_o_diag * c
        h = torch.sigmoid(o) * self.activation(c)
        if self.projection is not None:
            h = self.projection(h)
        if self.proj_clip is not None:
            h = h.clamp(-self.proj_clip, self.proj_clip)
        return h, join_lstm_state(c, h, self.state_size)


def split_lstm_state(name: str, state: Any, size: Any, units: int | None = None) -> tuple[Tensor, Tensor]:
    """(c, h) of a state that is a pair, or one tensor with c in its first `units` columns (half of them by default)."""
    if not isinstance(size, tuple):
        if not isinstance(state, Tensor):
            raise TypeError(f"{name}(state_is_tuple=False): c and h stand in one tensor, got a {type(state).__name__}.")
        first = size // 2 if units is None else units
        return state[..., :first], state[..., first:]
    if not isinstance(state, (tuple, list)) or len(state) != 2:
        got = f"a tuple of {len(state)}" if isinstance(state, (tuple, list)) else f"a {type(state).__name__}"
        raise TypeError(f"{name}: the state is a pair (c, h), got {got}. Start from cell.initial_state(batch_size).")
    return state[0], state[1]


def join_lstm_state(c: Tensor, h: Tensor, size: Any) -> Any:
    return LSTMStateTuple(c, h) if isinstance(size, tuple) else torch.cat([c, h], -1)
