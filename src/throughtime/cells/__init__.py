"""One step's mathematics: cells with TensorFlow 1's parameters, names, gate order and arithmetic."""

from throughtime.cells import contrib as contrib
from throughtime.cells._base import RNNCell
from throughtime.cells.basic_rnn import BasicRNNCell
from throughtime.cells.dropout import DropoutWrapper
from throughtime.cells.gru import GRUCell
from throughtime.cells.lstm import BasicLSTMCell, LSTMCell, LSTMStateTuple
from throughtime.cells.multi import MultiRNNCell
from throughtime.cells.residual import ResidualWrapper

__all__ = [
    "BasicLSTMCell",
    "BasicRNNCell",
    "DropoutWrapper",
    "GRUCell",
    "LSTMCell",
    "LSTMStateTuple",
    "MultiRNNCell",
    "RNNCell",
    "ResidualWrapper",
]
