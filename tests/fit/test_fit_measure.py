"""What the report shows: the same numbers as a plain loop over the cell."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from throughtime.fit.data.batches import Batch
from throughtime.fit.options import ModelOptions
from throughtime.fit.tasks.classify.encoding import Encoding
from throughtime.fit.tasks.classify.measure import trace_states
from throughtime.fit.tasks.classify.model import SequenceClassifier, build_model

ENCODING = Encoding(("a", "b", "c"), False, 5, None, False)


def make(cell: str, layers: int = 1) -> tuple[SequenceClassifier, Batch]:
    model = build_model(ModelOptions(cell=cell, units=4, layers=layers), ENCODING, seed=0)
    lengths, labels = torch.tensor([6, 3]), torch.tensor([1, 2])
    return model, Batch(torch.randn(2, 6, 5), lengths, labels, torch.arange(2), 2)


@pytest.mark.parametrize("cell", ["BasicRNNCell", "BasicLSTMCell", "torch.nn:LSTMCell"])
def test_as_a_plain_loop(cell: str) -> None:
    model, batch = make(cell)
    traces = trace_states(model, batch)
    assert batch.labels is not None
    for row, length in enumerate(batch.lengths.tolist()):
        x = batch.values[row : row + 1, :length].clone().requires_grad_()
        states, h = [], torch.zeros(1, 4)
        state = h if cell == "BasicRNNCell" else (torch.zeros(1, 4), torch.zeros(1, 4))
        for t in range(length):
            result = model.layers[0].cell(x[:, t], state)
            state = result if cell.startswith("torch") else result[1]
            state = state.clone() if isinstance(state, torch.Tensor) else tuple(part.clone() for part in state)
            h = state if isinstance(state, torch.Tensor) else state[0 if cell.startswith("torch") else 1]
            states.append((h, state))
        loss = cross_entropy(model.readout(h), batch.labels[row : row + 1])
        for t, (h_t, state_t) in enumerate(states):
            leaves = [state_t] if isinstance(state_t, torch.Tensor) else [*state_t]
            grads = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)
            norm = torch.stack([g.square().sum() for g in grads if g is not None]).sum().sqrt()
            assert np.isclose(traces.state_gradients[row, t], norm, rtol=1e-4)
            assert np.allclose(traces.units[row, t], h_t.detach()[0], atol=1e-6)
            belief = model.readout(h_t).softmax(-1).detach()[0]
            assert np.allclose(traces.beliefs[row, t], belief, atol=1e-5)
        (grad,) = torch.autograd.grad(loss, [x])
        assert np.allclose(traces.input_gradients[row, :length], grad.norm(dim=2)[0], rtol=1e-4, atol=1e-7)


def test_all_layers_count() -> None:
    model, batch = make("BasicRNNCell", layers=2)
    traces = trace_states(model, batch)
    assert (traces.state_gradients[0] > 0).all()
    assert (traces.input_gradients[1, 3:] == 0).all(), "nothing comes back from past the end"


def test_what_the_model_says_at_the_end() -> None:
    model, batch = make("GRUCell")
    beliefs = trace_states(model, batch).beliefs
    said = model(batch.values, batch.lengths).softmax(-1).detach()
    assert np.allclose(beliefs[[0, 1], [5, 2]], said, atol=1e-5)
