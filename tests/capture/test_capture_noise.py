"""Random operators become inputs, one for each in order; what is made of them is arithmetic."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from capture.agreement import row
from throughtime import CaptureError
from throughtime.capture import StepTrace, trace_step
from throughtime.capture.interpret import run_backward, run_forward

H, B = 4, 2000
Drawn = tuple[list[tuple[str, tuple[Any, ...]]], Tensor, Tensor]


def trace(function: Callable[[Tensor], Tensor]) -> StepTrace:
    return trace_step(lambda x, h: (function(x), h), row(H, requires_grad=True), row(H))


def kinds(traced: StepTrace) -> list[Any]:
    return [i.distribution for i in traced.pair.forward.of_kind("noise")]


def play(traced: StepTrace, x: Tensor, *noise: Tensor) -> tuple[Tensor, Tensor]:
    """The output, and the gradient of its sum."""
    forward = traced.pair.forward
    env = {"x": x, "state": torch.zeros_like(x)}
    env |= {i.name: n for i, n in zip(forward.of_kind("noise"), noise, strict=True)}
    env = run_forward(forward, env, len(x))
    env = run_backward(traced.pair, env, {"d_y": torch.ones_like(x), "d_next_state": torch.zeros_like(x)}, len(x))
    gradient = traced.pair.d_xs[0]
    return env[forward.ys[0]], env[gradient] if gradient else torch.zeros_like(x)


def draw(traced: StepTrace) -> list[Tensor]:
    make = {"uniform": torch.rand, "normal": torch.randn}
    return [
        make[str(i.distribution)](B, *(int(n) for n in i.shape[1:]), dtype=i.dtype)
        for i in traced.pair.forward.of_kind("noise")
    ]


@pytest.mark.parametrize("dropout", [F.dropout, lambda x, p: torch.dropout(x, p, True), lambda x, p: nn.Dropout(p)(x)])
def test_dropout(dropout: Callable[[Tensor, float], Tensor]) -> None:
    traced = trace(lambda x: dropout(x, 0.25))
    x, noise = torch.randn(B, H), torch.rand(B, H)
    y, d_x = play(traced, x, noise)
    kept = (noise < 0.75) / 0.75
    torch.testing.assert_close(y, x * kept)
    torch.testing.assert_close(d_x, kept)
    (described,) = traced.pair.forward.of_kind("noise")
    assert (described.shape, described.dtype) == (("B", H), torch.float32)


def test_dropout_that_drops_nothing_or_all() -> None:
    assert kinds(trace(lambda x: F.dropout(x, 0.0))) == []
    assert kinds(trace(lambda x: F.dropout(x, 0.5, training=False))) == []
    assert kinds(trace(nn.Dropout(0.5).eval())) == []
    everything = trace(lambda x: F.dropout(x, 1.0))
    y, d_x = play(everything, torch.randn(3, H), *[torch.rand(3, H) for _ in kinds(everything)])
    assert not y.any()
    assert not d_x.any()


def test_dropout_of_no_probability() -> None:
    with pytest.raises(CaptureError, match="dropout probability has to be between 0 and 1, but got"):
        trace(lambda x: F.dropout(x, 1.5))


def test_dropout_in_place() -> None:
    x, noise = torch.randn(B, H), torch.rand(B, H)

    def in_place(x: Tensor) -> Tensor:
        y = x * 2
        F.dropout(y, 0.5, inplace=True)
        return y

    torch.testing.assert_close(play(trace(in_place), x, noise)[0], x * 2 * (noise < 0.5) * 2)


def test_double_precision_has_noise_of_its_own() -> None:
    traced = trace(lambda x: F.dropout(x.double(), 0.5).float())
    assert [i.dtype for i in traced.pair.forward.of_kind("noise")] == [torch.float64]


EXACT: dict[str, tuple[Callable[[Tensor], Tensor], list[str], Callable[..., Tensor]]] = {
    "rand": (lambda x: x + torch.rand_like(x), ["uniform"], lambda x, u: x + u),
    "rand of sizes": (lambda x: x + torch.rand(x.shape[0], H), ["uniform"], lambda x, u: x + u),
    "randn": (lambda x: x + 0.1 * torch.randn_like(x), ["normal"], lambda x, n: x + 0.1 * n),
    "randn, twice": (lambda x: torch.randn_like(x) - torch.randn(x.shape), ["normal"] * 2, lambda x, a, b: a - b),
    "two kinds": (lambda x: torch.rand_like(x) * torch.randn_like(x), ["uniform", "normal"], lambda x, u, n: u * n),
    "bernoulli": (
        lambda x: torch.bernoulli(torch.sigmoid(x)),
        ["uniform"],
        lambda x, u: (u < torch.sigmoid(x)).float(),
    ),
    "bernoulli_": (lambda x: torch.empty_like(x).bernoulli_(0.3), ["uniform"], lambda x, u: (u < 0.3).float()),
    "uniform_": (lambda x: torch.empty_like(x).uniform_(-1, 3), ["uniform"], lambda x, u: u * 4 - 1),
    "normal_": (lambda x: torch.empty_like(x).normal_(1, 2), ["normal"], lambda x, n: n * 2 + 1),
    "normal": (lambda x: torch.normal(x, 2.0), ["normal"], lambda x, n: n * 2 + x),
    "exponential_": (lambda x: torch.empty_like(x).exponential_(2), ["uniform"], lambda x, u: -torch.log1p(-u) / 2),
    "randint": (lambda x: x + torch.randint(2, 5, x.shape), ["uniform"], lambda x, u: x + (u * 3).floor().float() + 2),
}


@pytest.mark.parametrize("name", EXACT)
def test_arithmetic_on_noise(name: str) -> None:
    function, expected_kinds, expected = EXACT[name]
    traced = trace(function)
    assert kinds(traced) == expected_kinds
    x, noise = torch.randn(B, H), draw(traced)
    torch.testing.assert_close(play(traced, x, *noise)[0], expected(x, *noise), rtol=1e-5, atol=1e-5)


def test_an_exponential_number_is_never_zero() -> None:
    """Its logarithm is a Gumbel number."""
    x = torch.zeros(1, H)
    found = play(trace(lambda x: torch.empty_like(x).exponential_(2)), x, torch.zeros(1, H))[0]
    assert torch.equal(found, torch.full_like(x, torch.finfo(torch.float32).eps / 4))


DISTRIBUTED: dict[str, Callable[[Tensor], Tensor]] = {
    "alpha dropout": lambda x: F.alpha_dropout(x, 0.2, training=True),
    "feature dropout": lambda x: F.dropout1d(x[:, :, None], 0.3)[:, :, 0],
    "gumbel softmax": lambda x: F.gumbel_softmax(x, tau=0.7),
    "hard gumbel softmax": lambda x: F.gumbel_softmax(x, hard=True),
}


@pytest.mark.parametrize("name", DISTRIBUTED)
def test_agrees_with_pytorch_in_distribution(name: str) -> None:
    """Five standard errors of the mean of a few thousand draws."""
    traced = trace(DISTRIBUTED[name])
    x = torch.tensor([0.5, -1.0, 2.0, 0.1]).expand(B, H)
    ours, theirs = play(traced, x, *draw(traced))[0], DISTRIBUTED[name](x.clone())
    for moment in (lambda y: y, torch.square):
        a, b = moment(ours), moment(theirs)
        error = (a.var(0) + b.var(0)).div(B).sqrt()
        assert ((a.mean(0) - b.mean(0)).abs() <= 5 * error + 1e-6).all()


def test_noise_of_attention_weights() -> None:
    """Rows that PyTorch merges with heads have noise of their own."""
    attention = nn.MultiheadAttention(H, 2, dropout=0.5, batch_first=True)
    traced = trace(lambda x: attention(x[:, None], x[:, None].repeat(1, 3, 1), x[:, None].repeat(1, 3, 1))[0][:, 0])
    assert [i.shape for i in traced.pair.forward.of_kind("noise")] == [("B", 2, 1, 3)]
