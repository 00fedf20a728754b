"""Guarantee: float32 and float64 everywhere, in and out alike; whole numbers go in as they are."""

import pytest
import torch
from torch import Tensor, nn

from conformance.cases import by_library, draw_case
from conformance.descriptors import BACKENDS, MIXES_DTYPES, TOLERANCES, Descriptor, over
from throughtime import dynamic_rnn
from throughtime._nested import leaves


@over()
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_what_goes_in_comes_out(descriptor: Descriptor, backend: str, dtype: torch.dtype) -> None:
    case = draw_case(descriptor, [2, 3], dtype=dtype)
    result = by_library(case, backend)
    for leaf in leaves(result.outputs):
        assert leaf.dtype == dtype
    for leaf, spec in zip(leaves(result.state), leaves(descriptor.state), strict=True):
        assert leaf.dtype == spec.dtype(dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ids", [torch.int64, torch.int32])
def test_token_ids_take_the_dtype_of_the_weights(backend: str, ids: torch.dtype) -> None:
    class Embedding(nn.Module):
        state_size = 4

        def __init__(self) -> None:
            super().__init__()
            self.embed, self.core = nn.Embedding(5, 3), nn.GRUCell(3, 4)

        def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            h = self.core(self.embed(x), h)
            return h, h

    tokens = torch.randint(5, (2, 3)).to(ids)
    outputs, state = dynamic_rnn(Embedding().double(), tokens, backend=backend)
    assert outputs.dtype == state.dtype == torch.float64


@pytest.mark.filterwarnings("ignore::throughtime.BackendWarning")
@pytest.mark.parametrize("backend", ["auto", *MIXES_DTYPES])
def test_dtype_is_that_of_the_state_the_cell_makes(backend: str) -> None:
    class Widening(nn.Module):
        state_size = 2

        def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            h = h + x.to(h.dtype)
            return h, h

    outputs, state = dynamic_rnn(Widening(), torch.ones(1, 3, 2), dtype=torch.float64, backend=backend)
    assert outputs.dtype == state.dtype == torch.float64
    outputs, _ = dynamic_rnn(Widening(), torch.ones(1, 3, 2, dtype=torch.int64), backend=backend)
    assert outputs.dtype == torch.get_default_dtype()


@pytest.mark.filterwarnings("ignore::throughtime.BackendWarning")
@pytest.mark.parametrize("backend", ["auto", *MIXES_DTYPES])
def test_outputs_of_whole_numbers_and_truths(backend: str) -> None:
    def cell(x: Tensor, h: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        return {"best": x.argmax(-1), "any": (x > 0).any(-1), "x": x}, h

    x = torch.tensor([[[1.0, 2.0], [3.0, 1.0]], [[0.0, 4.0], [5.0, 6.0]]])
    outputs, _ = dynamic_rnn(cell, x, [2, 1], torch.zeros(2, 1), backend=backend)
    assert outputs["best"].tolist() == [[1, 0], [1, 0]]
    assert outputs["any"].tolist() == [[True, True], [True, False]]
    assert outputs["best"].dtype == torch.int64
