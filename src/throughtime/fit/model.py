"""Options and an encoding -> a classifier: (embedding,) layers of cells, a linear layer on the final state."""

import importlib
import inspect
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import throughtime
from throughtime import cells
from throughtime.fit.data.encoding import Encoding
from throughtime.fit.errors import FitError
from throughtime.fit.options import ModelOptions

__all__ = ["SequenceClassifier", "build_model", "final_features", "seed_noise"]


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
    if options.dropout >= 1:
        raise FitError(f"--dropout is a share that leaves something, below 1, got {options.dropout}.")
    seed_noise(seed)
    embedding, width = None, encoding.width
    if encoding.vocabulary is not None:
        embedding, width = nn.Embedding(len(encoding.vocabulary) + 1, options.embed), options.embed
    make_cell = _find_cell(options.cell)
    layers = []
    features = width
    for _ in range(options.layers):
        cell = _make_cell(make_cell, options, width)
        layers.append(cell)
        width, features = _widths(cell, options, width)
    readout = nn.Linear(features, len(encoding.classes))
    nn.init.xavier_uniform_(readout.weight)  # TensorFlow's first weights of a dense layer
    nn.init.zeros_(readout.bias)
    return SequenceClassifier(embedding, layers, readout, options)


def seed_noise(*key: int) -> None:
    """Every generator that a cell may draw from, put where `key` says."""
    words = np.random.SeedSequence(key).generate_state(2, np.uint64)
    random.seed(int(words[0]))
    np.random.seed(int(words[0] % 2**32))
    seed = int(words[1] >> 1)
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:  # torch.manual_seed would note a stack trace for each device that may yet appear: 1 ms a step
        torch.default_generator.manual_seed(seed)


def _find_cell(name: str) -> Callable[..., Any]:
    if ":" not in name:
        known = [word for word in cells.__all__ if word.endswith("Cell") and word not in ("RNNCell", "MultiRNNCell")]
        if name not in known:
            raise FitError(
                f"--cell: throughtime has no cell {name!r}. It has {', '.join(sorted(known))}; a cell of your own is "
                f"named 'module:Class', and --layers stacks them."
            )
        return getattr(cells, name)
    module_name, _, class_name = name.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name != module_name.partition(".")[0] and error.name != module_name:
            raise
        raise FitError(f"--cell: there is no module {module_name!r}, neither installed nor in {here}.") from error
    made = getattr(module, class_name, None)
    if not callable(made):
        raise FitError(f"--cell: the module {module_name} has no class {class_name!r}.")
    return made


def _make_cell(make_cell: Callable[..., Any], options: ModelOptions, width: int) -> Any:
    given = dict(options.cell_options)
    parameters = inspect.signature(make_cell).parameters
    if "input_size" in parameters:
        given.setdefault("input_size", width)
    names = [name for name in parameters if name in ("num_units", "hidden_size", "units")]
    arguments = () if names else (options.units,)
    if names:
        given[names[0]] = options.units
    try:
        inspect.signature(make_cell).bind(*arguments, **given)
    except TypeError as error:
        raise FitError(f"--cell_options: {options.cell} takes {inspect.signature(make_cell)}: {error}.") from error
    try:
        return make_cell(*arguments, **given)
    except (TypeError, ValueError) as error:
        raise FitError(f"--cell: {options.cell} refuses its arguments: {error}") from error


def _widths(cell: Any, options: ModelOptions, width: int) -> tuple[int, int]:
    """One step on zeros: lets a cell make its parameters, and tells the widths of its outputs and of its state."""
    with torch.no_grad():
        outputs, state = throughtime.dynamic_rnn(cell, torch.zeros(1, 1, width), backend=options.backend)
    if not isinstance(outputs, Tensor) or outputs.dim() != 3:
        raise FitError(f"--cell: {options.cell} must return one tensor [batch, width] at each step.")
    return outputs.shape[2], final_features(cell, outputs, state, torch.ones(1, dtype=torch.int64)).shape[1]
