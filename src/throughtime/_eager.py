"""A function -> the same, called by torch.compile's programs as it is, never looked into.

`torch.compiler.disable` says the same, but imports the compiler, which takes as long as PyTorch itself. These are the
marks it leaves: on the function, for code that calls it; on the code, for the compiler's hook on every new frame.
"""

from collections.abc import Callable
from typing import TypeVar

from torch._C._dynamo import eval_frame

__all__ = ["eager"]

Function = TypeVar("Function", bound=Callable)
_SKIP = eval_frame._FrameAction.SKIP


def eager(function: Function) -> Function:
    """The loop is compiled already; a compiler that follows Python's steps would unroll it."""
    function._torchdynamo_disable = True  # type: ignore[attr-defined]
    function._torchdynamo_disable_msg = "throughtime compiles its loop itself"  # type: ignore[attr-defined]
    eval_frame.set_code_exec_strategy(function.__code__, eval_frame._FrameExecStrategy(_SKIP, _SKIP))
    return function
