"""Guarantee: a cell is compiled once for what its code depends on, and never for a number of steps, rows or lengths."""

import functools
import gc
import subprocess
import sys
import types
import warnings
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import throughtime
from throughtime import BackendWarning, _cache, _pipeline, dynamic_rnn
from throughtime._pipeline import compilations

X = torch.randn(3, 5, 3)
START = torch.zeros(3, 4)


def go(cell: Any, x: Any = X, *rest: Any, **options: Any) -> Any:
    return dynamic_rnn(cell, x, *rest, backend="native", **options)


def compiled_by(*calls: Callable[[], object]) -> list[int]:
    """How often each call compiles."""
    counts = []
    for call in calls:
        before = compilations()
        call()
        counts.append(compilations() - before)
    return counts


class Gain(nn.Module):
    """A cell with a Python number, a flag, and things it never reads."""

    state_size = 4

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(7, 4)
        self.gain, self.calls = 1.0, 0

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.linear(torch.cat([x, h], 1))) * self.gain
        return (2 * h if self.training else h), h


def test_steps_rows_lengths_and_layouts_compile_nothing() -> None:
    cell = Gain()
    packed = nn.utils.rnn.pack_padded_sequence(X, torch.tensor([5, 4, 1]), batch_first=True)
    jagged = torch.nested.nested_tensor([torch.randn(n, 3) for n in (2, 7)], layout=torch.jagged)
    counts = compiled_by(
        lambda: go(cell),
        lambda: go(cell, torch.randn(1, 1, 3)),
        lambda: go(cell, torch.randn(40, 9, 3)),
        lambda: go(cell, X, [5, 0, 2]),
        lambda: go(cell, X.transpose(0, 1), time_major=True),
        lambda: go(cell, packed),
        lambda: go(cell, jagged),
        lambda: go(cell, X, initial_state=torch.ones(3, 4, requires_grad=True)),
        lambda: go(cell, X, parallel_iterations=2),
    )
    assert counts == [1] + [0] * 8


def test_what_a_step_depends_on_compiles_once_each() -> None:
    cell = Gain()
    go(cell)

    def halve() -> None:
        cell.gain = 0.5

    def freeze() -> None:
        cell.linear.bias.requires_grad_(False)

    def resize() -> None:
        cell.linear = nn.Linear(9, 4)

    changes: list[tuple[Callable[[], object], Tensor]] = [
        (cell.eval, X),
        (halve, X),
        (freeze, X),
        (lambda: None, X.clone().requires_grad_()),
        (resize, torch.randn(3, 5, 5)),
        (cell.double, torch.randn(3, 5, 5).double()),
    ]
    for change, x in changes:
        change()
        assert compiled_by(lambda x=x: go(cell, x), lambda x=x: go(cell, x)) == [1, 0]
        torch.testing.assert_close(go(cell, x)[0], dynamic_rnn(cell, x, backend="portable")[0])


def test_a_mode_that_was_there_before_is_there_still() -> None:
    cell = Gain()
    go(cell)
    go(cell.eval())
    assert compiled_by(lambda: go(cell.train()), lambda: go(cell.eval())) == [0, 0]


def test_numbers_that_are_equal_and_of_other_types_are_told_apart() -> None:
    """1, 1.0 and True; 0.0 and -0.0; NaN, which equals nothing, is known again."""

    class Offset(Gain):
        def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            h = torch.tanh(self.linear(torch.cat([x, h], 1))) + self.gain
            return h, h

    cell = Offset()
    for value in (1, 1.0, True, 0.0, -0.0, float("nan")):
        cell.gain = value
        assert compiled_by(lambda: go(cell), lambda: go(cell)) == [1, 0], value


def test_what_the_code_never_reads_compiles_nothing() -> None:
    """As a counter of the training loop, on the model whose method is the step."""

    class Model(Gain):
        def step(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            return Gain.forward(self, x, h)

    model = Model()

    def call() -> object:
        model.calls += 1
        return go(model.step, X, None, START)

    assert compiled_by(call, call, call) == [1, 0, 0]


class Wide(nn.Module):
    """A cell that reads an attribute under a name it puts together."""

    state_size = 4

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.gain_0, self.gain_1 = nn.Linear(3, 4), 1.0, 0.5

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = self.linear(x) + h
        for i in range(2):
            h = h * getattr(self, f"gain_{i}")
        return h, h


def test_an_attribute_read_by_a_computed_name_counts() -> None:
    cell = Wide()
    go(cell)
    cell.gain_1 = 0.75
    torch.testing.assert_close(go(cell)[0], dynamic_rnn(cell, X, backend="portable")[0])


def helper(x: Tensor) -> Tensor:
    return torch.tanh(x)


def uses_helper(x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    h = helper(h + x.sum(-1, keepdim=True))
    return h, h


def test_a_function_that_is_defined_anew_is_traced_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a notebook, where the helper of a step is edited and its cell run again."""
    go(uses_helper, X, None, START)
    monkeypatch.setitem(globals(), "helper", torch.sigmoid)
    want = dynamic_rnn(uses_helper, X, None, START, backend="portable")[0]
    torch.testing.assert_close(go(uses_helper, X, None, START)[0], want)


def test_a_helper_of_pytorchs_that_gives_way_to_a_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """And back: what the name stood for at first is known again."""
    monkeypatch.setitem(globals(), "helper", torch.tanh)
    first = go(uses_helper, X, None, START)[0]
    monkeypatch.setitem(globals(), "helper", lambda v: v * 0.5)
    want = dynamic_rnn(uses_helper, X, None, START, backend="portable")[0]
    torch.testing.assert_close(go(uses_helper, X, None, START)[0], want)
    monkeypatch.setitem(globals(), "helper", torch.tanh)
    assert torch.equal(go(uses_helper, X, None, START)[0], first)


class Config:
    tau = 1.0


class OfAClass(nn.Module):
    """What it computes with stands in classes."""

    state_size = 4
    gain = 1.0

    def scaled(self, h: Tensor) -> Tensor:
        return h * self.gain

    @staticmethod
    def squashed(h: Tensor) -> Tensor:
        return torch.tanh(h)

    @property
    def shift(self) -> float:
        return 0.5

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = self.squashed(self.scaled(h) + x[:, :1] * Config.tau + self.shift)
        return h, h


@pytest.mark.parametrize(
    ("owner", "name", "value"),
    [
        (OfAClass, "gain", 0.3),
        (OfAClass, "scaled", lambda self, h: h / 3),
        (OfAClass, "squashed", staticmethod(torch.sin)),
        (OfAClass, "squashed", staticmethod(lambda h: h.cos())),
        (OfAClass, "shift", property(lambda self: 0.25)),
        (OfAClass, "forward", lambda self, x, h: (h + x[:, :1], h + 1)),
        (Config, "tau", 0.2),
    ],
)
def test_what_a_class_holds_counts(owner: type, name: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = OfAClass()
    before = go(cell)[0]
    assert compiled_by(lambda: go(cell)) == [0]
    monkeypatch.setattr(owner, name, value)
    want = dynamic_rnn(cell, X, backend="portable")[0]
    assert not torch.allclose(want, before)
    torch.testing.assert_close(go(cell)[0], want)


gain = ContextVar("gain", default=1.0)


def reads_a_context(x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    h = torch.tanh(h + gain.get() * x[:, :1])
    return h, h


def test_a_context_variable_is_seen_to_change() -> None:
    go(reads_a_context, X, None, START)
    token = gain.set(2.0)
    try:
        want = dynamic_rnn(reads_a_context, X, None, START, backend="portable")[0]
        torch.testing.assert_close(go(reads_a_context, X, None, START)[0], want)
    finally:
        gain.reset(token)


settings = types.ModuleType("settings")
settings.gain, settings.activation = 2.0, torch.tanh  # type: ignore[attr-defined]


def reads_settings(x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    h = settings.activation(h + x[:, :1]) * settings.gain
    return h, h


@pytest.mark.parametrize(("name", "value"), [("gain", 3.0), ("activation", torch.sigmoid)])
def test_what_a_module_of_the_users_holds_counts(name: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    go(reads_settings, X, None, START)
    monkeypatch.setattr(settings, name, value)
    want = dynamic_rnn(reads_settings, X, None, START, backend="portable")[0]
    torch.testing.assert_close(go(reads_settings, X, None, START)[0], want)


class Holder(nn.Module):
    """A tensor that is replaced, one in a list, and one in a slot of a plain object."""

    state_size = 4

    class Box:
        __slots__ = ("value",)

    def __init__(self) -> None:
        super().__init__()
        self.memory, self.several, self.box = torch.randn(4), [torch.randn(4)], Holder.Box()
        self.box.value = torch.randn(4)  # type: ignore[attr-defined]

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(h + x[:, :1] * self.memory + self.several[0] * self.box.value)  # type: ignore[attr-defined]
        return h, h


def test_a_tensor_that_is_replaced_is_read_again() -> None:
    cell = Holder()
    go(cell)

    def replace_all() -> None:
        cell.memory, cell.several[0] = torch.randn(4), torch.randn(4)
        cell.box.value = torch.randn(4)  # type: ignore[attr-defined]

    replace_all()
    assert compiled_by(lambda: go(cell)) == [0]
    torch.testing.assert_close(go(cell)[0], dynamic_rnn(cell, X, backend="portable")[0])


# --- cells that are made anew at each call


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.scale = nn.GRUCell(3, 4), 2.0

    def step(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = self.cell(x, h)
        return self.scale * h, h

    def by_method(self) -> object:
        return go(self.step, X, None, START)

    def by_closure(self) -> object:
        def step(x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            return self.step(x, h)

        return go(step, X, None, START)

    def by_lambda(self) -> object:
        return go(lambda x, h: self.step(x, h), X, None, START)

    def by_partial(self) -> object:
        return go(functools.partial(Model.step, self), X, None, START)


@pytest.mark.parametrize("way", ["by_method", "by_closure", "by_lambda", "by_partial"])
def test_a_step_made_anew_of_the_same_parts_is_known(way: str) -> None:
    call = getattr(Model(), way)
    assert compiled_by(call, call, call) == [1, 0, 0]


def test_a_step_made_anew_reads_the_tensors_it_closes_over_now() -> None:
    def call(weight: Tensor) -> tuple[Tensor, Tensor]:
        def step(x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            h = torch.tanh(x @ weight + h)
            return h, h

        torch.testing.assert_close(
            go(step, X, None, START)[0], dynamic_rnn(step, X, None, START, backend="portable")[0]
        )
        return X, X

    assert compiled_by(*[lambda: call(torch.randn(3, 4))] * 3) == [1, 0, 0]


def test_equal_layers_are_traced_each_and_share_their_machine_code() -> None:
    torch.manual_seed(0)
    first, second = nn.GRUCell(3, 4), nn.GRUCell(3, 4)
    loops = [loop_of(first), loop_of(second)]
    assert loops[0].kernel is loops[1].kernel
    assert not torch.equal(go(first)[0], go(second)[0])


def loop_of(cell: Any) -> Any:
    """The loop that a call compiles."""
    found = []
    with pytest.MonkeyPatch.context() as patch:
        native = _pipeline._native
        patch.setattr(_pipeline, "_native", lambda r, loop, consts: found.append(loop) or native(r, loop, consts))
        go(cell)
    return found[0]


# --- odd callables


class Slotted:
    """Neither hashable nor weakly referable."""

    __slots__ = ("gain", "weight")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self) -> None:
        self.weight, self.gain = torch.randn(3, 4), 1.0

    def __eq__(self, other: object) -> bool:
        raise AssertionError("a cell is known by its identity")

    def __call__(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(x @ self.weight + h) * self.gain
        return h, h


def test_a_cell_that_can_be_neither_hashed_nor_referred_to_weakly() -> None:
    cell = Slotted()
    assert compiled_by(lambda: go(cell, X, None, START), lambda: go(cell, X, None, START)) == [1, 0]
    cell.gain = 2.0
    want = dynamic_rnn(cell, X, None, START, backend="portable")[0]
    torch.testing.assert_close(go(cell, X, None, START)[0], want)


# --- what the cache holds


def test_a_cell_that_nobody_holds_goes_with_its_loops() -> None:
    gc.collect()
    before = len(_pipeline._cache)
    for make in (lambda: nn.GRUCell(3, 4), lambda: throughtime.LSTMCell(4), Holder, Gain):
        cell = make()
        go(cell)
        go(cell, X, reset=torch.zeros(3, 5, dtype=torch.bool), reset_state=None)
        watched = weakref.ref(cell)
        del cell
        gc.collect()
        assert watched() is None
    assert len(_pipeline._cache) == before


def test_a_model_goes_though_its_step_was_a_closure() -> None:
    model = Model()
    model.by_method(), model.by_closure(), model.by_lambda(), model.by_partial()
    watched = weakref.ref(model)
    del model
    gc.collect()
    assert watched() is None


def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cache, "MOST_CELLS", 3)
    cache: _cache.Cache[int] = _cache.Cache()
    cells = [Slotted() for _ in range(5)]
    for cell in cells:
        cache.entry(cell)
    assert len(cache) == 3
    kept = cache.entry(cells[2])
    cache.entry(Slotted())
    assert cache.entry(cells[2]) is kept, "what was used last stays"


def test_the_loops_of_one_cell_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cache, "MOST_OF_A_CELL", 2)
    entry: _cache.Entry[str] = _cache.Entry()
    entry.put("a", "loop of a")
    entry.put("b", "loop of b")
    assert entry.get("a") == "loop of a"
    entry.put("c", "loop of c")
    assert [entry.get(key) for key in "abc"] == ["loop of a", None, "loop of c"]


def test_a_cell_that_is_compiled_again_and_again_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pipeline, "MANY_COMPILATIONS", 2)
    cell = Gain()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        go(cell)
        cell.gain = 2.0
        go(cell)
    cell.gain = 3.0
    with pytest.warns(BackendWarning, match=r"again and again.*gain was 2\.0 and is 3\.0"):
        go(cell)
    cell.gain = 4.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        go(cell)


def test_the_first_cell_does_not_wait_for_pytorchs_compiler() -> None:
    """Its import takes longer than everything that is done here."""
    script = """
import sys, torch, throughtime
from torch import nn
x = torch.randn(2, 4, 3)
for cell in (nn.LSTMCell(3, 4), nn.GRUCell(3, 4), nn.RNNCell(3, 4), throughtime.LSTMCell(4), throughtime.GRUCell(4)):
    throughtime.dynamic_rnn(cell, x, [4, 2], backend="native")[0].sum().backward()
sys.exit("torch._dynamo" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
