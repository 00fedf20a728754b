"""`explain`: what a call would do, without a trace of having asked. Two pages as golden text."""

import math
import random
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import throughtime
from throughtime import BackendError, Budget, MemoryPolicyError, dynamic_rnn, explain

LENGTHS = [5, 1, 3]


def anywhere(page: throughtime.Explanation) -> str:
    """Without what depends on the machine: its name, its threads, the size of its panels of weights, its paths."""
    text = str(replace(page, machine="any machine", threads=1, peak_bytes=None))
    return re.sub(r"\S*/test_explain\.py:\d+", "test_explain.py", text)


class Noted(nn.Module):
    """Refused: it writes on itself and reads it."""

    state_size = 4

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.last = nn.Linear(3, 4), torch.zeros(4)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.linear(x) + h + self.last)
        self.last = h
        return h, h


def test_a_page_of_two_layers(golden: Callable[[str, str], None]) -> None:
    layers = [throughtime.LSTMCell(4, input_size=3), throughtime.GRUCell(5, input_size=4)]
    page = explain(throughtime.MultiRNNCell(layers), torch.randn(3, 5, 3), LENGTHS)
    golden("explanations/two_layers", anywhere(page))


def test_a_page_of_a_cell_that_is_refused(golden: Callable[[str, str], None]) -> None:
    golden("explanations/refused", anywhere(explain(Noted(), torch.randn(3, 5, 3), LENGTHS)))


def test_what_is_sequential_and_what_left_the_loop() -> None:
    layers = [throughtime.LSTMCell(4, input_size=3), throughtime.LSTMCell(5, input_size=4)]
    page = explain(throughtime.MultiRNNCell(layers), torch.randn(3, 5, 3), LENGTHS)
    forward = [stage for stage in page.stages if stage.direction == "forward"]
    assert [stage.kind for stage in forward] == ["batched", "loop", "batched", "loop"]
    assert [stage.carries for stage in forward] == [
        (),
        ("state[0].c", "state[0].h"),
        (),
        ("state[1].c", "state[1].h"),
    ]
    assert "state[0].c and state[0].h" in forward[1].why
    products = [p.operations for stage in forward for p in stage.products]
    assert products == [2 * 3 * 16, 2 * 4 * 16, 2 * 4 * 20, 2 * 5 * 20]
    assert len(page.sums) == 6, "two kernels in two parts each, and two biases"


def test_many_rows_run_in_one_pass() -> None:
    cell = nn.GRUCell(3, 4)
    assert not explain(cell, torch.randn(3, 5, 3)).as_one
    assert explain(cell, torch.randn(64, 5, 3)).as_one


def test_residuals_are_what_a_call_keeps() -> None:
    cell = throughtime.LSTMCell(4, input_size=3)
    x = nn.utils.rnn.pack_padded_sequence(torch.randn(3, 5, 3), torch.tensor([5, 3, 1]), batch_first=True)
    page = explain(cell, x)
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        dynamic_rnn(cell, x, backend="native")
    assert page.pairs == 9
    found = sorted(t.numel() * t.element_size() // 9 for t in kept if t.shape[0] == 9 and t.shape != (9, 3))
    assert found == sorted(residual.bytes for residual in page.residuals)
    assert page.kept_bytes == 9 * (sum(found) - 16), "an output is there anyway"


def test_work_is_of_real_steps() -> None:
    cell = nn.RNNCell(3, 4)
    page = explain(cell, torch.randn(2, 10, 3), [10, 5])
    assert page.forward is not None
    assert page.forward.padding * 3 == page.forward.real
    assert page.forward.real >= 15 * 2 * 4 * (3 + 4)
    dense = explain(cell, torch.randn(2, 10, 3))
    assert dense.forward is not None
    assert dense.forward.padding == 0


def test_without_gradients_nothing_is_kept() -> None:
    with torch.no_grad():
        page = explain(nn.GRUCell(3, 4), torch.randn(3, 5, 3))
    assert (page.residuals, page.peak_bytes, page.backward, page.sums) == ((), None, None, ())
    assert "for the backward pass" not in str(page)


def test_memory_follows_the_policy() -> None:
    cell, x = throughtime.LSTMCell(64, input_size=3), torch.randn(4, 2000, 3)
    everything = explain(cell, x)
    recomputed = explain(cell, x, memory=throughtime.Recompute(every=32))
    assert everything.peak_bytes is not None
    assert recomputed.peak_bytes is not None
    assert recomputed.peak_bytes < everything.peak_bytes / 4
    assert "chooses" in (explain(cell, x, memory=Budget(recomputed.peak_bytes * 2)).memory or "")
    with pytest.raises(MemoryPolicyError):
        explain(cell, x, memory=Budget("1KB"))


@pytest.mark.parametrize("backend", ["auto", "native"])
def test_a_refusal_says_where_and_why_as_the_call_does(backend: str) -> None:
    page = explain(Noted(), torch.randn(3, 5, 3), backend=backend)  # type: ignore[arg-type]
    assert page.backend == ("portable" if backend == "auto" else None)
    assert len(page.refusals) == 1
    assert page.refusals[0].startswith("native, when the step was traced: ")
    with pytest.raises(BackendError) as caught:
        dynamic_rnn(Noted(), torch.randn(3, 5, 3), backend="native")
    assert page.refusals[0].split(": ", 1)[1] in str(caught.value)
    assert "last" in page.refusals[0]


def test_the_backend_that_was_asked_for() -> None:
    page = explain(nn.GRUCell(3, 4), torch.randn(3, 5, 3), backend="portable")
    assert page.backend == "portable"
    assert "was asked for" in str(page)


def test_inputs_that_no_machine_code_reads() -> None:
    page = explain(nn.GRUCell(3, 4).to(torch.bfloat16), torch.randn(3, 5, 3, dtype=torch.bfloat16))
    assert page.backend == "portable"
    assert "for this call" in page.refusals[0]
    assert page.stages == ()


def test_what_multiplies_numbers_of_bfloat16() -> None:
    cell, x = nn.GRUCell(3, 4), torch.randn(2, 5, 3)
    assert "bfloat16" not in explain(cell, x).machine
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert re.search(r", products of bfloat16 (on AMX tiles|in float32)$", explain(cell, x).machine)


def test_no_step_at_all() -> None:
    page = explain(nn.GRUCell(3, 4), torch.randn(3, 5, 3), [0, 0, 0])
    assert (page.pairs, page.padded_pairs) == (0, 15)
    assert "no row has a step" in str(page)


@pytest.mark.parametrize(
    "make", [lambda: throughtime.LSTMCell(4), lambda: throughtime.RNN(throughtime.GRUCell(4)).cell]
)
def test_a_cell_without_sizes_keeps_none(make: Callable[[], nn.Module]) -> None:
    cell = make()
    before = torch.random.get_rng_state()
    page = explain(cell, torch.randn(3, 5, 3), LENGTHS)
    assert page.backend == "native"
    assert any(map(nn.parameter.is_lazy, cell.parameters()))
    torch.random.set_rng_state(before)


def test_no_random_number_is_used_up_and_nothing_is_changed() -> None:
    dropping = throughtime.DropoutWrapper(
        throughtime.GRUCell(4, input_size=3), output_keep_prob=0.5, variational_recurrent=True
    )
    x = torch.randn(3, 5, 3, requires_grad=True)
    before = [p.clone() for p in dropping.parameters()]
    state, python = torch.random.get_rng_state(), random.getstate()
    explain(dropping, x, LENGTHS)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert random.getstate() == python
    assert all(map(torch.equal, before, dropping.parameters()))
    assert dropping.training
    assert x.grad is None


def test_numbers_of_the_inputs_are_never_seen() -> None:
    """NaN in every input changes nothing, and the call that follows finds the loop compiled."""
    seen = []

    def step(x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        if type(x) is Tensor:
            seen.append(x)
        return h + x, h + x

    x, start = torch.full((3, 5, 4), math.nan), torch.zeros(3, 4)
    page = explain(step, x, None, start)
    assert page.backend == "native"
    assert seen == []
    before = throughtime._pipeline.compilations()
    dynamic_rnn(step, x, None, start, backend="native")
    assert throughtime._pipeline.compilations() == before


def test_resets_are_part_of_the_step() -> None:
    reset = torch.zeros(3, 5, dtype=torch.bool)
    page = explain(nn.GRUCell(3, 4), torch.randn(3, 5, 3), reset=reset)
    assert page.backend == "native"


def test_attributes_that_a_run_leaves_alone_are_named() -> None:
    class Recorder(nn.Module):
        state_size = 3

        def __init__(self) -> None:
            super().__init__()
            self.spike = torch.zeros(1)

        def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            self.spike = x > h
            return h + x, h + x

    assert "spike" in str(explain(Recorder(), torch.randn(3, 5, 3)))
