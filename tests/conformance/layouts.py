"""A padded tensor -> each layout that `dynamic_rnn` takes, and back. Written with PyTorch's own constructors."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

__all__ = ["LAYOUTS", "Layout"]


@dataclass(frozen=True)
class Layout:
    """encode: [B, T, ...] -> the layout. decode: back to [B, T, ...], zero past the lengths."""

    encode: Callable[[Tensor, list[int]], Any]
    decode: Callable[[Any, list[int], int], Tensor]
    needs_lengths: bool = False
    empty_rows: bool = True
    nested: bool = True
    options: dict[str, Any] = field(default_factory=dict)

    def takes(self, inputs: Any, lengths: list[int]) -> bool:
        plain = isinstance(inputs, Tensor)
        return (self.nested or plain) and (self.empty_rows or (len(lengths) > 0 and min(lengths) > 0))


def _pack(x: Tensor, lengths: list[int]) -> Any:
    return pack_padded_sequence(x, torch.tensor(lengths), batch_first=True, enforce_sorted=False)


def _unpack(packed: Any, lengths: list[int], steps: int) -> Tensor:
    return pad_packed_sequence(packed, batch_first=True, total_length=steps)[0]


def _offsets(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def _real_steps(lengths: list[int], steps: int) -> Tensor:
    return torch.arange(steps) < torch.tensor(lengths, dtype=torch.int64).unsqueeze(1)


def _to_jagged(x: Tensor, lengths: list[int]) -> Tensor:
    return torch.nested.nested_tensor_from_jagged(x[_real_steps(lengths, x.shape[1])], _offsets(lengths))


def _from_jagged(y: Tensor, lengths: list[int], steps: int) -> Tensor:
    assert torch.equal(y.offsets(), _offsets(lengths))
    padded = y.values().new_zeros(len(lengths), steps, *y.shape[2:])
    return padded.index_put((_real_steps(lengths, steps),), y.values())


def _same(x: Tensor, *_: Any) -> Tensor:
    return x


def _swap(x: Tensor, *_: Any) -> Tensor:
    return x.transpose(0, 1)


LAYOUTS = {
    "padded": Layout(_same, _same, needs_lengths=True),
    "time-major": Layout(_swap, _swap, needs_lengths=True, options={"time_major": True}),
    "packed": Layout(_pack, _unpack, empty_rows=False, nested=False),
    "jagged": Layout(_to_jagged, _from_jagged),
}
