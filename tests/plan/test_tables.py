"""Products of rows of a table: made of the whole table once a call, if it is small."""

import pytest
import torch
from torch import Tensor, nn

from throughtime import dynamic_rnn
from throughtime._pipeline import Compiled, Run, find_loop
from throughtime._sequence import read_sequence
from throughtime.plan.memory import SaveAll


class Tokens(nn.Module):
    """A step that looks up its input, and multiplies what it finds."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.table, self.cell = nn.Embedding(vocabulary, 5), nn.GRUCell(5, 6)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        h = self.cell(self.table(x), state)
        return h, h


def operators_of_a_step(vocabulary: int) -> list[str]:
    ids = torch.randint(vocabulary, (2, 4))
    request = Run(Tokens(vocabulary), read_sequence(ids), torch.zeros(2, 6), (), None, None, "native", 32, SaveAll())
    loop, _ = find_loop(request)
    assert isinstance(loop, Compiled)
    return [node.op for stage in loop.plan.forward for node in stage.nodes]


def test_only_a_small_table_is_multiplied_whole() -> None:
    few, many = (operators_of_a_step(vocabulary) for vocabulary in (40, 4000))
    assert (few.count("embedding"), few.count("mm")) == (1, 1)  # the state's
    assert (many.count("embedding"), many.count("mm")) == (1, 2)
    assert few.count("add") == many.count("add") - 1  # the bias is added to the table


@pytest.mark.parametrize("vocabulary", [40, 4000])
def test_outputs_and_gradients_are_those_of_the_loop(vocabulary: int) -> None:
    cell, ids = Tokens(vocabulary).double(), torch.randint(vocabulary, (3, 7))
    results = []
    for backend in ("native", "portable"):
        outputs, _ = dynamic_rnn(cell, ids, [7, 2, 5], backend=backend)
        results.append([outputs, *torch.autograd.grad(outputs.square().sum(), list(cell.parameters()))])
    for got, want in zip(*results):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
