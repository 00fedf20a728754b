"""The doors: which options are refused, and what static_rnn takes. (What a run means: tests/conformance.)"""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from throughtime import (
    BackendError,
    GRUCell,
    MemoryPolicyError,
    Recompute,
    SaveAll,
    SequenceError,
    bidirectional_dynamic_rnn,
    dynamic_rnn,
    static_rnn,
)

X = torch.randn(2, 5, 3)

WRONG_OPTIONS = [
    ({"parallel_iterations": 0}, ValueError, "parallel_iterations must be at least 1"),
    ({"backend": "fast"}, ValueError, "backend must be 'auto', 'native' or 'portable'"),
    ({"memory": "512MB"}, MemoryPolicyError, "memory is SaveAll"),
    ({"memory": Recompute}, MemoryPolicyError, "memory is SaveAll"),
    ({"memory": SaveAll(), "swap_memory": True}, MemoryPolicyError, "swap_memory=True means memory=Spill"),
]


@pytest.mark.parametrize(("options", "kind", "message"), WRONG_OPTIONS)
def test_options(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        dynamic_rnn(nn.GRUCell(3, 4), X, **options)
    with pytest.raises(kind, match=message):
        bidirectional_dynamic_rnn(nn.GRUCell(3, 4), nn.GRUCell(3, 4), X, **options)


def test_a_backend_that_cannot_run_the_cell_says_why() -> None:
    cell = nn.GRUCell(3, 4)
    cell.register_forward_hook(lambda module, args, result: None)
    with pytest.raises(BackendError, match="cannot run this cell") as caught:
        dynamic_rnn(cell, X, backend="native")
    assert "the cell has hooks" in str(caught.value)


def test_a_cell_without_sizes_finds_them_before_the_loop() -> None:
    """It runs on any backend at once, without a warning, and its weights are drawn from the user's random stream."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, second = GRUCell(4), GRUCell(4)
        for cell in (first, second):
            for inputs, lengths in ((X, [0, 0]), (X, None)):
                outputs, _ = dynamic_rnn(cell, inputs, lengths)
                assert outputs.shape == (2, 5, 4)
    assert first.gates.kernel.shape == (7, 8)
    assert not torch.equal(first.gates.kernel, second.gates.kernel)


def test_a_cell_without_sizes_that_tells_no_start() -> None:
    class Lazy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.LazyLinear(4)

        def forward(self, x: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor]:
            h = torch.tanh(self.map(x) + (0 if h is None else h))
            return h, h

    first, second = Lazy(), Lazy()
    for cell in (first, second):
        assert dynamic_rnn(cell, X, backend="portable")[0].shape == (2, 5, 4)
    assert not torch.equal(first.map.weight, second.map.weight)


def test_a_cell_is_callable() -> None:
    with pytest.raises(TypeError, match="a cell is a callable"):
        dynamic_rnn("GRU", X)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a cell is a callable"):
        bidirectional_dynamic_rnn(nn.GRUCell(3, 4), None, X)  # type: ignore[arg-type]


def test_a_class_is_no_cell() -> None:
    with pytest.raises(TypeError, match=r"a cell is an object, got the class GRUCell. Make one: GRUCell\(\.\.\.\)"):
        dynamic_rnn(GRUCell, X)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_a_layer_is_no_cell(kind: str) -> None:
    layer = getattr(nn, kind)(3, 4)
    with pytest.raises(TypeError, match=rf"a cell is one step, and nn.{kind} is a layer .* Pass nn.{kind}Cell"):
        dynamic_rnn(layer, X)


def test_the_order_of_arguments_is_tensorflows() -> None:
    """cell, inputs, sequence_length, initial_state, dtype, parallel_iterations, swap_memory, time_major."""
    cell = nn.GRUCell(3, 4)
    outputs, state = dynamic_rnn(cell, X.transpose(0, 1), [5, 2], torch.ones(2, 4), torch.float32, 7, False, True)
    want, want_state = dynamic_rnn(cell, X, sequence_length=[5, 2], initial_state=torch.ones(2, 4))
    assert torch.equal(outputs.transpose(0, 1), want)
    assert torch.equal(state, want_state)


def test_both_directions_start_where_they_are_told() -> None:
    cells = nn.GRUCell(3, 4), nn.GRUCell(3, 6)
    starts = torch.ones(2, 4), torch.ones(2, 6)
    outputs, states = bidirectional_dynamic_rnn(*cells, X, [5, 0], *starts)
    assert torch.equal(states[0][1], starts[0][1])
    assert torch.equal(states[1][1], starts[1][1])
    assert torch.equal(outputs[1][0, 0], states[1][0]), "backwards, the first step's output is the final state"


def test_static_is_a_list_in_and_a_list_out() -> None:
    cell = nn.LSTMCell(3, 4)
    outputs, state = static_rnn(cell, list(X.unbind(1)), sequence_length=[5, 2])
    want, want_state = dynamic_rnn(cell, X, [5, 2], backend="portable")
    assert isinstance(outputs, list)
    assert torch.equal(torch.stack(outputs, 1), want)
    assert torch.equal(state[0], want_state[0])


def test_gradients_of_static_outputs_meet_once() -> None:
    """A selection for each step would make T gradients as large as all outputs."""
    outputs, _ = static_rnn(nn.GRUCell(3, 4), [torch.randn(2, 3) for _ in range(5)])
    assert len({output.grad_fn for output in outputs}) == 1


def test_static_with_nested_steps() -> None:
    def cell(x: Any, h: Tensor) -> Any:
        return {"sum": x["a"] + x["b"]}, h + 1

    steps = [{"a": torch.full((2, 1), float(t)), "b": torch.ones(2, 1)} for t in range(3)]
    steps[1] = {"b": steps[1]["b"], "a": steps[1]["a"]}
    outputs, count = static_rnn(cell, steps, torch.zeros(2, 1), sequence_length=[3, 2])
    assert [y["sum"].squeeze(1).tolist() for y in outputs] == [[1, 1], [2, 2], [3, 0]]
    assert count.squeeze(1).tolist() == [3, 2]


WRONG_STEPS = [
    (X, "inputs must be a list of T inputs"),
    (iter([X]), "inputs must be a list of T inputs"),
    ([], "inputs must not be empty"),
    ([X[:, 0], X[:1, 0]], r"all inputs are tensors of the shapes of inputs\[0\]"),
    ([X[:, 0], (X[:, 0],)], r"all inputs are tensors of the shapes of inputs\[0\]"),
    ([1.0, 2.0], r"all inputs are tensors of the shapes of inputs\[0\]"),
]


@pytest.mark.parametrize(("inputs", "message"), WRONG_STEPS)
def test_wrong_steps(inputs: Any, message: str) -> None:
    with pytest.raises(SequenceError, match=message):
        static_rnn(nn.GRUCell(3, 4), inputs)


def test_nothing_of_the_user_is_changed() -> None:
    x, lengths, start = X.clone(), torch.tensor([5, 2]), torch.zeros(2, 4)
    dynamic_rnn(nn.GRUCell(3, 4), x, lengths, start, reset=torch.ones(2, 5).bool())
    assert torch.equal(x, X)
    assert lengths.tolist() == [5, 2]
    assert not start.any()


def test_the_final_state_of_no_steps_is_not_the_initial_tensor() -> None:
    """In-place work on the one must not reach the other."""
    start = torch.zeros(2, 4)
    _, state = dynamic_rnn(nn.GRUCell(3, 4), X, [0, 0], start)
    state += 1
    assert not start.any()
