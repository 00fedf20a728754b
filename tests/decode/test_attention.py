"""Attention cells: in the loop, in decoders and called directly; masks, memories, several mechanisms."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from throughtime import GRUCell, LSTMCell, MultiRNNCell, dynamic_rnn
from throughtime._nested import leaves
from throughtime.capture import trace_step
from throughtime.decode import (
    AttentionOutput,
    AttentionWrapper,
    BahdanauAttention,
    BahdanauMonotonicAttention,
    BasicDecoder,
    LuongAttention,
    LuongMonotonicAttention,
    TrainingHelper,
    dynamic_decode,
    hardmax,
    monotonic_attention,
    safe_cumprod,
)

LENGTHS = [6, 2, 4, 5]
MECHANISMS = {
    "luong": lambda m, n: LuongAttention(5, m, n),
    "luong_scaled": lambda m, n: LuongAttention(5, m, n, scale=True),
    "bahdanau": lambda m, n: BahdanauAttention(3, m, n),
    "bahdanau_normalized": lambda m, n: BahdanauAttention(3, m, n, normalize=True),
    "luong_parallel": lambda m, n: LuongMonotonicAttention(5, m, n, scale=True),
    "bahdanau_recursive": lambda m, n: BahdanauMonotonicAttention(3, m, n, mode="recursive"),
    "bahdanau_hard": lambda m, n: BahdanauMonotonicAttention(3, m, n, mode="hard", score_bias_init=0.2),
    "several": lambda m, n: [LuongAttention(5, m, n), BahdanauAttention(3, m)],
}
EACH = pytest.mark.parametrize("make", MECHANISMS.values(), ids=MECHANISMS.keys())


def memory(seed: int = 0) -> Tensor:
    return torch.randn(4, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def inputs() -> Tensor:
    return torch.randn(4, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


def make_wrapper(make: Any, cell: nn.Module | None = None, lengths: Any = LENGTHS, **options: Any) -> AttentionWrapper:
    torch.manual_seed(1)
    wrapper = AttentionWrapper(cell or GRUCell(5), make(memory(), lengths), **options).double()
    start = wrapper.initial_state(4, torch.float64)
    wrapper(inputs()[:, 0], start)
    for weight in wrapper.parameters():
        nn.init.normal_(weight, std=0.6)
    return wrapper


def by_hand(wrapper: Any, lengths: list[int]) -> tuple[list[list[Tensor]], list[Any]]:
    """Each row's outputs and alignments, from direct calls on the whole batch."""
    state = wrapper.initial_state(4, torch.float64)
    outputs: list[list[Tensor]] = [[] for _ in lengths]
    weights: list[list[Tensor]] = [[] for _ in lengths]
    for t in range(max(lengths)):
        output, state = wrapper(inputs()[:, t], state)
        for row, length in enumerate(lengths):
            if t < length:
                outputs[row].append(output[row])
                weights[row].append(leaves(state.alignments)[0][row])
    return outputs, weights


@EACH
def test_dynamic_rnn_gives_each_row_its_own_memory(make: Any) -> None:
    wrapper = make_wrapper(make, attention_layer_size=[3, 4] if make is MECHANISMS["several"] else 4)
    lengths = [2, 5, 0, 3]
    wrapper.output_alignments = True
    ran, state = dynamic_rnn(wrapper, inputs(), lengths, backend="portable")
    wrapper.output_alignments = False
    outputs, weights = by_hand(wrapper, lengths)
    assert isinstance(ran, AttentionOutput)
    first = leaves(ran.alignments)[0]
    for row, length in enumerate(lengths):
        for t in range(length):
            torch.testing.assert_close(ran.output[row, t], outputs[row][t])
            torch.testing.assert_close(first[row, t], weights[row][t])
        assert (ran.output[row, length:] == 0).all()
        assert (first[row, length:] == 0).all()
    start = wrapper.initial_state(4, torch.float64)
    torch.testing.assert_close(leaves(state)[0][2], leaves(start)[0][2])


@EACH
def test_no_weight_falls_past_a_memorys_end(make: Any) -> None:
    """NaN there reaches nothing, gradients included."""
    wrapper = make_wrapper(make, attention_layer_size=[4, 4] if make is MECHANISMS["several"] else 4)
    clean, _ = dynamic_rnn(wrapper, inputs(), [5, 3, 4, 5], backend="portable")
    poisoned = memory()
    for row, length in enumerate(LENGTHS):
        poisoned[row, length:] = torch.nan
    poisoned.requires_grad_()
    for mechanism in wrapper.mechanisms:
        # The second of several has no lengths of its own: it reads all of the memory.
        mechanism.set_memory(poisoned if isinstance(mechanism.memory_mask, Tensor) else memory(), LENGTHS)
    masked, state = dynamic_rnn(wrapper, inputs(), [5, 3, 4, 5], backend="portable")
    if make is not MECHANISMS["several"]:
        torch.testing.assert_close(masked, clean)
    for weights in leaves(state.alignments):
        for row, length in enumerate(LENGTHS):
            assert (weights[row, length:] == 0).all()
    masked.sum().backward()
    grads = [poisoned.grad, *(weight.grad for weight in wrapper.parameters() if weight.grad is not None)]
    assert all(bool(grad.isfinite().all()) for grad in grads)
    assert (poisoned.grad[1, 2:] == 0).all()


@EACH
def test_the_step_is_captured(make: Any) -> None:
    wrapper = make_wrapper(make)
    consts = wrapper.row_consts(4, torch.float64, torch.device("cpu"))
    assert trace_step(wrapper, inputs()[:, 0], wrapper.initial_state(4, torch.float64), consts).pair is not None


@EACH
def test_constants_of_a_call_save_the_keys_and_change_nothing(make: Any) -> None:
    wrapper = make_wrapper(make)
    state = wrapper.initial_state(4, torch.float64)
    consts = wrapper.row_consts(4, torch.float64, torch.device("cpu"))
    direct, given = wrapper(inputs()[:, 0], state), wrapper(inputs()[:, 0], state, consts)
    assert all(torch.equal(a, b) for a, b in zip(leaves(direct), leaves(given)))
    layers = [mechanism.memory_layer for mechanism in wrapper.mechanisms]
    calls = []
    for layer in layers:
        layer.register_forward_hook(lambda *_: calls.append(1))
    dynamic_rnn(wrapper, inputs(), backend="portable")
    assert len(calls) == len(layers)


def test_another_batch_brings_its_memory() -> None:
    wrapper = make_wrapper(MECHANISMS["luong"])
    first, _ = dynamic_rnn(wrapper, inputs(), backend="portable")
    wrapper.attention_mechanism.set_memory(memory(3)[:2], [6, 6])
    second, _ = dynamic_rnn(wrapper, inputs()[:2], backend="portable")
    assert not torch.allclose(first[:2], second)
    with pytest.raises(ValueError, match="non-matching batch sizes: the memory has 2 rows, the batch has 4"):
        dynamic_rnn(wrapper, inputs(), backend="portable")


@pytest.mark.parametrize("kind", ["luong", "bahdanau_normalized"])
def test_decoders_keep_the_history_that_dynamic_rnn_gives_out(kind: str) -> None:
    wrapper = make_wrapper(MECHANISMS[kind], LSTMCell(5), alignment_history=True)
    lengths = [2, 5, 1, 3]
    decoder = BasicDecoder(wrapper, TrainingHelper(inputs(), lengths))
    outputs, state, _ = dynamic_decode(decoder, impute_finished=True)
    wrapper.output_alignments = True
    ran, final = dynamic_rnn(wrapper, inputs(), lengths, backend="portable")
    torch.testing.assert_close(state.alignment_history.transpose(0, 1), ran.alignments)
    torch.testing.assert_close(outputs.rnn_output, ran.output)
    torch.testing.assert_close(state.alignments, final.alignments)
    assert final.alignment_history == ()


def test_history_of_an_attention_cell_inside_a_stack() -> None:
    torch.manual_seed(0)
    bottom = AttentionWrapper(GRUCell(5), LuongAttention(5, memory().float()), alignment_history=True)
    decoder = BasicDecoder(MultiRNNCell([bottom, LSTMCell(3)]), TrainingHelper(inputs().float(), [5, 2, 3, 4]))
    _, state, _ = dynamic_decode(decoder)
    assert state[0].alignment_history.shape == (5, 4, 6)


def test_history_of_several_mechanisms() -> None:
    wrapper = make_wrapper(MECHANISMS["several"], alignment_history=True)
    _, state, _ = dynamic_decode(BasicDecoder(wrapper, TrainingHelper(inputs(), [5, 2, 3, 4])))
    assert [weights.shape for weights in state.alignment_history] == [(5, 4, 6)] * 2


def test_several_mechanisms_are_concatenated() -> None:
    wrapper = make_wrapper(MECHANISMS["several"], attention_layer_size=[2, 3])
    assert wrapper.output_size == 5
    names = [name for name, _ in wrapper.named_parameters() if "layer" in name]
    assert "attention_layer.kernel" in names
    assert "attention_layer_1.kernel" in names
    assert "attention_mechanisms.1.query_layer.kernel" in names
    state = wrapper.initial_state(4, torch.float64)
    output, next_state = wrapper(inputs()[:, 0], state)
    alone = AttentionWrapper(wrapper.cell, wrapper.mechanisms[1], attention_layer=wrapper.attention_layer_1)
    # The cell sees another attention before; from a zero start both see zeros of their own widths.
    alone.cell_input_fn = lambda x, attention: torch.cat([x, torch.zeros(4, 5, dtype=x.dtype)], 1)
    own, _ = alone(inputs()[:, 0], alone.initial_state(4, torch.float64))
    torch.testing.assert_close(output[:, 2:], own)
    torch.testing.assert_close(next_state.attention, output)


def test_names_are_tensorflows() -> None:
    wrapper = make_wrapper(lambda m, n: BahdanauMonotonicAttention(3, m, n, normalize=True), attention_layer_size=4)
    assert sorted(name for name, _ in wrapper.named_parameters()) == sorted(
        [
            "cell.gates.kernel",
            "cell.gates.bias",
            "cell.candidate.kernel",
            "cell.candidate.bias",
            "attention_mechanism.memory_layer.kernel",
            "attention_mechanism.query_layer.kernel",
            "attention_mechanism.attention_v",
            "attention_mechanism.attention_g",
            "attention_mechanism.attention_b",
            "attention_mechanism.attention_score_bias",
            "attention_layer.kernel",
        ]
    )
    shapes = {name: tuple(weight.shape) for name, weight in wrapper.named_parameters()}
    assert shapes["attention_mechanism.memory_layer.kernel"] == (4, 3)
    assert shapes["attention_layer.kernel"] == (9, 4)
    assert shapes["attention_mechanism.attention_score_bias"] == ()


def test_parameters_start_where_tensorflows_do() -> None:
    bahdanau = BahdanauAttention(4, normalize=True)
    assert bahdanau.attention_g.item() == 0.5
    assert (bahdanau.attention_b == 0).all()
    assert LuongAttention(4, scale=True).attention_g.item() == 1
    assert LuongMonotonicAttention(4, score_bias_init=-2.0).attention_score_bias.item() == -2


def test_options_of_the_wrapper() -> None:
    layer = nn.Linear(5 + 4, 3, bias=False).double()
    wrapper = make_wrapper(MECHANISMS["luong"], attention_layer=layer, output_attention=False)
    assert wrapper.output_size == 5
    state = wrapper.initial_state(4, torch.float64)
    output, next_state = wrapper(inputs()[:, 0], state)
    torch.testing.assert_close(output, next_state.cell_state)
    assert next_state.attention.shape == (4, 3)
    added = make_wrapper(MECHANISMS["luong"], attention_layer_size=3, cell_input_fn=lambda x, attention: x + attention)
    assert added.cell.gates.kernel.shape[0] == 3 + 5
    start = torch.randn(4, 5, dtype=torch.float64)
    begun = make_wrapper(MECHANISMS["luong"], initial_cell_state=start)
    assert torch.equal(begun.initial_state(4, torch.float64).cell_state, start)


def test_an_attention_function_of_ones_own() -> None:
    def last(mechanism: Any, output: Tensor, state: Any, layer: Any, read: Any) -> tuple[Tensor, Tensor, Any]:
        alignments, next_state = mechanism(output, state, read)
        return read.values[:, -1], alignments, next_state

    wrapper = make_wrapper(MECHANISMS["luong"], lengths=None, attention_fn=last)
    output, _ = wrapper(inputs()[:, 0], wrapper.initial_state(4, torch.float64))
    assert torch.equal(output, memory()[:, -1])


def test_probability_and_keys_of_ones_own() -> None:
    hard = make_wrapper(lambda m, n: LuongAttention(5, m, n, probability_fn=hardmax))
    _, state = hard(inputs()[:, 0], hard.initial_state(4, torch.float64))
    assert ((state.alignments == 0) | (state.alignments == 1)).all()
    twice = make_wrapper(
        lambda m, n: LuongAttention(5, m, n, custom_key_value_fn=lambda k, v: (k, torch.cat([v, v], -1)))
    )
    assert twice.output_size == 8
    assert twice.initial_state(4, torch.float64).attention.shape == (4, 8)
    soft = make_wrapper(lambda m, n: LuongAttention(5, m, n, score_mask_value=0.0))
    _, state = soft(inputs()[:, 0], soft.initial_state(4, torch.float64))
    assert (state.alignments > 0).all()


def test_pytorchs_own_cell_inside() -> None:
    wrapper = make_wrapper(MECHANISMS["luong"], nn.LSTMCell(3 + 4, 5))
    outputs, state = dynamic_rnn(wrapper, inputs(), [5, 2, 3, 1], backend="portable")
    assert outputs.shape == (4, 5, 4)
    assert state.cell_state[0].shape == (4, 5)


def test_sigmoid_noise_is_for_training() -> None:
    wrapper = make_wrapper(lambda m, n: LuongMonotonicAttention(5, m, n, sigmoid_noise=2.0))
    state = wrapper.initial_state(4, torch.float64)
    noisy = [wrapper(inputs()[:, 0], state)[0] for _ in range(2)]
    assert not torch.equal(*noisy)
    wrapper.eval()
    assert torch.equal(*[wrapper(inputs()[:, 0], state)[0] for _ in range(2)])


def test_the_modes_agree() -> None:
    """Recursive is the definition; parallel is equal but for rounding, hard for probabilities of 0 and 1."""
    torch.manual_seed(3)
    p, previous = torch.rand(5, 7, dtype=torch.float64), torch.rand(5, 7, dtype=torch.float64).softmax(1)
    exact = monotonic_attention(p, previous, "recursive")
    torch.testing.assert_close(monotonic_attention(p, previous, "parallel"), exact)
    decided, spot = (p > 0.5).double(), torch.eye(7, dtype=torch.float64)[[0, 3, 6, 2, 1]]
    torch.testing.assert_close(
        monotonic_attention(decided, spot, "hard"), monotonic_attention(decided, spot, "recursive")
    )
    q = torch.zeros(5, dtype=torch.float64)
    for i in range(7):
        q = (1 - p[:, i - 1] if i else 0) * q + previous[:, i]
        torch.testing.assert_close(exact[:, i], p[:, i] * q)


def test_safe_cumprod_runs_both_ways() -> None:
    x = torch.tensor([[0.5, 0.25, 1.0, 0.5]], dtype=torch.float64)
    torch.testing.assert_close(safe_cumprod(x, 1), x.cumprod(1))
    backwards = torch.tensor([[0.0625, 0.125, 0.5, 0.5]], dtype=torch.float64)
    torch.testing.assert_close(safe_cumprod(x, 1, reverse=True), backwards)
    torch.testing.assert_close(
        safe_cumprod(x, 1, exclusive=True, reverse=True), torch.tensor([[0.125, 0.5, 0.5, 1.0]], dtype=torch.float64)
    )
