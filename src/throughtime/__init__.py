"""Unroll any recurrent cell through time, on PyTorch: `outputs, state = dynamic_rnn(cell, inputs, lengths)`."""

from throughtime._errors import (
    BackendError,
    BackendWarning,
    CaptureError,
    MemoryPolicyError,
    PlanError,
    ResetError,
    SequenceError,
    SpillError,
    StateError,
)
from throughtime._loss import unroll_loss
from throughtime._module import RNN
from throughtime._truncated import Window, truncated
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
from throughtime.plan.memory import Budget, Recompute, SaveAll, Spill

__all__ = [
    "RNN",
    "BackendError",
    "BackendWarning",
    "BasicLSTMCell",
    "BasicRNNCell",
    "Budget",
    "CaptureError",
    "DropoutWrapper",
    "GRUCell",
    "LSTMCell",
    "LSTMStateTuple",
    "MemoryPolicyError",
    "MultiRNNCell",
    "PlanError",
    "RNNCell",
    "Recompute",
    "ResetError",
    "ResidualWrapper",
    "SaveAll",
    "SequenceError",
    "Spill",
    "SpillError",
    "StateError",
    "Window",
    "bidirectional_dynamic_rnn",
    "dynamic_rnn",
    "static_rnn",
    "truncated",
    "unroll_loss",
]
