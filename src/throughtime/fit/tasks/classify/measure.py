"""A model and sequences -> its state after each step, what it would say there, and the gradient that arrives there.

The unroller is asked for one step at a time, so that every state in between is at hand; the meaning is the same.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import throughtime
from throughtime.fit.data.batches import Batch
from throughtime.fit.nested import map_tensors, tensors_in
from throughtime.fit.tasks.classify.model import SequenceClassifier, final_features

__all__ = ["Traces", "trace_states"]


@dataclass(frozen=True)
class Traces:
    """Arrays [B, T, ...]; past a row's length they hold nothing of meaning.

    units: the last layer's state [B, T, H]. beliefs: the probabilities [B, T, classes] if the sequence ended there.
    state_gradients: the norm, over all layers, of the loss's gradient with respect to the state after each step [B, T].
    input_gradients: and with respect to the inputs of each step [B, T].
    """

    units: np.ndarray
    beliefs: np.ndarray
    state_gradients: np.ndarray
    input_gradients: np.ndarray


def trace_states(model: SequenceClassifier, batch: Batch) -> Traces:
    model = model.eval()
    assert batch.labels is not None
    with torch.enable_grad():
        inputs = model.embed(batch.values).detach().requires_grad_()
        steps, states = inputs, []
        for layer in model.layers:
            steps, seen = _unroll(layer.cell, steps, batch.lengths)
            states.append(seen)
        cell, ones = model.layers[-1].cell, torch.ones_like(batch.lengths)
        features = [final_features(cell, steps[:, t : t + 1], state, ones) for t, state in enumerate(states[-1])]
        logits = torch.stack([model.readout(h) for h in features], 1)
        loss = cross_entropy(logits[:, -1], batch.labels, reduction="sum")
        leaves = [[*tensors_in(at_step)] for at_step in zip(*states)]
        wanted = [inputs, *(leaf for step in leaves for leaf in step)]
        gradients = iter(torch.autograd.grad(loss, wanted, allow_unused=True))
    input_gradient = next(gradients)
    norms = [_norm([next(gradients) for _ in step], len(batch.lengths)) for step in leaves]
    return Traces(
        torch.stack(features, 1).detach().numpy(),
        logits.detach().softmax(-1).numpy(),
        torch.stack(norms, 1).numpy(),
        input_gradient.flatten(2).norm(dim=2).numpy(),
    )


def _unroll(cell: Any, steps: Tensor, lengths: Tensor) -> tuple[Tensor, list[Any]]:
    """The outputs [B, T, ...], and the state after each step; a row that has ended keeps its last."""
    _, state = throughtime.dynamic_rnn(cell, steps, torch.zeros_like(lengths), backend="portable")
    outputs, states = [], []
    for t in range(steps.shape[1]):
        running = (lengths > t).to(lengths.dtype)
        output, state = throughtime.dynamic_rnn(cell, steps[:, t : t + 1], running, state, backend="portable")
        state = map_tensors(
            torch.clone, state
        )  # a point of its own in the graph: c does not count again through the same step's h
        outputs.append(output)
        states.append(state)
    return torch.cat(outputs, 1), states


def _norm(gradients: list[Tensor | None], rows: int) -> Tensor:
    """[B]: the norm over all tensors of a step; one that the loss does not depend on counts as zero."""
    squares = [g.flatten(1).square().sum(1) for g in gradients if g is not None]
    return torch.stack([torch.zeros(rows), *squares]).sum(0).sqrt()
