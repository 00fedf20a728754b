"""Graphs as text: what a cell becomes, kept so that a change is seen. `pytest --update-golden` writes them anew."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from capture.agreement import row
from capture.test_capture_cells import Attention, ConvLSTM, LayerNormLSTM, Words
from throughtime.capture import StepTrace, trace_step

H = 7


def _rounded() -> StepTrace:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return trace_step(nn.LSTMCell(5, H), row(5), (row(H), row(H)))


CELLS: dict[str, Callable[[], StepTrace]] = {
    "rnn": lambda: trace_step(nn.RNNCell(5, H), row(5), row(H)),
    "gru": lambda: trace_step(nn.GRUCell(5, H), row(5), row(H)),
    "lstm": lambda: trace_step(nn.LSTMCell(5, H), row(5), (row(H), row(H))),
    "lstm_bfloat16": _rounded,
    "layer_norm_lstm": lambda: trace_step(LayerNormLSTM(), row(5), (row(H), row(H))),
    "attention": lambda: trace_step(Attention(), row(5), {"h": row(H), "context": row(6)}, row(4, 6)),
    "conv_lstm": lambda: trace_step(ConvLSTM(), row(3, 5, H), (row(4, 5, H), row(4, 5, H))),
    "words": lambda: trace_step(Words(0), row(2, dtype=torch.long), (row(H), row(H))),
    "dropout": lambda: trace_step(lambda x, h: (F.dropout(x, 0.25) + h, h), row(H, requires_grad=True), row(H)),
}


@pytest.mark.parametrize("name", CELLS)
def test_graph_is_the_golden_one(name: str, golden: Callable[[str, str], None]) -> None:
    golden(f"graphs/{name}", str(CELLS[name]().pair))


def test_the_same_cell_gives_the_same_text() -> None:
    assert str(CELLS["layer_norm_lstm"]().pair) == str(CELLS["layer_norm_lstm"]().pair)
