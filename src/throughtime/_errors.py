"""Every exception of the library. A message says the rule, the difference and the remedy."""

__all__ = [
    "BackendError",
    "BackendWarning",
    "CaptureError",
    "MemoryPolicyError",
    "PlanError",
    "ResetError",
    "SequenceError",
    "SpillError",
    "StateError",
]


class SequenceError(ValueError):
    """The inputs or their lengths do not describe a batch of sequences."""


class StateError(ValueError):
    """A state is missing, or has another structure or shape than the cell's."""


class ResetError(ValueError):
    """A reset mask or a reset state does not fit the inputs."""


class CaptureError(RuntimeError):
    """A cell cannot be traced into a step graph: the message says which operation and why."""


class MemoryPolicyError(ValueError):
    """A memory policy that cannot be followed: the message says the least that works."""


class SpillError(OSError):
    """The spill file cannot be made, written or read: the message says where and why."""


class PlanError(RuntimeError):
    """A captured step cannot be staged: the message names the operator and the reason."""


class BackendError(RuntimeError):
    """The backend that was asked for cannot run this cell: the message says why."""


class BackendWarning(UserWarning):
    """`backend="auto"` took a slower backend than it might: the message says why."""
