"""RNN: a layer called like nn.LSTM, and what happens to layers in life: copies, pickles, hooks, weight norm."""

import copy
import io
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from throughtime import RNN, BasicLSTMCell, GRUCell, LSTMCell, MultiRNNCell, SequenceError, StateError, dynamic_rnn

LENGTHS = [4, 5, 1]
X = torch.randn(3, 5, 3, dtype=torch.float64)


def from_layer(layer: nn.LSTM | nn.GRU, suffix: str) -> nn.Module:
    """PyTorch's cell with the weights of PyTorch's layer."""
    kind = nn.LSTMCell if isinstance(layer, nn.LSTM) else nn.GRUCell
    cell = kind(layer.input_size, layer.hidden_size).double()
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    cell.load_state_dict({name: getattr(layer, f"{name}_{suffix}").detach() for name in names})
    return cell


def packed(x: Tensor) -> PackedSequence:
    return pack_padded_sequence(x, torch.tensor(LENGTHS), batch_first=True, enforce_sorted=False)


KINDS = pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])


@KINDS
def test_padded_as_pytorchs_layer(kind: Any) -> None:
    layer = kind(3, 4, batch_first=True).double()
    outputs, state = RNN(from_layer(layer, "l0"))(X)
    want, want_state = layer(X)
    torch.testing.assert_close(outputs, want)
    torch.testing.assert_close(state, map_state(want_state, 0))


@KINDS
def test_time_major_as_pytorchs_layer(kind: Any) -> None:
    layer = kind(3, 4).double()
    outputs, _ = RNN(from_layer(layer, "l0"), batch_first=False)(X.transpose(0, 1))
    torch.testing.assert_close(outputs, layer(X.transpose(0, 1))[0])


@KINDS
def test_packed_in_both_directions_as_pytorchs_layer(kind: Any) -> None:
    layer = kind(3, 4, batch_first=True, bidirectional=True).double()
    cells = from_layer(layer, "l0"), from_layer(layer, "l0_reverse")
    rnn = RNN(cells[0], bidirectional=True, cell_bw=cells[1])
    outputs, (forwards, backwards) = rnn(packed(X))
    want, want_state = layer(packed(X))
    torch.testing.assert_close(outputs.data, want.data)
    assert torch.equal(outputs.sorted_indices, want.sorted_indices)
    torch.testing.assert_close(forwards, map_state(want_state, 0))
    torch.testing.assert_close(backwards, map_state(want_state, 1))
    padded, _ = rnn(X, sequence_length=LENGTHS)
    torch.testing.assert_close(padded, pad_packed_sequence(want, batch_first=True)[0])


@KINDS
def test_initial_states_and_gradients_as_pytorchs_layer(kind: Any) -> None:
    layer = kind(3, 4, batch_first=True).double()
    cell = from_layer(layer, "l0")
    start = (torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64))
    ours, theirs = (start, (start[0][None], start[1][None])) if kind is nn.LSTM else (start[0], start[0][None])
    RNN(cell)(packed(X), ours)[0].data.square().sum().backward()
    layer(packed(X), theirs)[0].data.square().sum().backward()
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        torch.testing.assert_close(getattr(cell, name).grad, getattr(layer, f"{name}_l0").grad)


def test_layers_as_pytorchs_layer() -> None:
    layer = nn.LSTM(3, 3, num_layers=2, batch_first=True).double()
    stack = MultiRNNCell([from_layer(layer, "l0"), from_layer(layer, "l1")])
    outputs, state = RNN(stack)(X)
    want, (h, c) = layer(X)
    torch.testing.assert_close(outputs, want)
    torch.testing.assert_close(state[1], (h[1], c[1]))


def map_state(state: Any, index: int) -> Any:
    return tuple(part[index] for part in state) if isinstance(state, tuple) else state[index]


LAYERS: dict[str, Callable[[], RNN]] = {
    "nn.LSTMCell": lambda: RNN(nn.LSTMCell(3, 4)).double(),
    "BasicLSTMCell": lambda: RNN(BasicLSTMCell(4, input_size=3)).double(),
    "two directions": lambda: RNN(GRUCell(4, input_size=3), bidirectional=True).double(),
    "a stack": lambda: RNN(MultiRNNCell([LSTMCell(4, input_size=3), nn.GRUCell(4, 2)])).double(),
}
EVERY_LAYER = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)


def run(rnn: RNN) -> Tensor:
    return rnn(X, sequence_length=LENGTHS)[0]


@EVERY_LAYER
def test_a_deep_copy_is_another_layer(make: Callable[[], RNN]) -> None:
    rnn = make()
    twin = copy.deepcopy(rnn)
    want = run(rnn)
    assert torch.equal(run(twin), want)
    with torch.no_grad():
        next(twin.parameters()).add_(1)
    assert torch.equal(run(rnn), want)
    assert not torch.equal(run(twin), want)


@EVERY_LAYER
def test_state_dict_round_trip(make: Callable[[], RNN]) -> None:
    rnn, other = make(), make()
    assert not torch.equal(run(other), run(rnn))
    file = io.BytesIO()
    torch.save(rnn.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(run(other), run(rnn))


def test_state_dict_names_are_the_cells() -> None:
    assert list(LAYERS["nn.LSTMCell"]().state_dict()) == [
        "cell.weight_ih",
        "cell.weight_hh",
        "cell.bias_ih",
        "cell.bias_hh",
    ]
    names = list(LAYERS["two directions"]().state_dict())
    assert [name.removeprefix("cell_bw.") for name in names[4:]] == [name.removeprefix("cell.") for name in names[:4]]


def test_a_pickle_works_in_a_spawned_worker() -> None:
    layers = [LAYERS[name]().requires_grad_(False) for name in ("nn.LSTMCell", "two directions")]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(rnn.forward, X, None, LENGTHS) for rnn in layers]
        for rnn, future in zip(layers, futures):
            outputs, _ = future.result(timeout=120)
            assert torch.equal(outputs, run(rnn))


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, parametrizations.spectral_norm])
@pytest.mark.parametrize("weight", ["weight_hh", "kernel"])
def test_parametrizations(norm: Any, weight: str) -> None:
    """The loop sees the weight that the parametrization computes, and gradients reach what it is computed from."""
    cell = nn.LSTMCell(3, 4).double() if weight == "weight_hh" else BasicLSTMCell(4, input_size=3).double()
    plain = copy.deepcopy(cell)
    norm(cell, weight)
    rnn = RNN(cell).eval()  # in training, spectral norm takes a step of its power iteration at each read
    with torch.no_grad():
        getattr(plain, weight).copy_(getattr(cell, weight))
    torch.testing.assert_close(run(rnn), run(RNN(plain)))
    run(rnn).sum().backward()
    originals = [p for name, p in rnn.named_parameters() if f"parametrizations.{weight}" in name]
    assert originals
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in originals)
    twin = copy.deepcopy(rnn)
    assert torch.equal(run(twin), run(rnn))


def test_a_parametrized_cell_in_two_directions() -> None:
    cell = nn.GRUCell(3, 4).double()
    parametrizations.weight_norm(cell, "weight_hh")
    rnn = RNN(cell, bidirectional=True)
    forwards, backwards = run(rnn).chunk(2, -1)
    assert not torch.equal(forwards, backwards)
    assert len(list(rnn.parameters())) == 10


def test_hooks_on_the_layer() -> None:
    seen: list[Any] = []
    rnn = LAYERS["nn.LSTMCell"]()
    before = rnn.register_forward_pre_hook(lambda module, args: (2 * args[0],))
    after = rnn.register_forward_hook(lambda module, args, result: seen.append(result[0]))
    got = run(rnn)
    before.remove()
    after.remove()
    assert torch.equal(seen[0], got)
    assert torch.equal(rnn(2 * X, sequence_length=LENGTHS)[0], got)


def test_hooks_on_the_cell_see_every_step() -> None:
    rnn = LAYERS["nn.LSTMCell"]()
    want = run(rnn)
    calls: list[int] = []
    handle = rnn.cell.register_forward_hook(lambda module, args, result: calls.append(len(args[0])))
    torch.testing.assert_close(run(rnn), want)
    assert calls == [3, 2, 2, 2, 1]
    handle.remove()
    rnn.cell.register_forward_hook(lambda module, args, result: (result[0] * 0, result[1]))
    assert not run(rnn).any(), "what a hook returns counts"


def test_gradient_hooks_on_the_cell() -> None:
    rnn, calls = LAYERS["nn.LSTMCell"](), []
    rnn.cell.register_full_backward_hook(lambda module, grad_in, grad_out: calls.append(1))
    run(rnn).sum().backward()
    assert len(calls) == 5


def test_a_function_is_a_cell_too() -> None:
    outputs, state = RNN(lambda x, h: (x + h, h + 1))(torch.zeros(2, 3, 1), torch.zeros(2, 1), [3, 1])
    assert outputs.squeeze(2).tolist() == [[0, 1, 2], [0, 0, 0]]
    assert state.squeeze(1).tolist() == [3, 1]


def test_resets_go_through() -> None:
    cell, reset = nn.GRUCell(3, 4).double(), torch.rand(3, 5) < 0.5
    back = torch.ones(3, 4, dtype=torch.float64)
    got, _ = RNN(cell)(X, sequence_length=LENGTHS, reset=reset, reset_state=back)
    want, _ = dynamic_rnn(cell, X, LENGTHS, reset=reset, reset_state=back)
    assert torch.equal(got, want)


def test_the_way_back_has_weights_of_its_own_drawn_anew() -> None:
    rnn = RNN(nn.GRUCell(3, 4), bidirectional=True)
    for name, weight in rnn.cell.named_parameters():
        assert not torch.equal(weight, rnn.cell_bw.get_parameter(name))


def test_unsized_cells_in_two_directions() -> None:
    rnn = RNN(GRUCell(4), bidirectional=True).double()
    assert rnn(X)[0].shape == (3, 5, 8)
    assert rnn.cell_bw.gates.kernel.shape == (7, 8)


def test_two_directions_join_every_leaf_in_every_layout() -> None:
    def cell(x: Tensor, h: Tensor) -> Any:
        return {"a": x, "b": (x[:, :1] * 2,)}, h + 1

    rnn = RNN(cell, bidirectional=True, cell_bw=cell)
    starts = (torch.zeros(3, 1), torch.zeros(3, 1))
    for inputs, lengths in ((X, LENGTHS), (packed(X), None), (jagged(), None)):
        outputs, (forwards, backwards) = rnn(inputs, starts, lengths)
        leaf = outputs["a"].data if isinstance(outputs["a"], PackedSequence) else outputs["a"]
        assert leaf.shape[-1] == 6
        assert outputs["b"][0].data.shape[-1] == 2
        assert forwards.squeeze(1).tolist() == backwards.squeeze(1).tolist() == LENGTHS


def jagged() -> Tensor:
    return torch.nested.nested_tensor([x[:n] for x, n in zip(X, LENGTHS)], layout=torch.jagged)


def test_repr() -> None:
    assert "batch_first=True, bidirectional=False" in repr(RNN(nn.GRUCell(3, 4)))


def scalar_output(x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    return x.sum(-1), h


WRONG_CALLS = [
    (lambda: RNN(nn.GRUCell(3, 4), cell_bw=nn.GRUCell(3, 4)), ValueError, "say bidirectional=True with it"),
    (lambda: RNN(scalar_output, bidirectional=True), ValueError, "has no second set of parameters"),
    (
        lambda: RNN(nn.GRUCell(3, 4), bidirectional=True)(X, reset=torch.ones(3, 5).bool()),
        ValueError,
        "reset has no meaning for both directions",
    ),
    (
        lambda: RNN(nn.GRUCell(3, 4), bidirectional=True)(X, torch.zeros(3, 4)),
        StateError,
        "the state of both directions is a pair",
    ),
    *(
        (
            lambda inputs=inputs: RNN(scalar_output, bidirectional=True, cell_bw=scalar_output)(
                inputs, (torch.zeros(3, 1), torch.zeros(3, 1))
            ),
            SequenceError,
            "output has no axis of features",
        )
        for inputs in (X, packed(X), jagged())
    ),
]


@pytest.mark.parametrize(("call", "kind", "message"), WRONG_CALLS)
def test_wrong_calls(call: Callable[[], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call()
