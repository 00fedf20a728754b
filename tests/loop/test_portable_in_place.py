"""Steps that write on what they are given, in the portable loop: `output[t] = ...` keeps what was returned."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from throughtime import Recompute, SaveAll, StateError, dynamic_rnn

Cell = Callable[[Tensor, Any], tuple[Any, Any]]
LENGTHS = [5, 2, 0, 3]


def added(x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    h.mul_(0.5).add_(x)
    return h, h


def ring(x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Any]:
    h, buffer = state
    buffer[:, :-1] = buffer[:, 1:].clone()
    buffer[:, -1] = x.sum(1)
    return buffer, (h + buffer.mean(1, keepdim=True) * x, buffer)


def saved(x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """The backward pass reads the state that the next step writes on."""
    h.add_(x)
    return h * h, h


CELLS = [added, ring, saved]


def start_of(cell: Cell, rows: int) -> list[Tensor]:
    return [torch.full((rows, 3), 0.5)] * (2 if cell is ring else 1)


def packed(leaves: list[Tensor]) -> Any:
    return leaves[0] if len(leaves) == 1 else tuple(leaves)


def plain(cell: Cell, x: Tensor, start: list[Tensor], reset: Tensor | None) -> tuple[Tensor, list[Tensor]]:
    """Row by row, with copies at every step."""
    outputs, finals = [], []
    for b, length in enumerate(LENGTHS):
        state = [leaf[b : b + 1] for leaf in start]
        row = []
        for t in range(length):
            if reset is not None and reset[b, t]:
                state = [torch.zeros_like(leaf) for leaf in state]
            output, after = cell(x[b : b + 1, t], packed([leaf.clone() for leaf in state]))
            row.append(output.clone())
            state = [leaf.clone() for leaf in (after if isinstance(after, tuple) else (after,))]
        outputs.append(torch.cat([*row, x.new_zeros(x.shape[1] - length, 3)]))
        finals.append(state)
    return torch.stack(outputs), [torch.cat(column) for column in zip(*finals)]


@pytest.mark.parametrize("memory", [SaveAll(), Recompute(2)], ids=str)
@pytest.mark.parametrize("resets", [False, True], ids=["", "resets"])
@pytest.mark.parametrize("cell", CELLS)
def test_a_step_that_writes_on_its_state(cell: Cell, resets: bool, memory: Any) -> None:
    """Outputs, state and gradients are those of the loop that copies; the user's own state stays as it was."""
    torch.manual_seed(0)
    reset = torch.rand(4, 5) < 0.3 if resets else None
    found = []
    for portable in (False, True):
        x = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()
        start = [leaf.clone().requires_grad_() for leaf in start_of(cell, 4)]
        if portable:
            outputs, state = dynamic_rnn(
                cell, x, LENGTHS, packed(start), reset=reset, memory=memory, backend="portable"
            )
            finals = [state] if isinstance(state, Tensor) else list(state)
        else:
            outputs, finals = plain(cell, x, start, reset)
        loss = outputs.square().sum() + sum(leaf.square().sum() for leaf in finals)
        found.append([outputs, *finals, *torch.autograd.grad(loss, [x, *start])])
        assert all(bool((leaf == 0.5).all()) for leaf in start)
    for want, got in zip(*found, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("cell", CELLS)
def test_without_gradients_too(cell: Cell, around: Callable[[], Any]) -> None:
    """Inference tensors do not count how often they are written on."""
    with around():
        x, start = torch.randn(4, 5, 3), start_of(cell, 4)
        outputs, state = dynamic_rnn(cell, x, LENGTHS, packed(start), backend="portable")
        want, finals = plain(cell, x, start, None)
    torch.testing.assert_close(outputs, want)
    torch.testing.assert_close(state, packed(finals))
    assert all(bool((leaf == 0.5).all()) for leaf in start)


def test_under_a_functional_transform() -> None:
    many, start = torch.randn(2, 4, 5, 3), torch.full((4, 3), 0.5)
    found = torch.func.vmap(lambda x: dynamic_rnn(added, x, LENGTHS, start + 0 * x[:, 0], backend="portable")[0])(many)
    for x, got in zip(many, found):
        torch.testing.assert_close(got, plain(added, x, [start], None)[0])


def test_what_one_step_gives_is_of_its_own() -> None:
    """Neither outputs nor state are one tensor with the other, with the inputs or with what the cell keeps."""
    x, own = torch.ones(1, 2, 3), torch.zeros(2, 3)
    outputs, state = dynamic_rnn(lambda x, h: (x, own), x, initial_state=own, time_major=True, backend="portable")
    again, same = dynamic_rnn(lambda x, h: (h, h), x, initial_state=own, time_major=True, backend="portable")
    for value in (outputs, state, again, same):
        value.add_(5)
    assert bool((x == 1).all())
    assert bool((own == 0).all())
    assert bool((again == 5).all())


def test_a_step_that_makes_new_tensors_is_given_no_copies() -> None:
    """Only the first step is: until it has run nothing is known of it."""
    seen: list[tuple[int, int]] = []

    def cell(x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        following = h + x
        seen.append((h.data_ptr(), following.data_ptr()))
        keep.append(following)
        return following, following

    keep: list[Tensor] = []
    dynamic_rnn(cell, torch.zeros(2, 4, 3), initial_state=torch.zeros(2, 3), backend="portable")
    assert [given for given, _ in seen[1:]] == [returned for _, returned in seen[:-1]]


def test_an_output_that_a_later_step_writes_on_is_an_error() -> None:
    """A step that begins to write when earlier outputs are its state, or that writes on a tensor of its own."""

    def late(x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        if x.sum() > 0:
            h.add_(x)
        return h, h

    own = torch.zeros(2, 3)

    def keeps(x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        own.add_(x)
        return own, h

    x = torch.tensor([0.0, 0.0, 1.0, 1.0])[None, :, None].expand(2, 4, 3)
    for cell in (late, keeps):
        with pytest.raises(StateError, match="returned as its output at step 0 was written on in place at a later"):
            dynamic_rnn(cell, x, initial_state=torch.zeros(2, 3), backend="portable")
