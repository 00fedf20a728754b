"""What goes wrong while a step is traced -> a CaptureError that says where and why."""

import os
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from throughtime._errors import CaptureError, StateError
from throughtime.capture.shapes import NumbersNeeded, SizeNeedsNumbers
from throughtime.capture.tape import is_framework, shown_line

__all__ = ["MISTAKES", "mistakes_told", "retold"]

_DISTRIBUTIONS = os.path.dirname(torch.distributions.__file__)

_TAKES_NUMBERS = ("tensor to numpy", "tolist() shouldn't be called", "Cannot access data pointer")
_WITHOUT_SHAPES = re.compile(r"(\S+): attempted to run this operator with Meta tensors")

MISTAKES = (KeyError, IndexError, AssertionError, TypeError, ValueError, NotImplementedError)
"""What a fault of the compiler's own raises."""


@contextmanager
def mistakes_told(where: str, line: str = "") -> Iterator[None]:
    """Around what runs no line of the user's: a fault of our own is said aloud, and must not cost the user the run."""
    try:
        yield
    except MISTAKES as error:
        said = f"{where}: {type(error).__name__}: {error}"
        raise CaptureError(f"a mistake in the compiler ({said}); please report it{shown_line(line)}") from error


@contextmanager
def retold(rows: tuple[int, ...]) -> Iterator[None]:
    """Around a trace; `rows` are the batch sizes that stand for any."""
    try:
        yield
    except StateError as error:
        error.args = (_without_numbers(str(error), rows),)
        raise
    except CaptureError as error:
        shown = "" if "\n  " in str(error) else shown_line(_line_of(error))
        error.args = (_without_numbers(str(error), rows) + shown,)
        raise
    except Exception as error:
        said = _without_numbers(_reason(error), rows)
        raise CaptureError(f"the step cannot be traced: {said}{shown_line(_line_of(error))}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, SizeNeedsNumbers):
        return (
            f"it makes a tensor whose size depends on numbers ({error.operator}); every row and step must have the "
            "same sizes. Use torch.where or a mask."
        )
    if isinstance(error, NumbersNeeded):
        if _is_check_of_a_distribution(error):
            return (
                f"a check of torch.distributions reads a number out of a tensor ({error.operator}), but the step is "
                "traced once for all numbers. Make the distribution with validate_args=False."
            )
        return (
            f"it reads a number out of a tensor ({error.operator}), to branch on it or to compute in Python, but it is "
            "traced once for all numbers. Use torch.where, or keep the number a tensor."
        )
    if any(words in str(error) for words in _TAKES_NUMBERS):
        return (
            "it takes the numbers of a tensor out of PyTorch (numpy(), tolist(), an extension), but it is traced once "
            "for all numbers. Write it with PyTorch's operators."
        )
    if (operator := _WITHOUT_SHAPES.match(str(error))) is not None:
        return f"it uses {operator[1]}, which PyTorch cannot run without real numbers."
    if "TorchScript" in str(error):
        return "it runs TorchScript. Pass the Python module that it was scripted from."
    if "leaf Variable that requires grad" in str(error):
        return f"it writes in place on a trainable tensor that it closes over: {error}"
    said = f"it raised {type(error).__name__}: {error}"
    if "size" in str(error) or "shape" in str(error):
        said += (
            " (B is the batch size, which is unknown while tracing. A tensor with one entry per row must be part of "
            "the inputs, the state, or what the cell's row_consts returns.)"
        )
    return said


def _is_check_of_a_distribution(error: BaseException) -> bool:
    """Of its arguments, or of a value whose probability is asked for."""
    checks = ("__init__", "_validate_sample")
    frames = traceback.extract_tb(error.__traceback__)
    return any(f.name in checks and f.filename.startswith(_DISTRIBUTIONS) for f in frames)


def _without_numbers(said: str, rows: tuple[int, ...]) -> str:
    for count in rows:
        said = re.sub(rf"\b{count}\b", "B", said)
    return said


def _line_of(error: BaseException) -> str:
    """The innermost line of the user's code."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not is_framework(frame.filename):
            return f"{frame.filename}:{frame.lineno}"
    return ""
