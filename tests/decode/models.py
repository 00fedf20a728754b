"""Small random models, and what a sequence of tokens is worth to them by teacher forcing."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from throughtime import GRUCell, LSTMCell, MultiRNNCell, dynamic_rnn
from throughtime._nested import map_leaves
from throughtime.decode import AttentionWrapper, BahdanauAttention, Greedy, LuongAttention, generate
from throughtime.decode.history import plain_output

START, END = 1, 0
KINDS = ["gru", "lstm", "stack", "luong", "bahdanau"]


@dataclass
class Model:
    """Everything that generation is given but the strategy."""

    cell: nn.Module
    embed: nn.Embedding
    layer: nn.Linear
    rows: int
    state: Any = None

    def given(self) -> dict[str, Any]:
        return {"embed": self.embed, "output_layer": self.layer, "initial_state": self.state}

    @property
    def starts(self) -> Tensor:
        return torch.full((self.rows,), START)

    def log_probs(self, ids: Tensor, lengths: Tensor, prompt: Tensor | None = None) -> Tensor:
        """[B]: log p of `ids` [B, T] after the start token, or after a prompt [B, P], by `dynamic_rnn`."""
        fed = self.starts[:, None] if prompt is None else prompt
        inputs = torch.cat([fed, ids[:, :-1]], 1)
        before = fed.shape[1] - 1
        outputs, _ = dynamic_rnn(self.cell, self.embed(inputs), lengths + before, self.state, backend="portable")
        each = self.layer(plain_output(outputs))[:, before:].log_softmax(-1).gather(2, ids[:, :, None])[:, :, 0]
        real = torch.arange(ids.shape[1]) < lengths[:, None]
        return torch.where(real, each, 0).sum(1)


def make_model(
    kind: str = "gru",
    rows: int = 4,
    vocabulary: int = 7,
    seed: int = 0,
    sharpness: float = 3.0,
    dtype: torch.dtype = torch.float64,
    end_bias: float = 0.0,
) -> Model:
    """float64, so that equal scores are equal to 1e-12; sharp logits, so that no two tokens are nearly equal."""
    torch.manual_seed(seed)
    cell = make_cell(kind, rows)
    embed, layer = nn.Embedding(vocabulary, 3), nn.Linear(output_size(kind), vocabulary)
    modules = nn.ModuleList([cell, embed, layer]).to(dtype)
    state = make_state(cell, rows, dtype)
    cell(torch.zeros(rows, 3, dtype=dtype), state)
    for weight in modules.parameters():
        nn.init.normal_(weight, std=0.7)
    with torch.no_grad():
        layer.weight *= sharpness
        layer.bias[END] += end_bias
    return Model(cell, embed, layer, rows, state)


def make_varied(kind: str, rows: int, strategy: Any = Greedy()) -> Model:  # noqa: B008
    """The first model whose rows end at three different steps at least, within ten."""
    return make_model(kind, rows, seed=_varied_seed(kind, rows, strategy), end_bias=1.5)


@lru_cache
def _varied_seed(kind: str, rows: int, strategy: Any) -> int:
    for seed in range(60):
        model = make_model(kind, rows, seed=seed, end_bias=1.5)
        got = generate(
            model.cell, model.starts, END, strategy=strategy, max_steps=10, backend="portable", **model.given()
        )
        if len(set(got.lengths.tolist())) > 2:
            return seed
    raise AssertionError(f"no {kind} model ends at different steps")


def make_cell(kind: str, rows: int) -> nn.Module:
    if kind == "gru":
        return GRUCell(6)
    if kind == "lstm":
        return LSTMCell(5, use_peepholes=True)
    if kind == "stack":
        return MultiRNNCell([GRUCell(4), LSTMCell(5)])
    memory = torch.randn(rows, 5, 4, dtype=torch.float64)
    lengths = [5, 2, 4, 1, 3, 5, 2, 1][:rows]
    if kind == "luong":
        return AttentionWrapper(LSTMCell(6), LuongAttention(6, memory, lengths), attention_layer_size=5)
    assert kind == "bahdanau"
    return AttentionWrapper(GRUCell(5), BahdanauAttention(3, memory, lengths, normalize=True))


def output_size(kind: str) -> int:
    return {"gru": 6, "lstm": 5, "stack": 5, "luong": 5, "bahdanau": 4}[kind]


def make_state(cell: nn.Module, rows: int, dtype: torch.dtype) -> Any:
    """Rows that start from different states."""

    def fill(value: Any) -> Any:
        if isinstance(value, Tensor):
            return torch.randn_like(value)
        parts = [fill(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)

    state = cell.initial_state(rows, dtype)
    if isinstance(cell, AttentionWrapper):
        return state._replace(cell_state=fill(state.cell_state))
    return fill(state)


def alone(model: Model, row: int) -> Model:
    """The same model with one row of the batch."""
    if isinstance(model.cell, AttentionWrapper):
        mechanism = model.cell.attention_mechanism
        lengths = mechanism.memory_mask.sum(1)[row : row + 1]
        mechanism.set_memory(mechanism.memory[row : row + 1], lengths)
    return Model(model.cell, model.embed, model.layer, 1, map_leaves(lambda leaf: leaf[row : row + 1], model.state))


class Counting(nn.Module):
    """A cell that notes how many rows each step has."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell, self.rows = cell, []

    def initial_state(self, *args: Any) -> Any:
        return self.cell.initial_state(*args)

    def row_consts(self, *args: Any) -> Any:
        return self.cell.row_consts(*args)

    def forward(self, inputs: Tensor, *rest: Any) -> Any:
        self.rows.append(len(inputs))
        return self.cell(inputs, *rest)
