"""Padded, packed, jagged -> one ragged form, and back.

The ragged form keeps only real (row, step) pairs, step by step, longest row first: at step t the rows that still
run are the first `active[t]` of the order, and their pairs stand together. (PyTorch's PackedSequence holds its data
so.) Padding is dropped on the way in and is exactly zero on the way out, and no gradient passes through it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from throughtime._errors import ResetError, SequenceError
from throughtime._nested import Nested, leaves, leaves_with_paths, map_leaves

__all__ = [
    "Ragged",
    "common_axes",
    "pairs_of",
    "read_lengths",
    "read_reset",
    "read_sequence",
    "rows_per_step",
    "sort_lengths",
    "spread_out",
]


@dataclass(frozen=True)
class Ragged:
    """A batch of sequences in loop order.

    xs: nested, [N, ...] in every leaf; with a source, the pairs of the first step only.
    lengths: the length of each row, longest first.
    order: loop row -> the user's row; None where they are the same.
    unpack: [N, ...] -> the layout that the inputs came in.
    padded_steps: T of padded inputs; None for the others.
    source: (start, stop) -> the pairs of these steps, nested; None where xs holds them all.
    """

    xs: Nested
    lengths: np.ndarray
    order: np.ndarray | None
    unpack: Callable[[Tensor], Any]
    padded_steps: int | None = None
    source: Callable[[int, int], Nested] | None = None

    @property
    def batch_size(self) -> int:
        return len(self.lengths)

    @property
    def steps(self) -> int:
        """The number of steps of the longest row."""
        return int(self.lengths[0]) if len(self.lengths) else 0

    @cached_property
    def active(self) -> list[int]:
        """How many rows still run at each step."""
        return rows_per_step(self.lengths).tolist()

    @cached_property
    def offsets(self) -> list[int]:
        """Where the pairs of each step begin, and N at the end."""
        return [0, *accumulate(self.active)]

    @property
    def device(self) -> torch.device:
        return leaves(self.xs)[0].device

    @property
    def user_order(self) -> np.ndarray:
        """Loop row -> the user's row."""
        return np.arange(self.batch_size) if self.order is None else self.order

    @property
    def user_lengths(self) -> np.ndarray:
        """The length of each row, in the user's order."""
        return self.lengths[np.argsort(self.user_order)]

    def sort_rows(self, value: Nested) -> Nested:
        """The user's rows -> loop rows."""
        return value if self.order is None else _take_rows(value, self.order, self.device)

    def unsort_rows(self, value: Nested) -> Nested:
        """Loop rows -> the user's rows."""
        return value if self.order is None else _take_rows(value, np.argsort(self.order), self.device)

    def restore(self, ys: Nested) -> Nested:
        """[N, ...] -> the layout that the inputs came in; the padding is zero."""
        return map_leaves(self.unpack, ys)

    def reversed(self) -> "Ragged":
        """Each row backwards from its own last step; the padding stays at the end."""
        index = torch.from_numpy(_reversed_pairs(self.lengths)).to(self.device)
        unpack = self.unpack
        return replace(
            self,
            xs=map_leaves(lambda leaf: leaf.index_select(0, index), self.xs),
            unpack=lambda ys: unpack(ys.index_select(0, index)),
        )


def _take_rows(value: Nested, rows: np.ndarray, device: torch.device) -> Nested:
    index = torch.from_numpy(rows).to(device)
    return map_leaves(lambda leaf: leaf.index_select(0, index), value)


def rows_per_step(lengths: np.ndarray) -> np.ndarray:
    """Lengths, longest first -> the number of rows with a step t, for each t."""
    steps = int(lengths[0]) if len(lengths) else 0
    ending = np.bincount(lengths, minlength=steps + 1)
    return len(lengths) - np.cumsum(ending)[:steps]


def pairs_of(active: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows of some steps -> the step, counted from 0, and the loop row of each real pair, in loop order."""
    starts = np.cumsum(active) - active
    step = np.repeat(np.arange(len(active)), active)
    return step, np.arange(len(step)) - np.repeat(starts, active)


def spread_out(values: Tensor, places: Tensor, count: int) -> Tensor:
    """[N, ...] -> [count, ...]: each value at its place, 0 elsewhere."""
    return values.new_zeros(count, *values.shape[1:]).index_copy_(0, places, values)


def read_sequence(inputs: Nested, sequence_length: Any = None, time_major: bool = False) -> Ragged:
    """Any of the layouts that `dynamic_rnn` takes -> the ragged form. Raises SequenceError."""
    flat = leaves(inputs)
    if not flat:
        raise SequenceError("dynamic_rnn: inputs must hold at least one tensor, got an empty structure.")
    if isinstance(inputs, PackedSequence):
        return _read_packed(inputs, sequence_length)
    for path, leaf in leaves_with_paths(inputs, "inputs"):
        if not isinstance(leaf, Tensor):
            raise SequenceError(
                f"dynamic_rnn: inputs are one PackedSequence, a tensor, or a nested structure of tensors; "
                f"{path} is a {type(leaf).__name__}. Make a tensor of it first, for example with torch.as_tensor or "
                f"torch.nn.utils.rnn.pad_packed_sequence."
            )
    if any(leaf.is_nested for leaf in flat):
        return _read_jagged(inputs, sequence_length)
    return _read_padded(inputs, sequence_length, time_major)


def read_lengths(sequence_length: Any, batch_size: int, steps: int) -> np.ndarray:
    """A list, an array or a tensor of any integer dtype and device -> int64 [B], checked."""
    try:
        given = sequence_length.tolist() if isinstance(sequence_length, Tensor) else sequence_length
        lengths = np.asarray(given)
    except ValueError as error:
        raise SequenceError(f"sequence_length must be one flat list of lengths: {error}.") from error
    if lengths.size == 0:
        lengths = lengths.astype(np.int64)
    if not np.issubdtype(lengths.dtype, np.integer):
        given_dtype = str(getattr(sequence_length, "dtype", lengths.dtype)).removeprefix("torch.")
        raise SequenceError(f"sequence_length must hold whole numbers, got {given_dtype}. Cast it to an integer dtype.")
    if lengths.shape != (batch_size,):
        raise SequenceError(
            f"sequence_length must be a vector with one length per row: expected shape [{batch_size}], "
            f"got {list(lengths.shape)}."
        )
    bad = np.flatnonzero((lengths < 0) | (lengths > steps))
    if len(bad):
        raise SequenceError(
            f"sequence_length must lie between 0 and the number of steps: row {bad[0]} has length "
            f"{lengths[bad[0]]}, and the inputs have {steps} steps. Correct the length, or say time_major=True if "
            f"the first axis of the inputs is time."
        )
    return lengths.astype(np.int64)


def read_reset(reset: Any, ragged: Ragged, time_major: bool = False) -> Tensor:
    """A mask in the layout of the inputs, or padded -> bool [N], in the order of `ragged`. Raises ResetError."""
    if not isinstance(reset, (Tensor, PackedSequence)):
        try:
            reset = torch.as_tensor(reset)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ResetError(f"dynamic_rnn: reset cannot be made a tensor: {error}.") from error
    values = reset.data if isinstance(reset, PackedSequence) else reset
    axes = 1 if isinstance(reset, PackedSequence) else 2
    if values.dtype != torch.bool or values.dim() != axes:
        raise ResetError(
            f"dynamic_rnn: reset must be a bool mask with one entry per row and step, got {values.dtype} with "
            f"{values.dim() - axes} further axes. Write reset=done.bool(), shaped [B, T]."
        )
    if isinstance(reset, Tensor) and not reset.is_nested:
        return _read_padded_reset(reset, ragged, time_major)
    mask = read_sequence(reset)
    if not np.array_equal(mask.user_lengths, ragged.user_lengths):
        raise ResetError(
            f"dynamic_rnn: reset must have the lengths of the inputs, row by row: expected "
            f"{ragged.user_lengths.tolist()}, got {mask.user_lengths.tolist()}."
        )
    return _reorder(mask, ragged)


def _read_padded_reset(reset: Tensor, ragged: Ragged, time_major: bool) -> Tensor:
    batch_size, steps = reset.shape[::-1] if time_major else reset.shape
    wanted = ragged.steps if ragged.padded_steps is None else ragged.padded_steps
    fits = steps == wanted or (ragged.padded_steps is None and steps > wanted)
    if batch_size != ragged.batch_size or not fits:
        raise ResetError(
            f"dynamic_rnn: reset must have the batch size and the steps of the inputs: expected {ragged.batch_size} "
            f"rows and {wanted} steps, got {batch_size} and {steps}. A padded mask is [B, T]; [T, B] with time_major."
        )
    return _reorder(_read_padded(reset, ragged.user_lengths, time_major), ragged)


def _reorder(mask: Ragged, like: Ragged) -> Tensor:
    """The same rows may stand in another order among those of equal length; lengths are the same, row by row."""
    flat: Tensor = mask.xs
    place = np.argsort(mask.user_order)[like.user_order]
    if not np.array_equal(place, np.arange(len(place))):
        step, row = _pairs(like.lengths)
        index = np.asarray(like.offsets, dtype=np.int64)[step] + place[row]
        flat = flat.index_select(0, torch.from_numpy(index).to(flat.device))
    return flat.to(like.device)


def sort_lengths(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Longest first, equal ones in the user's order; None where nothing moves."""
    if (lengths[1:] <= lengths[:-1]).all():
        return lengths, None
    order = np.argsort(-lengths, kind="stable")
    return lengths[order], order


def _pairs(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return pairs_of(rows_per_step(lengths))


def _reversed_pairs(lengths: np.ndarray) -> np.ndarray:
    active = rows_per_step(lengths)
    starts = np.cumsum(active) - active
    step, row = _pairs(lengths)
    return starts[lengths[row] - 1 - step] + row


def _read_padded(inputs: Nested, sequence_length: Any, time_major: bool) -> Ragged:
    batch_axis = 1 if time_major else 0
    batch_size, steps = common_axes(inputs, batch_axis)
    device = leaves(inputs)[0].device
    full = np.full(batch_size, steps, dtype=np.int64)
    lengths = full if sequence_length is None else read_lengths(sequence_length, batch_size, steps)
    lengths, order = sort_lengths(lengths)
    if len(lengths) and lengths[-1] == steps:
        xs = map_leaves(lambda x: _flatten_dense(x, time_major), inputs)
        return Ragged(xs, lengths, None, lambda ys: _unflatten_dense(ys, batch_size, steps, time_major), steps)
    step, row = _pairs(lengths)
    user_row = row if order is None else order[row]
    place = step * batch_size + user_row if time_major else user_row * steps + step
    index = torch.from_numpy(place).to(device)
    axes = (steps, batch_size) if time_major else (batch_size, steps)

    def unpack(ys: Tensor) -> Tensor:
        flat = spread_out(ys, index, batch_size * steps)
        return flat.reshape(*axes, *ys.shape[1:])

    xs = map_leaves(lambda x: _join_axes(x).index_select(0, index), inputs)
    return Ragged(xs, lengths, order, unpack, steps)


def _join_axes(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])


def _flatten_dense(x: Tensor, time_major: bool) -> Tensor:
    return _join_axes(x if time_major else x.transpose(0, 1))


def _unflatten_dense(ys: Tensor, batch_size: int, steps: int, time_major: bool) -> Tensor:
    y = ys.reshape(steps, batch_size, *ys.shape[1:])
    return y if time_major else y.transpose(0, 1)


def common_axes(inputs: Nested, batch_axis: int) -> tuple[int, int]:
    named = leaves_with_paths(inputs, "inputs")
    for path, leaf in named:
        if leaf.ndim < 2:
            raise SequenceError(
                f"dynamic_rnn: {path} must have a batch and a time axis, got shape {list(leaf.shape)}. "
                f"One sequence is a batch of one: inputs.unsqueeze(0)."
            )
    (first_path, first), *rest = named
    for path, leaf in rest:
        if leaf.shape[:2] != first.shape[:2]:
            raise SequenceError(
                f"dynamic_rnn: all inputs share their batch and time axes: {first_path} has "
                f"{list(first.shape[:2])}, {path} has {list(leaf.shape[:2])}."
            )
    return first.shape[batch_axis], first.shape[1 - batch_axis]


def _read_packed(inputs: PackedSequence, sequence_length: Any) -> Ragged:
    sizes = inputs.batch_sizes.cpu().numpy()
    lengths = len(sizes) - np.searchsorted(sizes[::-1], np.arange(sizes[0]), side="right")
    order = None if inputs.sorted_indices is None else inputs.sorted_indices.cpu().numpy()
    if sequence_length is not None:
        given = read_lengths(sequence_length, len(lengths), len(sizes))
        known = lengths if order is None else lengths[inputs.unsorted_indices.cpu().numpy()]  # type: ignore[union-attr]
        _check_same_lengths(given, known, "PackedSequence")

    def unpack(ys: Tensor) -> Any:
        return PackedSequence(ys, inputs.batch_sizes, inputs.sorted_indices, inputs.unsorted_indices)

    return Ragged(inputs.data, lengths, order, unpack)


def _read_jagged(inputs: Nested, sequence_length: Any) -> Ragged:
    named = leaves_with_paths(inputs, "inputs")
    first = named[0][1]
    for path, leaf in named:
        if not leaf.is_nested or leaf.layout != torch.jagged or leaf._ragged_idx != 1 or leaf.lengths() is not None:
            raise SequenceError(
                f"dynamic_rnn: nested tensors must be jagged along axis 1, without holes, and not mixed with padded "
                f"ones; {path} is not. Build it with torch.nested.nested_tensor([...], layout=torch.jagged)."
            )
    offsets = first.offsets().cpu().numpy().astype(np.int64)
    for path, leaf in named[1:]:
        if not np.array_equal(leaf.offsets().cpu().numpy(), offsets):
            raise SequenceError(f"dynamic_rnn: all jagged inputs share their lengths; those of {path} differ.")
    by_row = np.diff(offsets)
    longest = int(by_row.max(initial=0))
    if sequence_length is not None:
        _check_same_lengths(read_lengths(sequence_length, len(by_row), longest), by_row, "nested tensor")
    lengths, order = sort_lengths(by_row)
    step, row = _pairs(lengths)
    user_row = row if order is None else order[row]
    index = torch.from_numpy(offsets[user_row] + step).to(first.device)

    # Padding goes up to the largest length that the tensor says, which may be above all there are; without one, to N.
    said = first._maybe_min_seqlen, first._maybe_max_seqlen
    least, most = (int(by_row.min(initial=longest)), longest) if None in said else said

    def unpack(ys: Tensor) -> Tensor:
        values = spread_out(ys, index, len(ys))
        return torch.nested.nested_tensor_from_jagged(values, first.offsets(), min_seqlen=least, max_seqlen=most)

    xs = map_leaves(lambda x: x.values().index_select(0, index), inputs)
    return Ragged(xs, lengths, order, unpack)


def _check_same_lengths(given: np.ndarray, known: np.ndarray, what: str) -> None:
    bad = np.flatnonzero(given != known)
    if len(bad):
        raise SequenceError(
            f"dynamic_rnn: a {what} carries its lengths itself: row {bad[0]} has length {known[bad[0]]}, and "
            f"sequence_length says {given[bad[0]]}. Leave sequence_length out."
        )
