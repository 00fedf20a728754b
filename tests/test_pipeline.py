"""The pipeline's choices: what is unfit for machine code and why, what is said of it, and that errors leave nothing."""

import resource
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import throughtime
from throughtime import BackendError, BackendWarning, StateError, dynamic_rnn
from throughtime._pipeline import compilations

X = torch.randn(3, 5, 3)


def gru() -> nn.Module:
    return nn.GRUCell(3, 4)


def refused(cell: Any, x: Any, match: str, *rest: Any, **options: Any) -> Any:
    """By the native backend, by name; and what the portable one gives, which says why it runs."""
    with pytest.raises(BackendError, match=match):
        dynamic_rnn(cell, x, *rest, backend="native", **options)
    with pytest.warns(BackendWarning, match=match):
        found = dynamic_rnn(cell, x, *rest, **options)
    for a, b in zip(found, dynamic_rnn(cell, x, *rest, backend="portable", **options)):
        torch.testing.assert_close(a, b, equal_nan=True)
    return found


# --- unfit calls


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    outputs, _ = refused(gru().to(dtype), X.to(dtype), f"inputs holds {dtype}")
    assert outputs.dtype == dtype


def add(x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    h = h + x.to(h.dtype)
    return h, h


def test_complex_numbers() -> None:
    refused(
        add, X.to(torch.complex64), r"inputs holds torch\.complex64", None, torch.zeros(3, 3, dtype=torch.complex64)
    )
    refused(add, X, r"state holds torch\.complex64", None, torch.zeros(3, 3, dtype=torch.complex64))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16])
def test_small_whole_numbers(dtype: torch.dtype) -> None:
    refused(add, torch.ones(3, 5, 3, dtype=dtype), f"inputs holds {dtype}", None, torch.zeros(3, 3))


class Kind(Tensor):
    """A tensor with operators of its own."""


def test_tensor_subclasses() -> None:
    refused(gru(), X.as_subclass(Kind), "state is a Kind|inputs is a Kind")


def test_a_negative_view() -> None:
    x = torch.randn(3, 5, 3, dtype=torch.complex64).conj().imag.transpose(0, 1)
    assert x.is_neg()
    state = torch.randn(3, 3, dtype=torch.complex64).conj().imag
    refused(add, X, "state is a view that stands for the negative", None, state)


def test_hooks_on_a_part_and_on_everything() -> None:
    cell = throughtime.MultiRNNCell([gru(), nn.GRUCell(4, 4)])
    calls = []
    hook = cell.cells[1].register_forward_hook(lambda *_: calls.append(1))
    refused(cell, X, "the GRUCell in the cell has hooks")
    assert calls
    hook.remove()
    dynamic_rnn(cell, X, backend="native")
    everywhere = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        refused(gru(), X, "a global module hook")
    finally:
        everywhere.remove()


def test_a_dispatch_mode_sees_the_operators() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False), pytest.raises(BackendError, match="torch dispatch mode"):
        dynamic_rnn(gru(), X, backend="native")
    cell = nn.RNNCell(3, 4)
    with FlopCounterMode(display=False) as counter, pytest.warns(BackendWarning, match="torch dispatch mode"):
        dynamic_rnn(cell, X)
    assert counter.get_total_flops() >= 15 * 2 * 4 * (3 + 4)


def test_a_default_device() -> None:
    with torch.device("meta"), pytest.raises(BackendError, match="set_default_device"):
        dynamic_rnn(gru().to_empty(device="cpu"), X, backend="native")


def test_shapes_without_numbers_run_portably_and_say_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outputs, state = dynamic_rnn(gru().to("meta"), X.to("meta"))
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fake, _ = dynamic_rnn(gru(), mode.from_tensor(X), None, mode.from_tensor(torch.zeros(3, 4)))
    assert (outputs.device.type, outputs.shape, state.shape) == ("meta", (3, 5, 4), (3, 4))
    assert fake.shape == (3, 5, 4)
    with pytest.raises(BackendError, match="inputs is on meta"):
        dynamic_rnn(gru().to("meta"), X.to("meta"), backend="native")


def test_a_parameter_that_moves_after_it_was_traced() -> None:
    cell = gru()
    dynamic_rnn(cell, X, backend="native")
    cell.weight_hh.data = cell.weight_hh.data.to(torch.bfloat16)
    with pytest.raises(BackendError):
        dynamic_rnn(cell, X, backend="native")
    cell.to("meta")
    with pytest.raises(BackendError, match="two devices, cpu and meta"):
        dynamic_rnn(cell, X, backend="native")


def test_a_loop_inside_a_step_runs_natively_though_the_outer_one_cannot() -> None:
    inner = gru()

    class Outer(nn.Module):
        state_size = 4

        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            _, h = dynamic_rnn(self.inner, x, initial_state=h)
            return h, h

    x = torch.randn(3, 5, 2, 3)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        outputs, _ = dynamic_rnn(Outer(), x)
    assert len(told) == 1, "of the outer loop; the inner one is seen without numbers, and then runs natively"
    h = torch.zeros(3, 4)
    for t in range(5):
        h = dynamic_rnn(inner, x[:, t], initial_state=h, backend="portable")[1]
        torch.testing.assert_close(outputs[:, t], h)


# --- what is said


class Branch(nn.Module):
    """Refused: a branch on numbers."""

    state_size = 3

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = h + x if bool(x.sum() > 0) else h - x
        return h, h


def test_a_cell_is_warned_of_once() -> None:
    cell = Branch()
    with pytest.warns(BackendWarning, match="(?s)traced once for all numbers.*Say backend='portable'") as told:
        dynamic_rnn(cell, X)
    assert told[0].filename == __file__, "where the user called"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dynamic_rnn(cell, X)
        dynamic_rnn(cell.eval(), X.double())
        dynamic_rnn(Branch(), X, backend="portable")
    with pytest.warns(BackendWarning):
        dynamic_rnn(Branch(), X)


def test_a_refused_cell_is_traced_once() -> None:
    cell = Branch()
    with pytest.warns(BackendWarning):
        dynamic_rnn(cell, X)
    before = compilations()
    dynamic_rnn(cell, X)
    assert compilations() == before


def test_the_native_error_names_the_reason_and_the_remedy() -> None:
    with pytest.raises(BackendError, match=r"(?s)cannot run this cell: .*traced once.*backend='auto' or 'portable'"):
        dynamic_rnn(Branch(), X, backend="native")


# --- errors leave nothing


class Fails(nn.Module):
    """Raises at first, when it has already begun to change things."""

    state_size = 4

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.broken, self.trail = nn.Linear(3, 4), True, []

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.linear(x) + h)
        if self.broken:
            self.trail.append(h)
            self.memory = h
            raise LookupError("the cell's own trouble")
        return h, h


def test_an_error_of_the_cell_leaves_no_state_behind() -> None:
    cell = Fails()
    modes = (torch.is_grad_enabled(), torch._C._len_torch_dispatch_stack(), torch._C._len_torch_function_stack())
    with pytest.raises(BackendError, match="the cell's own trouble"):
        dynamic_rnn(cell, X, backend="native")
    assert cell.trail == []
    assert not hasattr(cell, "memory")
    assert modes == (
        torch.is_grad_enabled(),
        torch._C._len_torch_dispatch_stack(),
        torch._C._len_torch_function_stack(),
    )
    assert torch.autograd.Function.__dict__["apply"].__func__.__module__.startswith("torch")
    cell.broken = False
    outputs, _ = dynamic_rnn(cell, X, backend="native")
    torch.testing.assert_close(outputs, dynamic_rnn(cell, X, backend="portable")[0])


def test_an_error_of_the_cell_is_its_own_when_it_runs() -> None:
    with pytest.warns(BackendWarning), pytest.raises(LookupError, match="the cell's own trouble"):
        dynamic_rnn(Fails(), X)


def test_an_interrupt_leaves_no_lock_and_no_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    from throughtime import _pipeline

    cell = nn.RNNCell(3, 7)
    with monkeypatch.context() as patch:
        patch.setattr(_pipeline, "make_plan", lambda pair: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            dynamic_rnn(cell, torch.randn(3, 5, 3), backend="native")
    torch.testing.assert_close(dynamic_rnn(cell, X, backend="native")[0], dynamic_rnn(cell, X, backend="portable")[0])


def test_a_state_error_is_an_error_and_no_refusal() -> None:
    with pytest.raises(StateError):
        dynamic_rnn(lambda x, h: (x, h[:, :1]), X, None, torch.zeros(3, 4))


# --- sizes found before the loop


def unsized_cells() -> dict[str, Callable[[], nn.Module]]:
    return {
        "plain": lambda: throughtime.LSTMCell(4),
        "layers": lambda: throughtime.MultiRNNCell([throughtime.GRUCell(4), throughtime.LSTMCell(3)]),
        "variational": lambda: throughtime.DropoutWrapper(
            throughtime.LSTMCell(4), input_keep_prob=0.5, variational_recurrent=True, input_size=3
        ),
        "torch's own": lambda: Lazy(),
    }


class Lazy(nn.Module):
    state_size = 4

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.dropout = nn.LazyLinear(4), nn.Dropout(0.5)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.dropout(self.linear(torch.cat([x, h], -1))))
        return h, h


@pytest.mark.parametrize("kind", unsized_cells())
def test_a_cell_that_finds_its_sizes_runs_natively_at_its_first_call(kind: str) -> None:
    cell = unsized_cells()[kind]()
    frozen = next(iter(cell.children()), None)
    if frozen is not None:
        frozen.eval()
    flags = {name: module.training for name, module in cell.named_modules()}
    outputs, _ = dynamic_rnn(cell, X, [5, 2, 0], backend="native")
    assert outputs.shape[:2] == (3, 5)
    assert {name: module.training for name, module in cell.named_modules()} == flags
    assert all(p.requires_grad for p in cell.parameters())


def test_sizing_reads_no_number_and_draws_no_noise() -> None:
    nan = torch.full((3, 5, 3), float("nan"))
    torch.manual_seed(1)
    cell = Lazy()
    dynamic_rnn(cell, nan, [0, 0, 1], backend="native")
    torch.manual_seed(1)
    twin = Lazy()
    with torch.no_grad():
        twin.eval()(X[:1, 0], torch.zeros(1, 4))
    assert all(map(torch.equal, cell.parameters(), twin.parameters()))


# --- memory


def test_no_call_leaves_memory_behind() -> None:
    """`benchmarks/no_leak.py` does 10,000 calls; this would see a leak of half a kilobyte a call and more."""
    cell = throughtime.LSTMCell(16, input_size=8)

    def call(k: int) -> None:
        rows, steps = 1 + k % 7, 1 + (k * 13) % 40
        x = torch.randn(rows, steps, 8)
        outputs, _ = dynamic_rnn(cell, x, [1 + (k + r) % steps for r in range(rows)], backend="native")
        if k % 2:
            outputs.sum().backward()
            cell.zero_grad()

    for k in range(300):
        call(k)
    before = resident_bytes()
    for k in range(500):
        call(k)
    assert resident_bytes() - before < 1 << 20


def resident_bytes() -> int:
    try:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * resource.getpagesize()
    except FileNotFoundError:
        pytest.skip("the system does not tell")
