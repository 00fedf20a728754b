"""Unroll any recurrent cell through time, on PyTorch: `outputs, state = dynamic_rnn(cell, inputs, lengths)`."""

from throughtime._errors import (
    BackendError,
    BackendWarning,
    CaptureError,
    PlanError,
    ResetError,
    SequenceError,
    StateError,
)
from throughtime._module import RNN
from throughtime._unroll import bidirectional_dynamic_rnn, dynamic_rnn, static_rnn
from throughtime.cells import (
    BasicLSTMCell,
    BasicRNNCell,
    DropoutWrapper,
    GRUCell,
    LSTMCell,
    LSTMStateTuple,
    MultiRNNCell,
    ResidualWrapper,
    RNNCell,
)

__all__ = [
    "RNN",
    "BackendError",
    "BackendWarning",
    "BasicLSTMCell",
    "BasicRNNCell",
    "CaptureError",
    "DropoutWrapper",
    "GRUCell",
    "LSTMCell",
    "LSTMStateTuple",
    "MultiRNNCell",
    "PlanError",
    "RNNCell",
    "ResetError",
    "ResidualWrapper",
    "SequenceError",
    "StateError",
    "bidirectional_dynamic_rnn",
    "dynamic_rnn",
    "static_rnn",
]
