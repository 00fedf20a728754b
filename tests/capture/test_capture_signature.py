"""When a trace may be used again: what changes the key, and what does not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from throughtime import CaptureError
from throughtime.capture import check_hooks, find_mentions, signature

H = 4
GAIN = [1.0]


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map, self.drop = nn.Linear(3, H), nn.Dropout(0.5)
        self.leak, self.memory, self.config = 0.5, torch.rand(H), {"clip": [1.0, None]}

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = self.drop(torch.tanh(self.map(x)) * self.leak + h * self.memory * GAIN[0])
        return h.clamp(max=self.config["clip"][0]), h


X, STATE = torch.zeros(5, 3), torch.zeros(5, H)


def test_the_same_for_other_numbers_and_batch_sizes() -> None:
    cell = Cell()
    before = signature(cell, X, STATE)
    hash(before)
    cell.memory = torch.rand(H)
    with torch.no_grad():
        cell.map.weight.add_(1)
    assert signature(cell, torch.rand(9, 3), torch.rand(9, H)) == before
    assert signature(cell, X, torch.zeros(5, H, requires_grad=True)) == before


CHANGES: dict[str, Callable[[Cell], Any]] = {
    "training": lambda cell: cell.eval(),
    "training of a part": lambda cell: cell.drop.eval(),
    "frozen": lambda cell: cell.map.weight.requires_grad_(False),
    "a number": lambda cell: setattr(cell, "leak", 0.25),
    "a number of a part": lambda cell: setattr(cell.drop, "p", 0.1),
    "a number in a container": lambda cell: cell.config["clip"].__setitem__(0, 2.0),
    "an integer for a number": lambda cell: cell.config["clip"].__setitem__(0, 1),
    "a tensor of another shape": lambda cell: setattr(cell, "memory", torch.rand(1)),
    "a tensor of another dtype": lambda cell: setattr(cell, "memory", torch.rand(H).double()),
    "a trainable tensor": lambda cell: setattr(cell, "memory", torch.rand(H, requires_grad=True)),
    "no tensor": lambda cell: setattr(cell, "memory", None),
    "another module": lambda cell: setattr(cell, "drop", nn.Identity()),
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_for_another_cell(name: str) -> None:
    cell = Cell()
    before = signature(cell, X, STATE)
    CHANGES[name](cell)
    assert signature(cell, X, STATE) != before


def test_globals_and_closures() -> None:
    gain = 1.0
    cell = lambda x, h: (x * gain, h)  # noqa: E731
    before = signature(cell, X, STATE)
    gain = 2.0
    assert signature(cell, X, STATE) != before
    module = Cell()
    before = signature(module, X, STATE)
    GAIN[0] = 3.0
    assert signature(module, X, STATE) != before
    GAIN[0] = 1.0
    assert signature(module, X, STATE) == before


def test_kinds_of_inputs_and_state() -> None:
    cell = Cell()
    keys = [
        signature(cell, X, STATE),
        signature(cell, X.double(), STATE),
        signature(cell, torch.zeros(5, 2), STATE),
        signature(cell, torch.zeros(5, 3, requires_grad=True), STATE),
        signature(cell, (X,), STATE),
        signature(cell, {"a": X}, STATE),
        signature(cell, {"b": X}, STATE),
        signature(cell, X, (STATE, STATE)),
        signature(cell, X, STATE, STATE),
        signature(cell, X, STATE, (STATE,)),
    ]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        keys.append(signature(cell, X, STATE))
    assert len(set(keys)) == len(keys)


def test_hooks_run_at_every_step() -> None:
    """Of the cell, and of a module in it."""
    for hooked, who in ((nn.GRUCell(2, H), "the cell"), (nn.Sequential(nn.Linear(2, H)), "the Linear in the cell")):
        module = hooked if who == "the cell" else hooked[0]
        module.register_forward_hook(lambda *_: None)
        with pytest.raises(CaptureError, match=f"{who} has hooks, which run at every step"):
            check_hooks(hooked, find_mentions(hooked))
