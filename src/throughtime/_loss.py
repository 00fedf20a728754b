"""A cell and a loss per step -> the loss of whole sequences, in memory that does not grow with them.

The loss is traced with the cell: it becomes part of the step, and the outputs of the cell are never kept.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor, nn

from throughtime._eager import eager
from throughtime._errors import SequenceError
from throughtime._nested import Nested, leaves
from throughtime._pipeline import run
from throughtime._sequence import Ragged, read_sequence
from throughtime._source import are_chunks, can_be_read_by_steps, read_by_steps, read_chunks
from throughtime._state import split_result
from throughtime._types import Backend, Cell
from throughtime._unroll import CHUNK, Options, check_options, prepare, read_memory
from throughtime.plan.memory import MemoryPolicy, Recompute, Spill

__all__ = ["unroll_loss"]

LossStep = Callable[[Any, Any], Tensor]


@eager
def unroll_loss(
    cell: Cell,
    inputs: Nested,
    targets: Nested,
    loss_step: LossStep,
    sequence_length: Sequence[int] | Tensor | None = None,
    initial_state: Nested = None,
    *,
    reduction: Literal["mean", "sum", "none"] = "mean",
    time_major: bool = False,
    memory: MemoryPolicy | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, Nested]:
    """The loss of every real step, reduced, and the final state.

    Means::

        for t in range(T):
            output, state = cell(inputs[t], state)
            losses[t] = loss_step(output, targets[t])       # real steps only

    but outputs are used where they are made and never kept: beside inputs and targets, memory grows with the losses
    (4 bytes a step and row) and with the marks of the memory policy.

    Args:
        cell, sequence_length, initial_state, time_major, backend: as in `dynamic_rnn`.
        inputs: as in `dynamic_rnn`, NumPy arrays and memory maps too: what wants no gradient is read a range of steps
            at a time, in the forward pass and again in the backward pass. Or an iterator of chunks
            `(inputs, targets)`, [B, t, ...] in every leaf: chunks go to a private file as they come.
        targets: nested, in the layout of the inputs; None beside chunks.
        loss_step: `(output, target) -> loss` for the rows of one step, one number per row: [B], or [B, ...] to be
            summed over the other axes. It is traced with the cell.
        reduction: the mean over real steps, their sum, or none: the losses in the layout of the inputs.
        memory: the memory policy of the backward pass; by default `Recompute()`.

    Returns:
        (loss, state).

    Raises:
        SequenceError: targets that do not fit the inputs, chunks that differ, inputs that were changed before the
            backward pass, or losses without a row axis.
        SpillError: no room for the chunks.

    >>> import torch, throughtime
    >>> def squared(output, target):
    ...     return (output - target).square().mean(-1)
    >>> x, y = torch.randn(2, 1000, 3), torch.randn(2, 1000, 8)
    >>> loss, state = throughtime.unroll_loss(throughtime.GRUCell(8), x, y, squared)
    >>> loss.shape
    torch.Size([])
    """
    check_options(cell, None, backend)
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"unroll_loss: reduction must be 'mean', 'sum' or 'none', got {reduction!r}.")
    policy = read_memory(False, memory or Recompute())
    ragged = _read(inputs, targets, sequence_length, time_major, policy)
    del inputs, targets, sequence_length
    options = Options(None, CHUNK, backend, policy)
    request = prepare(cell, replace(ragged, xs=ragged.xs["inputs"]), initial_state, None, None, options)
    losses, state = run(replace(request, cell=LossStepCell(cell, loss_step), ragged=ragged))
    return _reduced(losses, ragged, reduction), ragged.unsort_rows(state)


def _read(inputs: Any, targets: Any, sequence_length: Any, time_major: bool, policy: MemoryPolicy) -> Ragged:
    """What can be read as the steps need it is not copied."""
    if are_chunks(inputs):
        if targets is not None:
            raise SequenceError("unroll_loss: chunks are pairs (inputs, targets); targets beside them must be None.")
        return read_chunks(inputs, sequence_length, time_major, policy.directory if isinstance(policy, Spill) else None)
    both = {"inputs": inputs, "targets": targets}
    read = read_by_steps if can_be_read_by_steps(both) else read_sequence
    return read(both, sequence_length, time_major)


def _reduced(losses: Tensor, ragged: Any, reduction: str) -> Tensor:
    if reduction == "none":
        return ragged.restore(losses)
    total = losses.sum()
    return total / max(len(losses), 1) if reduction == "mean" else total


class LossStepCell(nn.Module):
    """A cell whose output is its loss. It is made anew at each call, and known again by its parts."""

    def __init__(self, cell: Any, loss_step: LossStep) -> None:
        super().__init__()
        self.cell, self.loss_step = cell, loss_step

    def made_of(self) -> tuple[Any, LossStep]:
        return self.cell, self.loss_step

    def forward(self, x: Nested, state: Nested, row_consts: Nested = ()) -> tuple[Tensor, Nested]:
        result = self.cell(x["inputs"], state, row_consts) if leaves(row_consts) else self.cell(x["inputs"], state)
        output, next_state = split_result(result, state)
        loss = self.loss_step(output, x["targets"])
        rows = leaves(x["inputs"])[0].shape[0]
        if not isinstance(loss, Tensor) or loss.dim() == 0 or loss.shape[0] != rows:
            got = list(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise SequenceError(
                f"unroll_loss: loss_step must return one loss per row, [{rows}] for this step, got {got}. "
                f"Reduce over the features only, for example with loss.mean(-1)."
            )
        return loss.reshape(rows, -1).sum(-1), next_state
