"""Wrappers of TensorFlow's contrib: something learned before a cell or after it."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from throughtime._nested import Nested
from throughtime.cells._inner import CellWrapper, call_cell, output_size_of
from throughtime.cells._options import Activation, find_activation, read_units
from throughtime.cells._parameters import Initializer, Layout, SizedByInput, affine, glorot_uniform, zeros

__all__ = ["EmbeddingWrapper", "HighwayWrapper", "InputProjectionWrapper", "OutputProjectionWrapper"]


class _SizedWrapper(SizedByInput, CellWrapper):
    """A wrapper with parameters of its own beside those of the cell inside."""

    kernel: Tensor
    bias: Tensor


class HighwayWrapper(_SizedWrapper):
    """A learned gate carries the input past the cell::

        carry = sigmoid(x @ carry_w + carry_b)
        transform = 1 - carry                                     # or sigmoid(x @ transform_w + transform_b)
        output = x * carry + cell_output * transform

    Parameters: `carry_w` [I, I], `carry_b` [I], `carry_bias_init` at first; without `couple_carry_transform_gates`
    also `transform_w`, `transform_b`, minus `carry_bias_init` at first.

    Source: Srivastava et al. 2015, arXiv 1505.00387, equations 2 and 3; TensorFlow 1.15,
    `tf.contrib.rnn.HighwayWrapper`.

    >>> import torch, throughtime
    >>> cell = HighwayWrapper(throughtime.GRUCell(3))
    >>> output, state = cell(torch.randn(2, 3), cell.initial_state(2))
    >>> output.shape, cell.carry_b.tolist()
    (torch.Size([2, 3]), [1.0, 1.0, 1.0])
    """

    carry_w: Tensor
    carry_b: Tensor
    transform_w: Tensor
    transform_b: Tensor

    def __init__(
        self,
        cell: Any,
        couple_carry_transform_gates: bool = True,
        carry_bias_init: float = 1.0,
        *,
        input_size: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(cell)
        self.couple_carry_transform_gates = couple_carry_transform_gates
        self.carry_bias_init = carry_bias_init
        self._declare(input_size, device, dtype)

    def layout(self, input_size: int) -> Layout:
        gates = {"carry": self.carry_bias_init}
        if not self.couple_carry_transform_gates:
            gates["transform"] = -self.carry_bias_init
        table: Layout = {}
        for gate, bias in gates.items():
            table[f"{gate}_w"] = ((input_size, input_size), glorot_uniform)
            table[f"{gate}_b"] = ((input_size,), _constant(bias))
        return table

    def forward(self, inputs: Tensor, state: Nested, row_consts: Nested = ()) -> tuple[Tensor, Nested]:
        output, next_state = call_cell(self.cell, inputs, state, row_consts)
        if output.shape[-1] != inputs.shape[-1]:
            raise ValueError(
                f"HighwayWrapper: the cell's output must be as wide as its input, {inputs.shape[-1]}; "
                f"got {output.shape[-1]}. Give the cell that many units."
            )
        carry = torch.sigmoid(affine("HighwayWrapper", (inputs,), self.carry_w, self.carry_b))
        if self.couple_carry_transform_gates:
            transform = 1 - carry
        else:
            transform = torch.sigmoid(affine("HighwayWrapper", (inputs,), self.transform_w, self.transform_b))
        return inputs * carry + output * transform, next_state


class InputProjectionWrapper(_SizedWrapper):
    """`output, next_state = cell(activation(x @ kernel + bias), state)`

    Parameters: `kernel` [I, num_proj], `bias` [num_proj].

    Source: TensorFlow 1.15, `tf.contrib.rnn.InputProjectionWrapper`.

    >>> import torch, throughtime
    >>> cell = InputProjectionWrapper(throughtime.GRUCell(3), num_proj=2)
    >>> output, state = cell(torch.randn(4, 9), cell.initial_state(4))
    >>> cell.kernel.shape, cell.cell.candidate.kernel.shape
    (torch.Size([9, 2]), torch.Size([5, 3]))
    """

    def __init__(
        self,
        cell: Any,
        num_proj: int,
        activation: Activation | str | None = None,
        input_size: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(cell)
        self.num_proj = read_units("num_proj", num_proj)
        self.activation = find_activation(activation, "linear")
        self._declare(input_size, device, dtype)

    def layout(self, input_size: int) -> Layout:
        return {"kernel": ((input_size, self.num_proj), glorot_uniform), "bias": ((self.num_proj,), zeros)}

    def forward(self, inputs: Tensor, state: Nested, row_consts: Nested = ()) -> tuple[Nested, Nested]:
        x = self.activation(affine("InputProjectionWrapper", (inputs,), self.kernel, self.bias))
        return call_cell(self.cell, x, state, row_consts)


class OutputProjectionWrapper(_SizedWrapper):
    """`output = activation(cell_output @ kernel + bias)`

    Parameters: `kernel` [P, output_size], `bias` [output_size], P being the cell's own output size.

    Source: TensorFlow 1.15, `tf.contrib.rnn.OutputProjectionWrapper`.

    >>> import torch, throughtime
    >>> cell = OutputProjectionWrapper(throughtime.LSTMCell(3), output_size=2)
    >>> output, state = cell(torch.randn(4, 9), cell.initial_state(4))
    >>> output.shape, state.h.shape
    (torch.Size([4, 2]), torch.Size([4, 3]))
    """

    def __init__(
        self,
        cell: Any,
        output_size: int,
        activation: Activation | str | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(cell)
        self._output_size = read_units("output_size", output_size)
        self.activation = find_activation(activation, "linear")
        self._declare(output_size_of(cell), device, dtype)

    @property
    def output_size(self) -> int:
        return self._output_size

    def layout(self, input_size: int) -> Layout:
        return {"kernel": ((input_size, self._output_size), glorot_uniform), "bias": ((self._output_size,), zeros)}

    def forward(self, inputs: Nested, state: Nested, row_consts: Nested = ()) -> tuple[Tensor, Nested]:
        output, next_state = call_cell(self.cell, inputs, state, row_consts)
        output = affine("OutputProjectionWrapper", (output,), self.kernel, self.bias)
        return self.activation(output), next_state


class EmbeddingWrapper(CellWrapper):
    """`output, next_state = cell(embedding[ids], state)`, with ids [B] or [B, 1].

    Parameters: `embedding` [embedding_classes, embedding_size], U(-sqrt(3), sqrt(3)) at first: variance 1.

    Source: TensorFlow 1.15, `tf.contrib.rnn.EmbeddingWrapper`.

    >>> import torch, throughtime
    >>> cell = EmbeddingWrapper(throughtime.GRUCell(3), embedding_classes=10, embedding_size=4)
    >>> output, state = cell(torch.tensor([7, 0]), cell.initial_state(2))
    >>> output.shape
    torch.Size([2, 3])
    """

    def __init__(
        self,
        cell: Any,
        embedding_classes: int,
        embedding_size: int,
        initializer: Initializer | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(cell)
        shape = read_units("embedding_classes", embedding_classes), read_units("embedding_size", embedding_size)
        self._initializer = initializer or _unit_variance
        self.embedding = nn.Parameter(torch.empty(*shape, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        with torch.no_grad():
            self._initializer(self.embedding)

    def forward(self, inputs: Tensor, state: Nested, row_consts: Nested = ()) -> tuple[Nested, Nested]:
        if inputs.is_floating_point():
            raise ValueError(f"EmbeddingWrapper: inputs are token ids, whole numbers; got {inputs.dtype}.")
        ids = inputs.squeeze(-1) if inputs.dim() > 1 else inputs
        return call_cell(self.cell, F.embedding(ids, self.embedding), state, row_consts)


def _unit_variance(weight: Tensor) -> None:
    nn.init.uniform_(weight, -math.sqrt(3.0), math.sqrt(3.0))


class _constant:
    """An initialiser that can be pickled."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __call__(self, weight: Tensor) -> None:
        nn.init.constant_(weight, self.value)
