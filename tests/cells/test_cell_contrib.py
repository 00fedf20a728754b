"""Contrib cells: what TensorFlow's golden cases leave open (options, initial values, errors), copies and tracing."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cells.symbolic import trace_for_any_rows
from throughtime._nested import leaves, map_leaves
from throughtime.cells import GRUCell, LSTMCell, RNNCell
from throughtime.cells.contrib import (
    CFNCell,
    ConvLSTMCell,
    CoupledInputForgetGateLSTMCell,
    EmbeddingWrapper,
    GLSTMCell,
    GRUBlockCellV2,
    HighwayWrapper,
    IndRNNCell,
    IndyGRUCell,
    IndyLSTMCell,
    InputProjectionWrapper,
    IntersectionRNNCell,
    LayerNormBasicLSTMCell,
    LayerNormLSTMCell,
    LSTMBlockCell,
    MinimalRNNCell,
    NASCell,
    OutputProjectionWrapper,
    PhasedLSTMCell,
    SRUCell,
    UGRNNCell,
    WeightNormLSTMCell,
)


def features(rows: int) -> torch.Tensor:
    return torch.randn(rows, 4)


def timed(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    return 10 * torch.rand(rows, 1), features(rows)


MAKERS = {
    "ugrnn": (lambda: UGRNNCell(4), features),
    "intersection": (lambda: IntersectionRNNCell(3, num_in_proj=3), features),
    "minimal": (lambda: MinimalRNNCell(3), features),
    "cfn": (lambda: CFNCell(3), features),
    "nas": (lambda: NASCell(3, num_proj=2, use_bias=True), features),
    "indrnn": (lambda: IndRNNCell(3), features),
    "indygru": (lambda: IndyGRUCell(3), features),
    "indylstm": (lambda: IndyLSTMCell(3), features),
    "sru": (lambda: SRUCell(3), features),
    "layer_norm_basic": (lambda: LayerNormBasicLSTMCell(3), features),
    "layer_norm": (lambda: LayerNormLSTMCell(3, True, 0.5, layer_norm=True), features),
    "weight_norm": (lambda: WeightNormLSTMCell(3, True, 0.5), features),
    "coupled": (lambda: CoupledInputForgetGateLSTMCell(3, True, None, 2, 0.1), features),
    "coupled_one_tensor": (lambda: CoupledInputForgetGateLSTMCell(3, state_is_tuple=False), features),
    "glstm": (lambda: GLSTMCell(6, None, 4, 2), features),
    "phased": (lambda: PhasedLSTMCell(3, use_peepholes=True), timed),
    "conv": (lambda: ConvLSTMCell(2, (5, 4, 2), 3, (3, 2)), lambda rows: torch.randn(rows, 5, 4, 2)),
    "highway": (lambda: HighwayWrapper(GRUCell(4), couple_carry_transform_gates=False), features),
    "input_projection": (lambda: InputProjectionWrapper(LSTMCell(3), 2, "relu"), features),
    "output_projection": (lambda: OutputProjectionWrapper(LSTMCell(3), 2, "tanh"), features),
    "embedding": (lambda: EmbeddingWrapper(GRUCell(3), 7, 2), lambda rows: torch.randint(7, (rows,))),
    "lstm_block": (lambda: LSTMBlockCell(3, 0.5, 0.3, True), features),
    "gru_block": (lambda: GRUBlockCellV2(3), features),
}
# PyTorch's convolution chooses its algorithm by the batch size, also on fake tensors.
TRACED = [name for name in MAKERS if name != "conv"]
CELLS = pytest.mark.parametrize(("make", "inputs"), MAKERS.values(), ids=MAKERS.keys())


def step(cell: RNNCell, x) -> list[torch.Tensor]:
    return leaves(cell(x, map_leaves(torch.ones_like, cell.initial_state(len(leaves(x)[0])))))


@CELLS
def test_copies_and_saved_states_are_the_same_cell(make, inputs) -> None:
    cell, x = make(), inputs(5)
    unsized = [copy.deepcopy(cell), pickle.loads(pickle.dumps(cell)), make()]
    expected = step(cell, x)
    for other in unsized:
        other.load_state_dict(cell.state_dict())
    for other in (*unsized, copy.deepcopy(cell), pickle.loads(pickle.dumps(cell))):
        assert all(torch.equal(a, b) for a, b in zip(step(other, x), expected))


@CELLS
def test_outputs_and_states_have_the_declared_sizes_and_every_parameter_a_gradient(make, inputs) -> None:
    cell, x = make(), inputs(5)
    output, state = cell(x, map_leaves(torch.ones_like, cell.initial_state(5)))
    size = cell.output_size
    assert output.shape == (5, *(size if isinstance(size, torch.Size) else [size]))
    assert [leaf.shape for leaf in leaves(state)] == [leaf.shape for leaf in leaves(cell.initial_state(5))]
    sum(leaf.square().sum() for leaf in (output, *leaves(state))).backward()
    assert [name for name, weight in cell.named_parameters() if weight.grad is None] == []


@CELLS
def test_resetting_parameters_keeps_the_cell_usable(make, inputs) -> None:
    cell, x = make(), inputs(5)
    before = step(cell, x)
    for module in cell.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert not all(torch.equal(a, b) for a, b in zip(before, step(cell, x)))
    assert all(leaf.isfinite().all() for leaf in step(cell, x))


@pytest.mark.parametrize(("make", "inputs"), [MAKERS[name] for name in TRACED], ids=TRACED)
def test_traces_with_a_symbolic_batch(make, inputs) -> None:
    cell = make()
    step(cell, inputs(2))
    graph = trace_for_any_rows(cell, [inputs(7), cell.initial_state(7)])
    other = [inputs(5), cell.initial_state(5)]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(graph(*leaves(other)), leaves(cell(*other))))


def test_initial_values() -> None:
    assert torch.equal(CFNCell(3, input_size=4).bias, torch.ones(6))
    assert torch.equal(IndyGRUCell(3, input_size=4).gates.bias, torch.ones(6))
    wide = IndRNNCell(2000, input_size=4).kernel_u
    assert 0.98 < wide.abs().max() <= 1
    assert torch.equal(LayerNormBasicLSTMCell(3, norm_gain=2.0, norm_shift=0.5).forget.gamma, torch.full((3,), 2.0))
    highway = HighwayWrapper(GRUCell(4), False, 3.0, input_size=4)
    assert highway.carry_b.tolist() == [3.0] * 4
    assert highway.transform_b.tolist() == [-3.0] * 4
    embedding = EmbeddingWrapper(GRUCell(3), 200, 50).embedding
    assert embedding.var().item() == pytest.approx(1.0, abs=0.05)
    phased = PhasedLSTMCell(5000, period_init_min=2.0, period_init_max=8.0, ratio_on=0.2)
    assert 2.0 <= phased.period.min() < 2.1
    assert 7.9 < phased.period.max() <= 8.0
    assert bool((phased.phase <= phased.period).all())
    assert phased.ratio_on.unique().tolist() == [pytest.approx(0.2)]
    assert not PhasedLSTMCell(3, trainable_ratio_on=False).ratio_on.requires_grad


def test_conv_skip_connection_is_in_the_output_only() -> None:
    plain = ConvLSTMCell(1, (6, 2), 3, (3,))
    skipping = ConvLSTMCell(1, (6, 2), 3, (3,), skip_connection=True)
    skipping.load_state_dict(plain.state_dict())
    x, state = torch.randn(2, 6, 2), plain.initial_state(2)
    output, after = skipping(x, state)
    expected, expected_state = plain(x, state)
    assert torch.equal(output, torch.cat([expected, x], -1))
    assert torch.equal(after.h, expected_state.h)
    assert skipping.output_size == torch.Size([6, 5])


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5])
def test_conv_pads_with_the_odd_zero_at_the_end(width: int) -> None:
    cell, x = ConvLSTMCell(1, (6, 2), 3, (width,), use_bias=False), torch.randn(2, 6, 2)
    _, state = cell(x, cell.initial_state(2))
    kernel = cell.kernel[:, :2].permute(2, 1, 0)  # the part of x, as PyTorch has it
    i, j, _, _ = F.conv1d(x.mT, kernel, padding="same").mT.chunk(4, -1)
    assert torch.allclose(state.c, i.sigmoid() * j.tanh(), atol=1e-6)


def test_layer_norm_dropout_is_on_what_is_written_and_in_training_only() -> None:
    cell = LayerNormBasicLSTMCell(400, layer_norm=False, dropout_keep_prob=0.5, input_size=4)
    nn.init.zeros_(cell.kernel)
    with torch.no_grad():
        cell.bias.copy_(torch.tensor([50.0, 50.0, -50.0, 50.0]).repeat_interleave(400))  # i, j, f, o
    x, state = features(5), cell.initial_state(5)
    torch.manual_seed(0)
    _, (c, _) = cell(x, state)
    assert c.unique().tolist() == [0.0, 2.0]
    assert (c == 0).float().mean().item() == pytest.approx(0.5, abs=0.06)
    assert cell.eval()(x, state)[1].c.unique().tolist() == [1.0]


def test_a_phased_unit_opens_and_closes() -> None:
    cell = PhasedLSTMCell(1, leak=0.0, ratio_on=0.5, input_size=4)
    with torch.no_grad():
        cell.period.fill_(8.0)
        cell.phase.fill_(1.0)
    times = torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0], [7.0], [10.0], [-6.0]])
    expected = torch.tensor([[0.0], [0.5], [1.0], [0.5], [0.0], [0.0], [0.5], [0.5]])
    assert torch.allclose(cell._openness(times), expected)


class TestErrors:
    def test_intersection(self) -> None:
        with pytest.raises(ValueError, match="num_in_proj must be num_units, 3; got 4"):
            IntersectionRNNCell(3, num_in_proj=4)
        with pytest.raises(ValueError, match="as wide as the state, 3; got 4"):
            IntersectionRNNCell(3)(features(2), torch.zeros(2, 3))

    def test_groups(self) -> None:
        with pytest.raises(ValueError, match="num_units must be divisible by number_of_groups, 4; got 6"):
            GLSTMCell(6, number_of_groups=4)
        with pytest.raises(ValueError, match="num_proj must be divisible"):
            GLSTMCell(6, num_proj=3, number_of_groups=2)
        with pytest.raises(ValueError, match="input_size must be divisible"):
            GLSTMCell(6, number_of_groups=2, input_size=3)
        cell = GLSTMCell(6, number_of_groups=2)
        with pytest.raises(ValueError, match="the input size must be divisible by number_of_groups, 2; got 3"):
            cell(torch.randn(2, 3), cell.initial_state(2))

    def test_conv(self) -> None:
        for bad in ((4, (1, 1, 1, 1, 1), 2, (1,) * 4), (2, (5, 2), 2, (3, 3)), (1, (5, 2), 2, (3, 3))):
            with pytest.raises(ValueError, match="conv_ndims is 1, 2 or 3"):
                ConvLSTMCell(*bad)

    def test_phased(self) -> None:
        cell = PhasedLSTMCell(3)
        with pytest.raises(TypeError, match=r"a pair \(time"):
            cell(features(2), cell.initial_state(2))

    def test_highway(self) -> None:
        cell = HighwayWrapper(GRUCell(3))
        with pytest.raises(ValueError, match="as wide as its input, 4; got 3"):
            cell(features(2), cell.initial_state(2))

    def test_embedding(self) -> None:
        cell = EmbeddingWrapper(GRUCell(3), 5, 2)
        with pytest.raises(ValueError, match="inputs are token ids, whole numbers"):
            cell(features(2), cell.initial_state(2))
