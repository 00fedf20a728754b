"""What machine code has not is refused by its name, before anything runs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from throughtime import BackendError, dynamic_rnn
from throughtime.capture.graph import Node
from throughtime.loop.native.lower import Reduction, _check_reductions

TABLE = torch.randn(5, 4)
X, H = torch.randn(2, 3, 4), torch.zeros(2, 4)
IDS = torch.randint(5, (2, 3, 2, 3))

REFUSED: dict[str, tuple[Callable[[Tensor, Tensor], Any], Tensor, Tensor, str]] = {
    "sorted": (
        lambda x, h: (x.repeat(1, 33).sort(1)[0], h),
        X,
        H,
        r"operator 'sort' .* is not in the native backend's table",
    ),
    "large images": (
        lambda x, h: (F.interpolate(x.unsqueeze(1), 2000, mode="linear"), h),
        X,
        H,
        "operator 'upsample_linear1d' .* is not in the native",
    ),
    "truths": (
        lambda x, h: (x, torch.maximum(h, x > 0)),
        X,
        H.bool(),
        r"'maximum' .* takes no truth values in machine code",
    ),
    "half": (lambda x, h: (x.half().float(), h), X, H, "the step computes in torch.float16, which the native backend"),
    "two precisions": (
        lambda x, h: ((x.double() + 1).float(), h),
        X,
        H,
        "the step mixes torch.float32, torch.float64; the native backend keeps to one",
    ),
    "transposed ids": (
        lambda x, h: (F.embedding(x.transpose(1, 2), TABLE), h),
        IDS,
        H,
        r"'embedding' .* looks up a transposed index",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str) -> None:
    step, inputs, state, words = REFUSED[name]
    with pytest.raises(BackendError, match=words):
        dynamic_rnn(step, inputs, initial_state=state, backend="native")


def test_a_sum_over_rows_without_a_kernel() -> None:
    node = Node("amax_1", "amax", (), (), (3,), torch.float32)
    with pytest.raises(BackendError, match=r"the gradient sums over rows through 'amax' .*, which has no kernel"):
        _check_reductions([Reduction(node, (), (), 1)])
