"""A cell -> the state it starts from, and what it returns -> (output, state). Every way to find it, every refusal."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from throughtime import DropoutWrapper, MultiRNNCell, ResidualWrapper, StateError, dynamic_rnn
from throughtime._nested import leaves, map_leaves
from throughtime._state import fit_state, initial_row_consts, initial_state, split_result

X = torch.ones(3, 4)
CPU = torch.device("cpu")


def start(cell: Any, xs: Any = X, rows: int = 2) -> Any:
    return initial_state(cell, xs, rows, torch.float64, CPU)


def shapes(state: Any) -> Any:
    return map_leaves(lambda leaf: list(leaf.shape), state)


class Pair(NamedTuple):
    c: Any
    h: Any


class Sized:
    def __init__(self, size: Any) -> None:
        self.state_size = size

    def __call__(self, x: Tensor, state: Any) -> Any:
        return x, state


class Declaring(Sized):
    def initial_state(self, batch_size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.full((batch_size, 1), 7.0, dtype=dtype, device=device)


@pytest.mark.parametrize(
    ("size", "want"),
    [
        (3, [2, 3]),
        (torch.Size([3, 5]), [2, 3, 5]),
        (torch.Size([]), [2]),
        ((3, 5), ([2, 3], [2, 5])),
        ([3, (5, 1)], [[2, 3], ([2, 5], [2, 1])]),
        ({"a": 3, "b": torch.Size([1, 1])}, {"a": [2, 3], "b": [2, 1, 1]}),
        (Pair(3, 5), Pair([2, 3], [2, 5])),
        ((), ()),
    ],
)
def test_state_size(size: Any, want: Any) -> None:
    state = start(Sized(size))
    assert shapes(state) == want
    assert type(state) is type(want) or isinstance(state, Tensor)
    assert all(leaf.dtype == torch.float64 for leaf in leaves(state))


def test_its_own_initial_state_comes_before_its_size() -> None:
    assert start(Declaring(9)).tolist() == [[7.0], [7.0]]


@pytest.mark.parametrize("cell", [nn.RNNCell(4, 5), nn.GRUCell(4, 5)])
def test_pytorchs_cells(cell: Any) -> None:
    assert shapes(start(cell)) == [2, 5]
    assert shapes(start(nn.LSTMCell(4, 5))) == ([2, 5], [2, 5])


def test_a_subclass_of_pytorchs_base_is_not_taken_for_one_of_its_cells() -> None:
    class Two(nn.RNNCellBase):
        def __init__(self) -> None:
            super().__init__(4, 5, True, num_chunks=1)

        def forward(self, x: Tensor, state: Any = None) -> Any:
            a, b = state if state is not None else (x.new_zeros(len(x), 1), x.new_zeros(len(x), 2))
            return x, (a, b)

    assert shapes(start(Two())) == ([2, 1], [2, 2])


def lstm_like(x: Tensor, state: Any) -> Any:
    """Returns its state only, a pair, as nn.LSTMCell does."""
    h, c = (torch.zeros_like(x), torch.zeros_like(x)) if state is None else state
    return h + x, c + h


def counting(x: Tensor, state: Any) -> Any:
    h, n = (torch.zeros(len(x), 2), torch.zeros(len(x), 1, dtype=torch.int64)) if state is None else state
    return x, (h, n + 1)


@pytest.mark.parametrize(
    ("cell", "want"),
    [
        (lambda x, h: (x, x.new_zeros(len(x), 6) if h is None else h), [2, 6]),
        (lambda x, h: x if h is None else h + x, [2, 4]),
        (lstm_like, ([2, 4], [2, 4])),
        (counting, ([2, 2], [2, 1])),
    ],
)
def test_a_trial_with_none(cell: Any, want: Any) -> None:
    state = start(cell)
    assert shapes(state) == want
    assert not any(leaf.any() for leaf in leaves(state))


def test_a_trial_keeps_the_dtypes_it_saw_and_works_without_inputs() -> None:
    h, n = start(counting, X[:0])
    assert (h.dtype, n.dtype) == (torch.float32, torch.int64)


def test_a_trial_leaves_gradients_and_the_random_stream_alone() -> None:
    weight = torch.ones(4, requires_grad=True)

    def noisy(x: Tensor, h: Tensor | None) -> Any:
        h = torch.zeros_like(x) if h is None else h
        h = h + weight * torch.nn.functional.dropout(x)
        return h, h

    before = torch.random.get_rng_state()
    state = start(noisy)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not state.requires_grad


UNKNOWN = [
    (lambda x, h: (x, h + x), "raised TypeError"),
    (lambda x, h: (x, (torch.ones_like(x) if h is None else h) + x), r"differs from cell\(inputs, zeros\)"),
    (lambda x, h: {"y": 3} if h is None else (x, h), "is not accepted back as a state"),
    (lambda x, h: (x, None), "is not accepted back as a state"),
]


@pytest.mark.parametrize(("cell", "message"), UNKNOWN)
def test_a_start_that_cannot_be_told(cell: Any, message: str) -> None:
    with pytest.raises(StateError, match=message) as caught:
        start(cell)
    assert str(caught.value).startswith("dynamic_rnn: cannot tell the state this cell starts from")
    assert "Pass initial_state=, or give the cell" in str(caught.value)


def test_the_error_of_the_trial_is_its_cause() -> None:
    with pytest.raises(StateError, match=r"cell\(inputs, None\) raised") as caught:
        start(lambda x, h: x[h["a"]])
    assert isinstance(caught.value.__cause__, TypeError)


@pytest.mark.parametrize("size", [3.5, "3", (3, None)])
def test_a_state_size_of_another_kind(size: Any) -> None:
    with pytest.raises(StateError, match=r"or a nested structure of them, got (float|str|NoneType)"):
        start(Sized(size))


class Nameless(nn.Module):
    """A cell that declares nothing, and takes no None."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.mix(x) + h)
        return 2 * h, h


WRAPPERS = {
    "residual": (ResidualWrapper, lambda x, h: h),
    "dropout": (DropoutWrapper, lambda x, h: h),
    "twice": (lambda cell: ResidualWrapper(DropoutWrapper(cell)), lambda x, h: h),
    "stack": (lambda cell: MultiRNNCell([cell, nn.GRUCell(4, 4)]), lambda x, h: (h, x[:, 0])),
}


@pytest.mark.parametrize("backend", ["portable", "native"])
@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapped_cell_that_declares_no_state_starts_from_what_is_given(name: str, backend: str) -> None:
    wrap, make_start = WRAPPERS[name]
    cell, x, lengths = wrap(Nameless()), torch.randn(2, 3, 4), [3, 2]
    given = make_start(x, torch.randn(2, 4))
    outputs, final = dynamic_rnn(cell, x, lengths, given, backend=backend)
    for b, length in enumerate(lengths):
        state = map_leaves(lambda leaf: leaf[b : b + 1], given)  # noqa: B023
        for t in range(length):
            output, state = cell(x[b : b + 1, t], state)
            torch.testing.assert_close(outputs[b : b + 1, t], output)
        torch.testing.assert_close(map_leaves(lambda leaf: leaf[b : b + 1], final), state)  # noqa: B023
    with pytest.raises(StateError, match=r"cell\(inputs, None\) raised"):
        dynamic_rnn(cell, x)


def test_a_wrapped_cell_that_declares_no_state_is_tried_as_any_other() -> None:
    cell, x = ResidualWrapper(Lenient()), torch.randn(2, 3, 4)
    outputs, final = dynamic_rnn(cell, x)
    want, end = dynamic_rnn(cell, x, initial_state=torch.zeros(2, 4))
    assert torch.equal(outputs, want)
    assert torch.equal(final, end)


class Lenient(nn.Module):
    """None is zeros."""

    def forward(self, x: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor]:
        h = x if h is None else 0.5 * h + x
        return h, h


LIKE = Pair(torch.zeros(2, 3), {"a": torch.zeros(2, 4)})
WRONG_STATES = {
    "no rows": ((torch.zeros(3), {"a": torch.zeros(2, 4)}), "one entry per row of the batch on its first"),
    "a scalar": ((torch.tensor(0.0), {"a": torch.zeros(2, 4)}), "one entry per row of the batch on its first"),
    "a number": ((0.0, {"a": torch.zeros(2, 4)}), r"got float. Use a tensor \[2\] in place of a Python number"),
    "None": (None, "one entry per row of the batch on its first"),
    "a leaf too few": ((torch.zeros(2, 3),), "must have the structure of the cell's state"),
    "other keys": ((torch.zeros(2, 3), {"b": torch.zeros(2, 4)}), "must have the structure of the cell's state"),
    "other sizes": ((torch.zeros(2, 3), {"a": torch.zeros(2, 5)}), "must have the sizes and dtypes"),
}


@pytest.mark.parametrize(("given", "message"), WRONG_STATES.values(), ids=WRONG_STATES)
def test_wrong_states(given: Any, message: str) -> None:
    with pytest.raises(StateError, match=message):
        fit_state(given, LIKE, 2, "initial_state")


def test_messages_name_the_leaf_and_both_shapes() -> None:
    given = (torch.zeros(2, 3), {"a": torch.zeros(2, 5)})
    with pytest.raises(StateError) as caught:
        fit_state(given, LIKE, 2, "initial_state")
    assert "initial_state.h['a']: expected float32[2, 4], got float32[2, 5]" in str(caught.value)


def test_initial_state_is_checked_even_for_pytorchs_cells() -> None:
    with pytest.raises(StateError, match="initial_state must have the structure"):
        dynamic_rnn(nn.LSTMCell(3, 4), torch.randn(2, 5, 3), initial_state=torch.zeros(2, 4))


def test_an_initial_state_may_have_a_dtype_of_its_own() -> None:
    counts = torch.zeros(2, 1, dtype=torch.int64)
    _, state = dynamic_rnn(lambda x, n: (x, n + 1), torch.randn(2, 5, 3), [5, 1], counts)
    assert state.tolist() == [[5], [1]]
    _, state = dynamic_rnn(Sized(1), torch.randn(2, 5, 3), [5, 1], counts)
    assert state.dtype == torch.int64


def test_row_consts() -> None:
    class Wrong(Sized):
        def row_consts(self, batch_size: int, dtype: torch.dtype, device: torch.device) -> Any:
            return {"memory": torch.zeros(1, 4)}

    with pytest.raises(StateError, match="what a cell's row_consts returns has one entry per row") as caught:
        initial_row_consts(Wrong(3), 2, torch.float32, CPU)
    assert "row_consts['memory'] must be [2, ...], got float32[1, 4]" in str(caught.value)
    assert initial_row_consts(Sized(3), 2, torch.float32, CPU) == ()


def test_row_consts_follow_their_rows_in_a_cell_without_state() -> None:
    class Labelled(Sized):
        def row_consts(self, batch_size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
            return torch.arange(batch_size, dtype=dtype).unsqueeze(1)

        def __call__(self, x: Tensor, state: Any, row_consts: Any = None) -> Any:
            return x + row_consts, state

    outputs, state = dynamic_rnn(Labelled(()), torch.zeros(3, 3, 1), [1, 3, 2])
    assert outputs.squeeze(2).tolist() == [[0, 0, 0], [1, 1, 1], [2, 2, 0]]
    assert state == ()


def test_an_empty_state_needs_a_pair() -> None:
    assert split_result((X, ()), ()) == (X, ())
    with pytest.raises(StateError, match="a state of the structure of the one it gets"):
        split_result((), ())


RETURNS = [
    ((X, X[:, :2]), "state shaped like the one it gets"),
    ((X, (X, X)), "state of the structure of the one it gets"),
]


@pytest.mark.parametrize(("result", "message"), RETURNS)
def test_a_result_that_holds_no_state(result: Any, message: str) -> None:
    with pytest.raises(StateError, match=message):
        split_result(result, X)
