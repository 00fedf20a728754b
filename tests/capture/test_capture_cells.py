"""Whole cells: PyTorch's, written by hand, ours. Graph and gradient agree with the cell for every batch size."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

from capture.agreement import assert_agrees, operators, row
from conformance.definition import zeros
from conformance.descriptors import DESCRIPTORS, Descriptor
from throughtime.capture import trace_step
from throughtime.cells import contrib

H = 7  # the batch size of one comparison, too: rows are not known by their number


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_pytorchs_lstm(dtype: torch.dtype, requires_grad: bool) -> None:
    x = row(5, dtype=dtype, requires_grad=requires_grad)
    trace = assert_agrees(nn.LSTMCell(5, H, dtype=dtype), x, (row(H, dtype=dtype), row(H, dtype=dtype)))
    assert (trace.pair.d_xs[0] is not None) == requires_grad
    assert trace.pair.forward.ys == trace.pair.forward.next_carry[:1]


@pytest.mark.parametrize(
    "cell", [nn.GRUCell(5, H), nn.RNNCell(5, H), nn.RNNCell(5, H, nonlinearity="relu"), nn.GRUCell(5, H, bias=False)]
)
def test_pytorchs_own(cell: nn.Module) -> None:
    assert_agrees(cell, row(5), row(H))


@pytest.mark.parametrize("descriptor", DESCRIPTORS, ids=lambda d: d.name)
def test_cells_of_the_conformance_table(descriptor: Descriptor) -> None:
    cell = descriptor.make(torch.float32).cell
    declare = getattr(cell, "row_consts", None)
    row_consts = declare(1, torch.float32, torch.device("cpu")) if declare else ()
    state = descriptor.make_start(cell, 1, torch.float32)
    assert_agrees(cell, zeros(descriptor.inputs, (1,), torch.float32), state, row_consts, rows=(1, 7))


CONTRIB: dict[str, Callable[[], tuple[Any, Any]]] = {
    name: lambda name=name: (getattr(contrib, name)(6), row(5))
    for name in (
        *("CFNCell", "CoupledInputForgetGateLSTMCell", "GRUBlockCellV2", "IndRNNCell", "IndyGRUCell", "IndyLSTMCell"),
        *("LSTMBlockCell", "LayerNormBasicLSTMCell", "LayerNormLSTMCell", "MinimalRNNCell", "NASCell", "SRUCell"),
        *("UGRNNCell", "WeightNormLSTMCell"),
    )
} | {
    "IntersectionRNNCell": lambda: (contrib.IntersectionRNNCell(6), row(6)),
    "GLSTMCell": lambda: (contrib.GLSTMCell(6, number_of_groups=2), row(4)),
    "PhasedLSTMCell": lambda: (contrib.PhasedLSTMCell(6), (row(1), row(5))),
    "EmbeddingWrapper": lambda: (contrib.EmbeddingWrapper(nn.GRUCell(5, 6), 11, 5), row(dtype=torch.long)),
    "HighwayWrapper": lambda: (contrib.HighwayWrapper(contrib.UGRNNCell(6)), row(6)),
    "Conv2DLSTMCell": lambda: (contrib.Conv2DLSTMCell([4, 5, 2], 3, [3, 3]), row(4, 5, 2)),
}


@pytest.mark.parametrize("name", CONTRIB)
def test_contrib_cells(name: str) -> None:
    cell, xs = CONTRIB[name]()
    assert_agrees(cell, xs, cell.initial_state(1, torch.float32, torch.device("cpu")), rows=(1, 7))


class LayerNormLSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(5 + H, 4 * H, bias=False)
        self.norms = nn.ModuleList(nn.LayerNorm(H) for _ in range(5))

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        h, c = state
        i, j, f, o = (norm(g) for norm, g in zip(self.norms, self.map(torch.cat([x, h], 1)).split(H, 1)))
        c = torch.sigmoid(f + 1) * c + torch.sigmoid(i) * torch.tanh(j)
        h = torch.sigmoid(o) * torch.tanh(self.norms[4](c))
        return h, (h, c)


def test_layer_norm_lstm() -> None:
    trace = assert_agrees(LayerNormLSTM(), row(5), (row(H), row(H)))
    gates = [n for n in trace.pair.backward_nodes if n.op == "cat" and n.shape == ("B", 4 * H)]
    assert len(gates) == 1, "the gradients of the four gates are joined at once"


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.query, self.key = nn.GRUCell(5 + 6, H), nn.Linear(H, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor, state: dict[str, Tensor], memory: Tensor) -> tuple[Any, dict[str, Tensor]]:
        h = self.cell(torch.cat([x, state["context"]], -1), state["h"])
        scores = torch.einsum("bd,bsd->bs", self.query(h), self.key(memory))
        weights = F.softmax(scores, -1)
        context = (weights[:, :, None] * memory).sum(1)
        return {"h": h, "weights": weights}, {"h": h, "context": context}


@pytest.mark.parametrize("requires_grad", [False, True])
def test_attention_over_a_row_const(requires_grad: bool) -> None:
    memory = row(4, 6, requires_grad=requires_grad)
    trace = assert_agrees(Attention(), row(5), {"h": row(H), "context": row(6)}, memory)
    assert [i.name for i in trace.pair.forward.of_kind("carry")] == ["state_h", "state_context"]
    assert (trace.pair.d_row_consts[0] is not None) == requires_grad


class MultiHead(nn.Module):
    def __init__(self, batch_first: bool, need_weights: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first)
        self.cell, self.need_weights = nn.GRUCell(5, 8), need_weights

    def forward(self, x: Tensor, h: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        h = self.cell(x, h)
        if self.attention.batch_first:
            return self.attention(h[:, None], memory, memory, need_weights=self.need_weights)[0][:, 0], h
        turned = memory.transpose(0, 1)
        return self.attention(h[None], turned, turned, need_weights=self.need_weights)[0][0], h


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("need_weights", [False, True])
def test_multi_head_attention(batch_first: bool, need_weights: bool) -> None:
    """PyTorch merges rows with heads, and moves them behind time: the graph has them first and whole."""
    assert_agrees(MultiHead(batch_first, need_weights), row(5), row(8), row(4, 8, requires_grad=True))


class Words(nn.Module):
    def __init__(self, padding: int | None) -> None:
        super().__init__()
        self.table, self.cell = nn.Embedding(11, 5, padding_idx=padding), nn.LSTMCell(10, H)
        self.read = nn.Linear(H, 11)

    def forward(self, ids: Tensor, state: Any) -> tuple[Tensor, Any]:
        state = self.cell(self.table(ids).flatten(1), state)
        return F.log_softmax(self.read(state[0]), -1), state


@pytest.mark.parametrize("padding", [None, 0])
def test_token_ids(padding: int | None) -> None:
    trace = assert_agrees(Words(padding), row(2, dtype=torch.long), (row(H), row(H)))
    assert {"embedding", "embedding_dense_backward"} <= operators(trace)


def test_a_table_indexed_by_hand() -> None:
    table = torch.randn(3, 2, 4, requires_grad=True)
    cell = nn.GRUCell(8, H)
    trace = assert_agrees(lambda ids, h: cell(table[ids].flatten(1), h), row(dtype=torch.long), row(H))
    assert trace.pair.d_consts[0] is not None


class ConvLSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Conv2d(3 + 4, 16, 3, padding=1)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        h, c = state
        i, f, g, o = self.map(torch.cat([x, h], 1)).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        return h, (h, c)


def test_convolution() -> None:
    assert_agrees(ConvLSTM(), row(3, 5, H, requires_grad=True), (row(4, 5, H), row(4, 5, H)))


def test_convolutions_of_other_kinds() -> None:
    back, apart = nn.ConvTranspose1d(4, 4, 3, padding=1), nn.Conv1d(4, 4, 3, padding=1, groups=2, bias=False)
    assert_agrees(lambda x, h: (back(h), torch.tanh(apart(x + h))), row(4, H), row(4, H))


class BlockDiagonal(nn.Module):
    """A recurrent matrix of its own for each head, as in sLSTM."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.recurrent, self.map = nn.Parameter(torch.randn(heads, 3, 6) * 0.3), nn.Linear(5, 6 * heads)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        old = h.view(-1, self.heads, 3)
        f, g = (self.map(x).view(-1, self.heads, 6) + torch.einsum("bni,nij->bnj", old, self.recurrent)).chunk(2, -1)
        new = (torch.sigmoid(f) * old + torch.tanh(g)).flatten(1)
        return new, new


def test_block_diagonal_weights() -> None:
    few = assert_agrees(BlockDiagonal(2), row(5), row(6))
    many = assert_agrees(BlockDiagonal(20), row(5), row(60))
    assert "bmm" not in operators(few)
    assert "bmm" in operators(many)


@pytest.mark.parametrize("x", [row(5), row(2, 5), row(2, 3, 5)], ids=["one", "two", "three axes"])
def test_a_linear_map_of_several_vectors_a_row(x: Tensor) -> None:
    """PyTorch merges rows with the other axes for the product; the graph has a product of [B, ..., K]."""
    linear = nn.Linear(5, 4)
    trace = assert_agrees(lambda x, h: ((y := torch.tanh(linear(x) + h)), y), x, row(*x.shape[1:-1], 4))
    products = [n for n in trace.pair.forward.nodes if n.op == "mm"]
    vectors = x.shape[1:-1].numel()
    assert [n.shape for n in products] == [("B", 4) if vectors == 1 else ("B", vectors, 4)]


def test_rows_last() -> None:
    w, u = torch.randn(H, 5, requires_grad=True), torch.randn(H, H, requires_grad=True)
    trace = assert_agrees(lambda x, h: ((y := torch.tanh(w @ x.T + u @ h.T).T), y), row(5), row(H))
    assert all(n.shape[0] == "B" for n in trace.pair.forward.nodes if "B" in n.shape)


def test_shared_weights() -> None:
    shared = nn.Linear(H, H)
    other = nn.Linear(H, H)
    other.weight = shared.weight
    trace = assert_agrees(lambda x, h: ((y := torch.tanh(shared(x) + shared(h) + other(h))), y), row(H), row(H))
    assert len(trace.consts) == 3


class Steps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(x, slope)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor, Tensor]:
        x, slope = ctx.saved_tensors
        return d_y * slope / (1 + x.abs()) ** 2, (d_y * x).sum(0)


def test_custom_gradients_are_kept() -> None:
    slope = torch.rand(H, requires_grad=True)
    trace = assert_agrees(lambda x, h: ((y := 0.9 * h + Steps.apply(x + h, slope)), y), row(H), row(H))
    assert trace.pair.d_consts[0] is not None


@pytest.mark.parametrize("kind", ["weight_norm", "skew", "householder", "cayley", "matrix_exp", "spectral"])
def test_parametrized_weights(kind: str) -> None:
    cell = nn.RNNCell(5, H)
    if kind == "weight_norm":
        parametrizations.weight_norm(cell, "weight_hh")
    elif kind == "spectral":
        parametrizations.spectral_norm(cell, "weight_hh").eval()
    elif kind == "skew":
        parametrize.register_parametrization(cell, "weight_hh", _Skew())
    else:
        parametrizations.orthogonal(cell, "weight_hh", orthogonal_map=kind)
    trace = assert_agrees(cell, row(5), row(H), scale=5)
    assert any("parametrizations.weight_hh" in const.path for const in trace.consts)


class _Skew(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        upper = w.triu(1)
        return upper - upper.T


@pytest.mark.parametrize(
    "wrap", [functools.partial(torch.compile, backend="eager"), nn.Sequential], ids=["compiled", "wrapped"]
)
def test_cells_inside_other_modules(wrap: Callable[[nn.Module], Any]) -> None:
    inner = wrap(nn.Linear(5, H))
    assert_agrees(lambda x, h: ((y := torch.tanh(inner(x) + h)), y), row(5), row(H), rows=(2,))


def test_checkpointed_and_vectorised_steps() -> None:
    w = torch.randn(H, H, requires_grad=True)

    def step(x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(h @ w + x)

    again = functools.partial(torch.utils.checkpoint.checkpoint, step, use_reentrant=False)
    for run in (again, torch.vmap(step)):
        assert_agrees(lambda x, h, run=run: ((y := run(x, h)), y), row(H), row(H), rows=(2,))


def test_whole_numbers_in_state_and_inputs() -> None:
    def count(x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        n, h = state
        return h, (n + x, torch.where((n % 2 == 0)[:, None], h * 0.5, h + 1))

    trace = assert_agrees(count, row(dtype=torch.long), (row(dtype=torch.long), row(H)))
    assert [name is None for name in trace.pair.d_carry] == [True, False]
    assert [i.name for i in trace.pair.backward_inputs] == ["d_y", "d_next_state_1"]


def test_a_state_that_is_left_alone() -> None:
    trace = assert_agrees(lambda x, h: (x * 2, h), row(H), row(H))
    assert trace.pair.forward.next_carry == ("state",)
    assert trace.pair.d_carry == ("d_next_state",)


def test_gradients_are_traced_whatever_the_mode_outside() -> None:
    expected = str(trace_step(nn.GRUCell(5, H), row(5), row(H)).pair)
    with torch.no_grad():
        assert str(trace_step(nn.GRUCell(5, H), row(5), row(H)).pair) == expected
    with torch.inference_mode():
        assert str(trace_step(nn.GRUCell(5, H), row(5), row(H)).pair) == expected


def test_autocast_rounds_the_operands_of_products_and_nothing_else() -> None:
    cell = nn.LSTMCell(5, H)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        trace = trace_step(cell, row(5), (row(H), row(H)))
    for node in (*trace.pair.forward.nodes, *trace.pair.backward_nodes):
        values = {n.name: n for n in (*trace.pair.forward.nodes, *trace.pair.backward_nodes)}
        if node.op == "mm":
            assert node.dtype == torch.float32
            assert all(values[name].dtype == torch.bfloat16 for name in node.operands)
        else:
            assert node.dtype == torch.float32 or node.op in ("to_dtype", "permute")
