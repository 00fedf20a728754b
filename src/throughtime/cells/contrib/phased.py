"""An LSTM for events at irregular times: each unit opens only in its own phase of its own period."""

from typing import Any

import torch
from torch import Tensor, nn

from throughtime.cells._base import RNNCell
from throughtime.cells._options import read_units
from throughtime.cells._parameters import Dense, zeros
from throughtime.cells.lstm import LSTMStateTuple, split_lstm_state

__all__ = ["PhasedLSTMCell"]


class PhasedLSTMCell(RNNCell):
    """A step on `(time [B, 1], x [B, I])`::

        i, f = split(sigmoid(mask_gates([x, h, c])))                  # c only with use_peepholes
        new_c = f * c + i * tanh(new_input([x, h]))
        new_h = tanh(new_c) * sigmoid(output_gate([x, h, new_c]))     # new_c only with use_peepholes
        r = ((time - phase) mod period) / period
        k = 2 r / ratio_on            where r < ratio_on / 2          # opening
            2 - 2 r / ratio_on        where r < ratio_on              # closing
            leak * r                  elsewhere                       # closed
        next_c, next_h = k * new_c + (1 - k) * c, k * new_h + (1 - k) * h
        output = next_h

    The gradient of the remainder is that of its first argument; as in TensorFlow, the period gets one from the
    division only.

    Parameters: `kernel` and `bias` of `mask_gates`, `new_input` and `output_gate`; `period` (exp U(log min, log max)
    at first), `phase` (U(0, period)), `ratio_on` [H].

    Source: Neil et al. 2016, arXiv 1610.09513, equations 6 to 11; TensorFlow 1.15, `tf.contrib.rnn.PhasedLSTMCell`.

    >>> import torch
    >>> cell = PhasedLSTMCell(5)
    >>> output, state = cell((torch.tensor([[0.5], [7.0]]), torch.randn(2, 3)), cell.initial_state(2))
    >>> output.shape, cell.period.shape
    (torch.Size([2, 5]), torch.Size([5]))
    """

    def __init__(
        self,
        num_units: int,
        use_peepholes: bool = False,
        leak: float = 0.001,
        ratio_on: float = 0.1,
        trainable_ratio_on: bool = True,
        period_init_min: float = 1.0,
        period_init_max: float = 1000.0,
        *,
        input_size: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        units = self.num_units = self.output_size = read_units("num_units", num_units)
        self.state_size = LSTMStateTuple(units, units)
        self.use_peepholes, self.leak = use_peepholes, leak
        self._ratio_on, self._period_range = ratio_on, (period_init_min, period_init_max)
        kind = {"device": device, "dtype": dtype}
        short = None if input_size is None else input_size + units
        tall = None if short is None else short + units * use_peepholes
        self.mask_gates = Dense(2 * units, zeros, name="PhasedLSTMCell", input_size=tall, **kind)
        self.new_input = Dense(units, zeros, name="PhasedLSTMCell", input_size=short, **kind)
        self.output_gate = Dense(units, zeros, name="PhasedLSTMCell", input_size=tall, **kind)
        self.period = nn.Parameter(torch.empty(units, **kind))
        self.phase = nn.Parameter(torch.empty(units, **kind))
        self.ratio_on = nn.Parameter(torch.empty(units, **kind), requires_grad=trainable_ratio_on)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        low, high = torch.tensor(self._period_range).log().tolist()
        nn.init.uniform_(self.period, low, high).exp_()
        nn.init.uniform_(self.phase).mul_(self.period)
        nn.init.constant_(self.ratio_on, self._ratio_on)

    def forward(self, inputs: Any, state: Any, row_consts: tuple = ()) -> tuple[Tensor, LSTMStateTuple]:
        c, h = split_lstm_state("PhasedLSTMCell", state, self.state_size)
        if not isinstance(inputs, (tuple, list)) or len(inputs) != 2:
            raise TypeError("PhasedLSTMCell: a step's input is a pair (time [batch, 1], features [batch, I]).")
        time, x = inputs
        i, f = torch.sigmoid(self.mask_gates(x, h, *self._peep(c))).chunk(2, -1)
        new_c = f * c + i * torch.tanh(self.new_input(x, h))
        new_h = torch.tanh(new_c) * torch.sigmoid(self.output_gate(x, h, *self._peep(new_c)))
        k = self._openness(time)
        c, h = k * new_c + (1 - k) * c, k * new_h + (1 - k) * h
        return h, LSTMStateTuple(c, h)

    def _peep(self, c: Tensor) -> tuple[Tensor, ...]:
        return (c,) if self.use_peepholes else ()

    def _openness(self, time: Tensor) -> Tensor:
        shifted = time - self.phase
        remainder = shifted + (torch.remainder(shifted, self.period) - shifted).detach()
        r = remainder / self.period
        opening = 2 * r / self.ratio_on
        k = torch.where(r < self.ratio_on, 2 - opening, self.leak * r)
        return torch.where(r < 0.5 * self.ratio_on, opening, k)
