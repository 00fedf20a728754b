"""A cell -> the state it starts from; what a cell returns -> (output, next state)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from throughtime._errors import StateError
from throughtime._nested import (
    Nested,
    leaves,
    leaves_as,
    leaves_with_paths,
    map_leaves,
    restructure,
    same_structure,
)

__all__ = [
    "check_output",
    "declared_state",
    "declares_state",
    "describe",
    "fit_state",
    "initial_row_consts",
    "initial_state",
    "rounds_products",
    "size_parameters",
    "split_result",
    "trial",
    "zero_row",
    "zero_state",
    "zeros_of_size",
]

UNKNOWN = "dynamic_rnn: cannot tell the state this cell starts from"
REMEDY = "Pass initial_state=, or give the cell an initial_state(batch_size, dtype, device) method or a state_size."
PYTORCHS_OWN = (nn.RNNCell, nn.GRUCell, nn.LSTMCell)


def declares_state(cell: Any) -> bool:
    """Whether the cell says itself what it starts from, so that no trial of it is needed. A wrapper asks its cell."""
    return getattr(cell, "declares_state", True) and (
        callable(getattr(cell, "initial_state", None))
        or _state_size(cell) is not None
        or isinstance(cell, PYTORCHS_OWN)
    )


def declared_state(
    cell: Any, batch_size: int, dtype: torch.dtype | None, device: torch.device | str | None
) -> Nested | None:
    """What the cell says that it starts from: its `initial_state`, or its `state_size`. None: it does not say."""
    if callable(getattr(cell, "initial_state", None)):
        return cell.initial_state(batch_size, dtype, device)
    if (size := _state_size(cell)) is not None:
        return zeros_of_size(size, batch_size, dtype, device)
    if isinstance(cell, PYTORCHS_OWN):
        zeros = torch.zeros(batch_size, cell.hidden_size, dtype=dtype, device=device)
        return (zeros, zeros) if isinstance(cell, nn.LSTMCell) else zeros
    return None


def initial_state(cell: Any, xs: Nested, batch_size: int, dtype: torch.dtype, device: torch.device) -> Nested:
    """The state before the first step, [batch_size, ...] in every leaf.

    In order: the cell's own `initial_state`, its `state_size`, PyTorch's own cells, and at last a probe `cell(x, None)`
    on one row of `xs` (the first real inputs), which tells the shapes; the state is zero then.
    """
    if declares_state(cell):
        return declared_state(cell, batch_size, dtype, device)
    return _probed_state(cell, xs, batch_size)


def zero_state(cell: Any, xs: Nested, state: Nested) -> Nested:
    """Where a cell that declares no state starts from: zeros shaped like `state`, which the caller gave.

    A cell that takes None for its state may know a start of its own; a trial tells whether that is zero.
    """
    zeros = map_leaves(torch.zeros_like, state)
    x, zeros_of_row = _one_row(xs), map_leaves(zero_row, state)
    size_parameters(cell, xs, state)
    try:
        with trial(xs):
            own = cell(x, None)
    except Exception:  # a cell that takes no None, whatever it raises, has no start of its own
        return zeros
    with trial(xs):
        started_at_zero = cell(x, zeros_of_row)
    if not _equal(own, started_at_zero):
        raise StateError(
            "dynamic_rnn: a reset goes back to the cell's own start, and cell(inputs, None) shows it is not zeros. "
            "Pass reset_state=, or give the cell an initial_state(batch_size, dtype, device) method."
        )
    return zeros


def initial_row_consts(cell: Any, batch_size: int, dtype: torch.dtype, device: torch.device) -> Nested:
    """What the cell keeps per row for a whole call; () for a cell that declares nothing."""
    declare = getattr(cell, "row_consts", None)
    row_consts = declare(batch_size, dtype, device) if callable(declare) else ()
    for path, leaf in leaves_with_paths(row_consts, "row_consts"):
        if not _has_rows(leaf, batch_size):
            raise StateError(
                f"dynamic_rnn: what a cell's row_consts returns has one entry per row: {path} must be "
                f"[{batch_size}, ...], got {_word(leaf)}. Return () where there is nothing to keep."
            )
    return row_consts


def fit_state(given: Nested, like: Nested | None, batch_size: int, name: str, *, any_dtype: bool = False) -> Nested:
    """`given` in the structure of `like` (a plain tuple may stand for a named one), or a StateError."""
    for path, leaf in leaves_with_paths(given, name):
        if not _has_rows(leaf, batch_size):
            shared = f"Expand a start that all rows share, for example with tensor.expand({batch_size}, ...)."
            number = f"Use a tensor [{batch_size}] in place of a Python number."
            remedy = number if isinstance(leaf, (int, float)) else shared
            raise StateError(
                f"dynamic_rnn: every leaf of a state is a tensor with one entry per row of the batch on its first "
                f"axis: {path} must be [{batch_size}, ...], got {_word(leaf)}. {remedy}"
            )
    if like is None or like is given:
        return given
    if not same_structure(given, like):
        raise StateError(
            f"dynamic_rnn: {name} must have the structure of the cell's state.\n"
            f"  expected {describe(like)}\n  got      {describe(given)}\n"
            f"Build it like cell.initial_state(batch_size, dtype, device)."
        )
    wrong = _differences(given, like, name, any_dtype=any_dtype)
    if wrong:
        raise StateError(
            f"dynamic_rnn: {name} must have the sizes and dtypes of the cell's state.\n"
            + "\n".join(wrong)
            + "\nPass a state of the cell's sizes, or give the cell another number of units."
        )
    return restructure(leaves_as(given, like), like)


def split_result(result: Any, state: Nested) -> tuple[Nested, Nested]:
    """What a cell returned as (output, next state), the state in the structure of `state`.

    A pair whose second part is shaped like the state is (output, state). A result that is itself shaped like the
    state is the state only, and its first leaf is the output (PyTorch's own cells).
    """
    pair = isinstance(result, (tuple, list)) and len(result) == 2
    if pair and _matches(result[1], state):
        return result[0], _restore(result[1], state)
    if _matches(result, state) and leaves(state):
        return leaves(result)[0], _restore(result, state)
    returned = result[1] if pair and same_structure(result[1], state) else result
    if same_structure(returned, state) and leaves(state):
        raise StateError(
            "dynamic_rnn: the cell must return a state shaped like the one it gets.\n"
            + "\n".join(_differences(returned, state, "state"))
            + "\nMake the cell return those shapes, or pass an initial_state of the shapes it returns."
        )
    raise StateError(
        f"dynamic_rnn: the cell must return a state of the structure of the one it gets.\n"
        f"  expected {describe(state)}, alone or as the second of a pair (output, state)\n"
        f"  got      {describe(result)}\n"
        f"Return (output, next_state), or pass the initial_state that next_state belongs to."
    )


def check_output(output: Nested, rows: int) -> None:
    """A cell's output has one entry per row in every leaf; what is shared by rows could not be told from a row."""
    for path, leaf in leaves_with_paths(output, "output"):
        if not _has_rows(leaf, rows):
            raise StateError(
                f"dynamic_rnn: every leaf of a cell's output has one entry per row: {path} must be [{rows}, ...], "
                f"got {_word(leaf)}. Expand what all rows share, and return as the output what each row has."
            )


def size_parameters(cell: Any, xs: Nested, state: Nested, row_consts: Nested = ()) -> None:
    """A cell that finds its input size at its first call finds it here, from a row of zeros.

    So the loop never meets a parameter without a shape, and the random numbers it is drawn from are used up. It is not
    training yet: no dropout draws, no running mean moves. Its parameters are made to be trained, in inference mode too.
    """
    if isinstance(cell, nn.Module) and any(map(is_lazy, cell.parameters())):
        with torch.inference_mode(False), torch.no_grad(), _evaluating(cell):
            x, start, consts = (v if v is None else map_leaves(zero_row, v) for v in (xs, state, row_consts))
            _ = cell(x, start, consts) if leaves(consts) else cell(x, start)


@contextmanager
def _evaluating(cell: nn.Module) -> Iterator[None]:
    training = [module for module in cell.modules() if module.training]
    cell.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def trial(xs: Nested) -> Iterator[None]:
    """Around a step that is no step of the run: it leaves gradients and the random streams as they were.

    Trials that follow each other see the same noise (but on "mps", whose generator cannot be forked).
    """
    device = leaves(xs)[0].device
    accelerators = [] if device.type in ("cpu", "mps") else [device]
    kind = device.type if accelerators else None
    with torch.no_grad(), torch.random.fork_rng(devices=accelerators, device_type=kind):
        yield


def rounds_products(device: torch.device) -> bool:
    """Whether autocast is on; PyTorch has none for tensors without numbers."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def describe(value: Nested) -> str:
    """`(float32[4, 8], float32[4, 8])`, for messages."""
    return str(map_leaves(lambda leaf: _Word(_word(leaf)), value))


class _Word(str):
    __slots__ = ()
    __repr__ = str.__str__


def _word(leaf: Any) -> str:
    if not isinstance(leaf, Tensor):
        return type(leaf).__name__
    return f"{str(leaf.dtype).removeprefix('torch.')}[{', '.join(map(str, leaf.shape))}]"


def _differences(given: Nested, like: Nested, root: str, *, any_dtype: bool = False) -> list[str]:
    """Leaf by leaf, what differs: one line each."""
    named = leaves_with_paths(like, root)
    return [
        f"  {path}: expected {_word(b)}, got {_word(a)}"
        for (path, b), a in zip(named, leaves_as(given, like), strict=True)
        if not (a.shape == b.shape if any_dtype else _same_kind(a, b))
    ]


def _same_kind(a: Any, b: Tensor) -> bool:
    return isinstance(a, Tensor) and a.shape == b.shape and _dtypes_agree(a, b)


def _has_rows(leaf: Any, rows: int) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == rows


def _dtypes_agree(a: Tensor, b: Tensor) -> bool:
    """Under autocast a step may come out in half precision; the loop puts its state back to full."""
    return a.dtype == b.dtype or (rounds_products(a.device) and a.is_floating_point() and b.is_floating_point())


def _matches(value: Nested, state: Nested) -> bool:
    return same_structure(value, state) and all(map(_same_kind, leaves_as(value, state), leaves(state)))


def _restore(value: Nested, state: Nested) -> Nested:
    return restructure([a.to(b.dtype) for a, b in zip(leaves_as(value, state), leaves(state))], state)


def _state_size(cell: Any) -> Any:
    size = getattr(cell, "state_size", None)
    return None if isinstance(size, Tensor) else size


def zeros_of_size(
    size: Any, batch_size: int, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> Nested:
    """Zeros [batch_size, ...] for an int, a `torch.Size`, or a nested structure of them."""
    if isinstance(size, int):
        return torch.zeros(batch_size, size, dtype=dtype, device=device)
    if isinstance(size, torch.Size):
        return torch.zeros(batch_size, *size, dtype=dtype, device=device)
    if isinstance(size, dict):
        return {key: zeros_of_size(part, batch_size, dtype, device) for key, part in size.items()}
    if isinstance(size, (tuple, list)):
        parts = [zeros_of_size(part, batch_size, dtype, device) for part in size]
        return type(size)(*parts) if hasattr(size, "_fields") else type(size)(parts)
    raise StateError(
        f"a cell's state_size is an int, a torch.Size or a nested structure of them, got {type(size).__name__}. "
        f"Set state_size so, or give the cell an initial_state(batch_size, dtype, device) method."
    )


def _probed_state(cell: Any, xs: Nested, batch_size: int) -> Nested:
    x = _one_row(xs)
    try:
        size_parameters(cell, xs, None)
        with trial(xs):
            first = cell(x, None)
    except Exception as error:
        raise StateError(f"{UNKNOWN}: cell(inputs, None) raised {type(error).__name__}: {error}. {REMEDY}") from error
    for candidate in _candidates(first):
        zeros = map_leaves(torch.zeros_like, candidate)
        try:
            with trial(xs):
                again = cell(x, zeros)
            split_result(again, zeros)
        except Exception:  # this reading of the result does not fit; the next one may
            continue
        if not _equal(first, again):
            raise StateError(f"{UNKNOWN}: cell(inputs, None) differs from cell(inputs, zeros). {REMEDY}")
        return map_leaves(lambda leaf: leaf.new_zeros(batch_size, *leaf.shape[1:]), zeros)
    raise StateError(
        f"{UNKNOWN}: what cell(inputs, None) returns, {describe(first)}, is not accepted back as a state. {REMEDY}"
    )


def _candidates(result: Any) -> list[Nested]:
    pair = isinstance(result, (tuple, list)) and len(result) == 2
    found = [result[1], result] if pair else [result]
    return [c for c in found if leaves(c) and all(isinstance(leaf, Tensor) and leaf.dim() for leaf in leaves(c))]


def _equal(a: Nested, b: Nested) -> bool:
    return same_structure(a, b) and all(map(_equal_leaves, leaves(a), leaves_as(b, a)))


def _equal_leaves(a: Any, b: Any) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return a is b
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.allclose(a, b, equal_nan=True) if a.is_floating_point() else torch.equal(a, b)


def _one_row(value: Nested) -> Nested:
    def one_row(leaf: Tensor) -> Tensor:
        return leaf[:1].detach() if len(leaf) else zero_row(leaf)

    return None if value is None else map_leaves(one_row, value)


def zero_row(leaf: Tensor) -> Tensor:
    """One row like those of the leaf, of zeros."""
    return leaf.new_zeros(1, *leaf.shape[1:])
