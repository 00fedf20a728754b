"""Options and an encoding -> a classifier: (embedding,) layers of cells, a linear layer on the final state."""

from typing import Any

import torch
from torch import Tensor, nn

import throughtime
from throughtime.fit.cells import CellMaker, check_dropout
from throughtime.fit.options import ModelOptions
from throughtime.fit.seeds import seed_noise
from throughtime.fit.tasks.classify.encoding import Encoding

__all__ = ["SequenceClassifier", "build_model", "final_features"]


class SequenceClassifier(nn.Module):
    """logits = readout(final state of the last layer); the book's classifier of sequences.

    Means, for each sequence::

        for layer in layers:
            steps, state = dynamic_rnn(layer, dropout(steps), lengths)
        logits = readout(dropout(final state))
    """

    def __init__(
        self, embedding: nn.Embedding | None, layers: list[Any], readout: nn.Linear, options: ModelOptions
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.layers = nn.ModuleList(throughtime.RNN(cell, backend=options.backend) for cell in layers)
        self.dropout = nn.Dropout(options.dropout)
        self.readout = readout

    def forward(self, values: Tensor, lengths: Tensor) -> Tensor:
        """values [B, T, I] or token ids [B, T], lengths [B] -> logits [B, classes]."""
        return self.readout(self.features(self.embed(values), lengths))

    def embed(self, values: Tensor) -> Tensor:
        return values if self.embedding is None else self.embedding(values)

    def features(self, steps: Tensor, lengths: Tensor) -> Tensor:
        """[B, H]: what the last layer knows at the end of each sequence."""
        state: Any = None
        for layer in self.layers:
            steps, state = layer(self.dropout(steps), sequence_length=lengths)
        return self.dropout(final_features(self.layers[-1].cell, steps, state, lengths))


def final_features(cell: Any, outputs: Tensor, state: Any, lengths: Tensor) -> Tensor:
    """The final state: the state itself, its `h` if it is an LSTM's, else the output of the last step."""
    if isinstance(state, Tensor):
        return state.flatten(1)
    if isinstance(cell, nn.LSTMCell):
        return state[0]
    if isinstance(getattr(state, "h", None), Tensor):
        return state.h.flatten(1)
    if outputs.shape[1] == 0:
        return outputs.new_zeros(outputs.shape[0], *outputs.shape[2:])
    last = (lengths - 1).clamp(min=0)
    return outputs[torch.arange(len(lengths), device=outputs.device), last.to(outputs.device)]


def build_model(options: ModelOptions, encoding: Encoding, seed: int) -> SequenceClassifier:
    """The same options and seed give the same first weights."""
    check_dropout(options.dropout)
    seed_noise(seed)
    embedding, width = None, encoding.width
    if encoding.vocabulary is not None:
        embedding, width = nn.Embedding(len(encoding.vocabulary) + 1, options.embed), options.embed
    make_cell = CellMaker.of(options.cell, options.cell_options)
    layers = []
    features = width
    for _ in range(options.layers):
        cell = make_cell(options.units, width)
        layers.append(cell)
        outputs, state = make_cell.try_out(cell, width, options.backend)
        width = outputs.shape[2]
        features = final_features(cell, outputs, state, torch.ones(1, dtype=torch.int64)).shape[1]
    readout = nn.Linear(features, len(encoding.classes))
    nn.init.xavier_uniform_(readout.weight)  # TensorFlow's first weights of a dense layer
    nn.init.zeros_(readout.bias)
    return SequenceClassifier(embedding, layers, readout, options)
