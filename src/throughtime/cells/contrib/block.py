"""TensorFlow's block cells: the same steps as `LSTMCell` and `GRUCell`, there one operator each; here those cells."""

from typing import Any

from throughtime.cells.gru import GRUCell
from throughtime.cells.lstm import LSTMCell

__all__ = ["GRUBlockCellV2", "LSTMBlockCell"]


def LSTMBlockCell(
    num_units: int,
    forget_bias: float = 1.0,
    cell_clip: float | None = None,
    use_peephole: bool = False,
    **kwargs: Any,
) -> LSTMCell:
    """An `LSTMCell` with the arguments of TensorFlow 1.15's `tf.contrib.rnn.LSTMBlockCell`.

    One difference: the block operator's gradient passes `cell_clip` as if nothing were clipped; here it is 0 there.

    >>> LSTMBlockCell(4, use_peephole=True).use_peepholes
    True
    """
    return LSTMCell(num_units, use_peephole, cell_clip, forget_bias=forget_bias, **kwargs)


def GRUBlockCellV2(num_units: int, **kwargs: Any) -> GRUCell:
    """A `GRUCell`, by the name of TensorFlow 1.15's `tf.contrib.rnn.GRUBlockCellV2`.

    >>> GRUBlockCellV2(4).output_size
    4
    """
    return GRUCell(num_units, **kwargs)
