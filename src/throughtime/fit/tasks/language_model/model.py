"""Options and a vocabulary -> a language model: a table of tokens, layers of cells, a linear layer."""

from typing import Any

from torch import Tensor, nn

import throughtime
from throughtime.fit.cells import CellMaker, check_dropout
from throughtime.fit.options import LanguageModelOptions
from throughtime.fit.seeds import seed_noise
from throughtime.fit.tasks.language_model.text import TextEncoding

__all__ = ["LanguageModel", "build_language_model"]


class LanguageModel(nn.Module):
    """logits[t] = readout(cell(embed(token[t]), state)): of the token after each, given all before it."""

    def __init__(self, table: nn.Embedding, cell: Any, readout: nn.Linear, options: LanguageModelOptions) -> None:
        super().__init__()
        self.table = table
        self.rnn = throughtime.RNN(cell, backend=options.backend)
        self.readout = readout
        self.dropout = nn.Dropout(options.dropout)

    def forward(self, ids: Tensor, lengths: Tensor, state: Any) -> tuple[Tensor, Any]:
        """ids [B, W] -> logits [B, W, V], and the state after each row's last step. state: None to begin."""
        outputs, state = self.rnn(self.dropout(self.table(ids)), state, sequence_length=lengths)
        return self.readout(self.dropout(outputs)), state

    def start(self, rows: int) -> Any:
        """The state before the first step."""
        return self.rnn(self.table.weight.new_zeros(rows, 0, self.table.embedding_dim))[1]


def build_language_model(options: LanguageModelOptions, encoding: TextEncoding, seed: int) -> LanguageModel:
    """The same options and seed give the same first weights."""
    check_dropout(options.dropout)
    seed_noise(seed)
    size = len(encoding.vocabulary)
    table = nn.Embedding(size, options.embed)
    make_cell = CellMaker.of(options.cell, options.cell_options)
    cell, width = make_cell.stack(options.units, options.embed, options.layers, options.dropout, options.backend)
    return LanguageModel(table, cell, nn.Linear(width, size), options)
