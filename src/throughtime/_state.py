"""A cell -> the state it starts from; what a cell returns -> (output, next state)."""

from typing import Any

import torch
from torch import Tensor, nn

from throughtime._errors import StateError
from throughtime._nested import (
    Nested,
    flatten,
    leaves,
    leaves_with_paths,
    map_leaves,
    same_structure,
    unflatten,
)

__all__ = ["fit_state", "initial_row_consts", "initial_state", "split_result"]


def initial_state(cell: Any, xs: Nested, batch_size: int, dtype: torch.dtype, device: torch.device) -> Nested:
    """The state before the first step, [batch_size, ...] in every leaf.

    In order: the cell's own `initial_state`, its `zero_state`, its `state_size`, PyTorch's own cells, and at last a
    probe `cell(x, None)` on one row of `xs` (the first real inputs), which tells the shapes; the state is zero then.
    """
    if callable(getattr(cell, "initial_state", None)):
        return cell.initial_state(batch_size, dtype, device)
    if (size := getattr(cell, "state_size", None)) is not None and not isinstance(size, Tensor):
        return _zeros_of_size(size, batch_size, dtype, device)
    if isinstance(cell, nn.RNNCellBase):
        zeros = torch.zeros(batch_size, cell.hidden_size, dtype=dtype, device=device)
        return (zeros, zeros) if isinstance(cell, nn.LSTMCell) else zeros
    return _probed_state(cell, xs, batch_size)


def initial_row_consts(cell: Any, batch_size: int, dtype: torch.dtype, device: torch.device) -> Nested:
    """What the cell keeps per row for a whole call; () for a cell that declares nothing."""
    declare = getattr(cell, "row_consts", None)
    return declare(batch_size, dtype, device) if callable(declare) else ()


def fit_state(given: Nested, like: Nested | None, batch_size: int, name: str) -> Nested:
    """`given` in the structure of `like` (a plain tuple may stand for a named one), or a StateError."""
    for path, leaf in leaves_with_paths(given, name):
        _check_leaf(path, leaf, batch_size)
    if like is None:
        return given
    if not same_structure(given, like):
        raise StateError(
            f"dynamic_rnn: {name} must have the structure of the cell's state.\n"
            f"  expected {describe(like)}\n  got      {describe(given)}\n"
            f"Build it like cell.initial_state(batch_size, dtype, device)."
        )
    wrong = _differences(given, like, name, rows=False)
    if wrong:
        raise StateError(
            f"dynamic_rnn: {name} must have the sizes of the cell's state.\n"
            + "\n".join(wrong)
            + "\nPass a state of the cell's sizes, or give the cell another number of units."
        )
    return unflatten(flatten(like)[1], leaves(given))


def split_result(result: Any, state: Nested) -> tuple[Nested, Nested]:
    """What a cell returned as (output, next state), the state in the structure of `state`.

    A pair whose second part is shaped like the state is (output, state). A result that is itself shaped like the
    state is the state only, and its first leaf is the output (PyTorch's own cells).
    """
    pair = isinstance(result, (tuple, list)) and len(result) == 2
    if pair and _matches(result[1], state):
        return result[0], _restore(result[1], state)
    if _matches(result, state):
        return leaves(result)[0], _restore(result, state)
    returned = result[1] if pair and same_structure(result[1], state) else result
    raise StateError(_mismatch(returned, state))


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


def _mismatch(returned: Nested, state: Nested) -> str:
    rule = "dynamic_rnn: the cell must return a state shaped like the one it gets.\n"
    if same_structure(returned, state):
        lines = "\n".join(_differences(returned, state, "state", rows=True))
        return (
            rule
            + lines
            + "\nMake the cell return those shapes, or pass an initial_state of the shapes it returns."
        )
    return (
        f"{rule}  expected {describe(state)}, alone or as the second of a pair (output, state)\n"
        f"  got      {describe(returned)}\nReturn (output, next_state), or pass the initial_state it belongs to."
    )


def _differences(given: Nested, like: Nested, root: str, *, rows: bool) -> list[str]:
    lines = []
    start = 0 if rows else 1
    for (path, a), b in zip(leaves_with_paths(given, root), leaves(like)):
        same_dtype = _dtypes_agree(a, b) or not rows
        if a.shape[start:] != b.shape[start:] or not same_dtype:
            lines.append(f"  {path}: expected {_word(b)}, got {_word(a)}")
    return lines


def _dtypes_agree(a: Tensor, b: Tensor) -> bool:
    """Under autocast a step may come out in half precision; the loop puts its state back to full."""
    autocast = torch.is_autocast_enabled(a.device.type)
    return a.dtype == b.dtype or (autocast and a.is_floating_point() and b.is_floating_point())


def _matches(value: Nested, state: Nested) -> bool:
    return same_structure(value, state) and all(
        isinstance(a, Tensor) and a.shape == b.shape and _dtypes_agree(a, b)
        for a, b in zip(leaves(value), leaves(state))
    )


def _restore(value: Nested, state: Nested) -> Nested:
    flat, structure = flatten(state)
    return unflatten(structure, [a.to(b.dtype) for a, b in zip(leaves(value), flat)])


def _check_leaf(path: str, leaf: Any, batch_size: int) -> None:
    if not isinstance(leaf, Tensor):
        raise StateError(
            f"dynamic_rnn: every leaf of a state is a tensor; {path} is a {type(leaf).__name__}."
        )
    if leaf.dim() == 0 or leaf.shape[0] != batch_size:
        raise StateError(
            f"dynamic_rnn: every leaf of a state has one entry per row of the batch on its first axis: "
            f"{path} must be [{batch_size}, ...], got {_word(leaf)}. "
            f"Expand it over the rows, for example with tensor.expand({batch_size}, ...)."
        )


def _zeros_of_size(size: Any, batch_size: int, dtype: torch.dtype, device: torch.device) -> Nested:
    if isinstance(size, int):
        return torch.zeros(batch_size, size, dtype=dtype, device=device)
    if isinstance(size, torch.Size):
        return torch.zeros(batch_size, *size, dtype=dtype, device=device)
    if isinstance(size, dict):
        return {key: _zeros_of_size(part, batch_size, dtype, device) for key, part in size.items()}
    if isinstance(size, (tuple, list)):
        parts = [_zeros_of_size(part, batch_size, dtype, device) for part in size]
        return type(size)(*parts) if hasattr(size, "_fields") else type(size)(parts)
    raise StateError(
        f"dynamic_rnn: a cell's state_size is an int, a torch.Size or a nested structure of them, got "
        f"{type(size).__name__}. Give the cell an initial_state(batch_size, dtype, device) method, or pass initial_state."
    )


def _probed_state(cell: Any, xs: Nested, batch_size: int) -> Nested:
    row = map_leaves(lambda x: x[:1].detach() if len(x) else x.new_zeros(1, *x.shape[1:]), xs)
    try:
        first = _quietly(cell, row, None)
    except Exception as error:
        raise _unknown_state(f"cell(inputs, None) raised {type(error).__name__}: {error}") from error
    for candidate in _candidates(first):
        zeros = map_leaves(torch.zeros_like, candidate)
        try:
            again = _quietly(cell, row, zeros)
            split_result(again, zeros)
        except Exception:  # noqa: BLE001, S112 - this reading of the result does not fit; the next one may
            continue
        if not _equal(first, again):
            raise _unknown_state(
                "cell(inputs, None) differs from cell(inputs, zeros): its own start is not zero"
            )
        return map_leaves(lambda leaf: leaf.new_zeros(batch_size, *leaf.shape[1:]), zeros)
    raise _unknown_state(
        f"what cell(inputs, None) returns, {describe(first)}, is not accepted back as a state"
    )


def _candidates(result: Any) -> list[Nested]:
    pair = isinstance(result, (tuple, list)) and len(result) == 2
    found = [result[1], result] if pair else [result]
    return [
        c for c in found if leaves(c) and all(isinstance(leaf, Tensor) and leaf.dim() for leaf in leaves(c))
    ]


def _equal(a: Nested, b: Nested) -> bool:
    return same_structure(a, b) and all(
        torch.allclose(x, y, equal_nan=True) if x.is_floating_point() else torch.equal(x, y)
        for x, y in zip(leaves(a), leaves(b))
    )


def _quietly(cell: Any, row: Nested, state: Nested) -> Nested:
    """One trial step that leaves gradients and the random stream alone (the same noise at each trial)."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return cell(row, state)


def _unknown_state(reason: str) -> StateError:
    return StateError(
        f"dynamic_rnn: cannot tell the state this cell starts from ({reason}). Pass initial_state=, or give the cell "
        f"an initial_state(batch_size, dtype, device) method or a state_size."
    )
