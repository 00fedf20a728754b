"""The classifier: what it computes, and which cells it takes."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import throughtime
from throughtime.fit.errors import FitError
from throughtime.fit.options import ModelOptions
from throughtime.fit.seeds import seed_noise
from throughtime.fit.tasks.classify.encoding import Encoding
from throughtime.fit.tasks.classify.model import build_model, final_features

NUMBERS = Encoding(("a", "b", "c"), False, 5, None, False)
WORDS = Encoding(("a", "b"), False, 0, ("to", "be", "or", "not"), False)
SMALL = ModelOptions(units=4)

OWN_CELLS = """
import torch
from torch import nn

class Leaky(nn.Module):
    def __init__(self, units, input_size, leak=0.5):
        super().__init__()
        self.inner, self.leak = nn.Linear(input_size, units), leak
        self.state_size = units
    def forward(self, x, h):
        h = self.leak * h + self.inner(x).tanh()
        return h, h

def wide(units):
    return lambda x, h: ((h, h), h)

def refuses(units):
    raise ValueError("no units today")

def broken_output(units):
    cell = lambda x, h: ({"y": h}, h)
    cell.state_size = units
    return cell
"""


@pytest.fixture
def own_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module `own_cells` in the working directory, as a user has it."""
    import sys

    (tmp_path / "own_cells.py").write_text(OWN_CELLS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("own_cells", None)


@pytest.mark.parametrize("cell", ["BasicRNNCell", "BasicLSTMCell", "LSTMCell", "GRUCell"])
def test_a_linear_layer_on_the_final_state(cell: str) -> None:
    model = build_model(replace(SMALL, cell=cell, layers=2), NUMBERS, seed=0)
    values, lengths = torch.randn(3, 6, 5), torch.tensor([6, 2, 0])
    for row, length in enumerate(lengths):
        steps = values[row : row + 1, :length]
        for layer in model.layers:
            steps, state = throughtime.dynamic_rnn(layer.cell, steps)
        h = getattr(state, "h", state)
        expected = h @ model.readout.weight.T + model.readout.bias
        assert torch.allclose(model(values, lengths)[row], expected[0], atol=1e-6)


@pytest.mark.parametrize("cell", ["torch.nn:LSTMCell", "torch.nn:GRUCell", "torch.nn:RNNCell"])
def test_cells_of_pytorch(cell: str) -> None:
    model = build_model(replace(SMALL, cell=cell, layers=2), NUMBERS, seed=0)
    values, lengths = torch.randn(3, 6, 5), torch.tensor([6, 2, 1])
    features = model.features(values, lengths)
    steps = values
    for layer in model.layers:
        steps, _ = throughtime.dynamic_rnn(layer.cell, steps, lengths)
    assert torch.equal(features, torch.stack([steps[0, 5], steps[1, 1], steps[2, 0]]))


def test_options_of_the_cell() -> None:
    options = replace(SMALL, cell="LSTMCell", cell_options={"use_peepholes": True, "num_proj": 3})
    model = build_model(options, NUMBERS, seed=0)
    assert "layers.0.cell.w_f_diag" in model.state_dict()
    assert model.readout.in_features == 3


def test_a_state_wider_than_the_output() -> None:
    options = replace(SMALL, cell="BasicLSTMCell", cell_options={"state_is_tuple": False})
    model = build_model(options, NUMBERS, seed=0)
    assert model.readout.in_features == 8
    assert model(torch.randn(2, 3, 5), torch.tensor([3, 1])).shape == (2, 3)


def test_tokens_go_through_an_embedding() -> None:
    model = build_model(replace(SMALL, embed=7), WORDS, seed=0)
    assert model.embedding is not None
    assert model.embedding.weight.shape == (5, 7)
    assert model(torch.tensor([[1, 4, 0]]), torch.tensor([3])).shape == (1, 2)


@pytest.mark.usefixtures("own_cells")
def test_a_cell_of_ones_own() -> None:
    model = build_model(replace(SMALL, cell="own_cells:Leaky", cell_options={"leak": 0.25}), NUMBERS, seed=0)
    cell = model.layers[0].cell
    assert cell.leak == 0.25
    assert cell.inner.in_features == 5


def test_the_seed_fixes_the_first_weights() -> None:
    weights = [build_model(SMALL, NUMBERS, seed).state_dict() for seed in (1, 1, 2)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not torch.equal(weights[0]["readout.weight"], weights[2]["readout.weight"])


def test_noise_hangs_on_its_key() -> None:
    drawn = []
    for key in ((1, 2, 0), (1, 2, 0), (1, 2, 1), (1, 3, 0)):
        seed_noise(*key)
        drawn.append(torch.rand(3).tolist())
    assert drawn[0] == drawn[1]
    assert len({tuple(row) for row in drawn}) == 3


def test_dropout_in_training_only() -> None:
    model = build_model(replace(SMALL, dropout=0.5, layers=2), NUMBERS, seed=0)
    inputs = torch.randn(3, 6, 5), torch.tensor([6, 2, 1])
    assert not torch.equal(model(*inputs), model(*inputs))
    model.eval()
    assert torch.equal(model(*inputs), model(*inputs))


def test_a_sequence_of_no_steps_has_features() -> None:
    zeros = final_features(object(), torch.empty(2, 0, 3), (torch.ones(2, 3),), torch.tensor([0, 0]))
    assert torch.equal(zeros, torch.zeros(2, 3))


@pytest.mark.usefixtures("own_cells")
@pytest.mark.parametrize(
    ("options", "match", "detail"),
    [
        ({"dropout": 1.0}, "--dropout is a share", "got 1.0"),
        ({"cell": "NoSuchCell"}, "throughtime has no cell", "BasicLSTMCell, BasicRNNCell"),
        ({"cell": "no_such_module:Cell"}, "there is no module", "'no_such_module'"),
        ({"cell": "own_cells:Nothing"}, "has no class", "'Nothing'"),
        ({"cell_options": {"peepholes": 1}}, "--cell_options: ", "peepholes"),
        ({"cell": "own_cells:refuses"}, "refuses its arguments", "no units today"),
        ({"cell": "own_cells:broken_output"}, "must return one tensor", "own_cells:broken_output"),
    ],
)
def test_cells_that_are_refused(options: dict, match: str, detail: str) -> None:
    with pytest.raises(FitError, match=match) as caught:
        build_model(replace(SMALL, **options), NUMBERS, seed=0)
    assert detail in str(caught.value)


@pytest.mark.usefixtures("own_cells")
def test_a_broken_module_of_ones_own_tells_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "half.py").write_text("import not_installed_anywhere\n")
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        build_model(replace(SMALL, cell="half:Cell"), NUMBERS, seed=0)


def test_the_readout_is_linear() -> None:
    assert isinstance(build_model(SMALL, NUMBERS, 0).readout, nn.Linear)
