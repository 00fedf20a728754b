"""Unroll any recurrent cell through time, on PyTorch: `outputs, state = dynamic_rnn(cell, inputs, lengths)`."""

from throughtime._errors import (
    BackendError,
    BackendWarning,
    CaptureError,
    ResetError,
    SequenceError,
    StateError,
)
from throughtime._module import RNN
from throughtime._unroll import bidirectional_dynamic_rnn, dynamic_rnn, static_rnn

__all__ = [
    "RNN",
    "BackendError",
    "BackendWarning",
    "CaptureError",
    "ResetError",
    "SequenceError",
    "StateError",
    "bidirectional_dynamic_rnn",
    "dynamic_rnn",
    "static_rnn",
]
