"""Guarantee: a memory policy changes no bit on the native backend, and nothing but rounding in the portable one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from throughtime import Budget, Recompute, SaveAll, Spill, dynamic_rnn
from throughtime._nested import leaves
from throughtime.cells import DropoutWrapper, GRUCell, LSTMCell, MultiRNNCell

FEATURES = 5


class Noisy(nn.Module):
    """Noise of both kinds, twice in a step."""

    state_size = 6

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(FEATURES + 6, 6)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.mix(torch.cat([F.dropout(x, 0.25), h], -1)))
        h = h + 0.1 * torch.randn_like(h)
        return F.dropout(h, 0.5), h


class Scaled(nn.Module):
    """A weight that is no matrix; outputs that are not the state."""

    state_size = 4

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.inner = nn.Parameter(torch.ones(FEATURES)), nn.GRUCell(FEATURES, 4)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        following = self.inner(x * self.scale, h)
        return following.square(), following


def _multi() -> nn.Module:
    dropped = DropoutWrapper(GRUCell(7), input_keep_prob=0.7, state_keep_prob=0.8)
    return MultiRNNCell([LSTMCell(6, input_size=FEATURES), dropped])


CELLS: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: nn.LSTMCell(FEATURES, 9),
    "peephole": lambda: LSTMCell(6, input_size=FEATURES, use_peepholes=True, num_proj=3),
    "multi": _multi,
    "noisy": Noisy,
    "scaled": Scaled,
}
made: dict[str, nn.Module] = {}


def cell_named(name: str) -> nn.Module:
    """One object a name, so that it is compiled once."""
    if name not in made:
        torch.manual_seed(1)
        made[name] = CELLS[name]()
        dynamic_rnn(made[name], torch.zeros(2, 2, FEATURES), backend="portable")
    return made[name]


def results(name: str, lengths: list[int], memory: Any, backend: Any, **given: Any) -> dict[str, Tensor]:
    """Outputs, state and every gradient."""
    cell = cell_named(name)
    torch.manual_seed(3)
    x = torch.randn(len(lengths), max(lengths), FEATURES).requires_grad_()
    reset = torch.rand(len(lengths), max(lengths)) < 0.03 if given.pop("resets", False) else None
    cell.zero_grad()
    torch.manual_seed(5)
    outputs, state = dynamic_rnn(cell, x, lengths, memory=memory, backend=backend, reset=reset, **given)
    loss = (outputs * torch.arange(outputs.numel()).view(outputs.shape).cos()).sum()
    for leaf in leaves(state):
        loss = loss + leaf.square().sum()
    loss.backward()
    found = {f"state {i}": leaf.detach() for i, leaf in enumerate(leaves(state))}
    found |= {f"d {key}": p.grad.clone() for key, p in cell.named_parameters()}  # type: ignore[union-attr]
    return {"outputs": outputs.detach(), **found, "d x": x.grad.clone()}  # type: ignore[union-attr]


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    return [name for name in a if not torch.equal(a[name], b[name])]


@settings(max_examples=25)
@given(
    name=st.sampled_from(sorted(CELLS)),
    lengths=st.lists(st.integers(0, 150), min_size=1, max_size=6).filter(any),
    memory=st.sampled_from([Recompute(), Recompute(32), Recompute(64), Spill(), Budget("5MB"), Budget("1GB")]),
    resets=st.booleans(),
    chunk=st.sampled_from([None, 1, 7, 64]),
    levels=st.booleans(),
)
def test_no_bit_changes(
    name: str, lengths: list[int], memory: Any, resets: bool, chunk: int | None, levels: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("throughtime.plan.memory.MOST_MARKS", 2 if levels else 4096)
        patch.setattr("throughtime.plan.memory.SEGMENT_BYTES", 1000)
        saved = results(name, lengths, SaveAll(), "native", resets=resets)
        found = results(name, lengths, memory, "native", resets=resets, parallel_iterations=chunk)
    assert differing(found, saved) == []


@pytest.mark.parametrize("memory", [Recompute(), Recompute(7), Spill()], ids=str)
@pytest.mark.parametrize("name", sorted(CELLS))
def test_portable_policies(name: str, memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("throughtime.loop.portable_memory.SMALL_BYTES", 0)
    lengths = [40, 3, 0, 40, 21]
    saved = results(name, lengths, SaveAll(), "portable", resets=True)
    found = results(name, lengths, memory, "portable", resets=True)
    for key, expected in saved.items():
        torch.testing.assert_close(found[key], expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()), msg=key)


@pytest.mark.parametrize("name", ["multi", "noisy"])
def test_the_same_noise_on_both_backends(name: str) -> None:
    lengths = [40, 3, 0, 40, 21]
    native, portable = (results(name, lengths, None, backend) for backend in ("native", "portable"))
    for key, expected in portable.items():
        torch.testing.assert_close(native[key], expected, rtol=2e-5, atol=2e-5 * float(expected.abs().max()), msg=key)


@pytest.mark.parametrize("memory", [SaveAll(), Recompute(32), Spill()], ids=str)
@pytest.mark.parametrize("backend", ["native", "portable"])
def test_a_graph_that_is_kept_goes_back_twice(memory: Any, backend: Any) -> None:
    cell = cell_named("lstm")
    x = torch.randn(3, 70, FEATURES, requires_grad=True)
    loss = dynamic_rnn(cell, x, memory=memory, backend=backend)[0].square().sum()
    first, second = (torch.autograd.grad(loss, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_swap_memory_is_spill() -> None:
    a = results("lstm", [90, 2], None, "native", swap_memory=True)
    assert differing(a, results("lstm", [90, 2], SaveAll(), "native")) == []


def test_gradients_of_the_initial_state() -> None:
    cell = cell_named("scaled")
    x, h = torch.randn(3, 100, FEATURES), torch.randn(3, 4, requires_grad=True)
    gradients = []
    for memory in (SaveAll(), Recompute(32), Spill()):
        loss = dynamic_rnn(cell, x, [100, 0, 33], h, memory=memory, backend="native")[0].sum()
        gradients.append(torch.autograd.grad(loss, h)[0])
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[0], gradients[2])
