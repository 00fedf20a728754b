"""What a cell closes over: found wherever it lies, read again at every call, with a gradient where it is trainable."""

import functools
import gc
import types
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from capture.agreement import assert_agrees, row
from throughtime import dynamic_rnn
from throughtime.capture import trace_step

H = 7
SCALE = torch.rand(H)
TABLES = types.SimpleNamespace(shift=torch.rand(H))


def scaled(x: Tensor) -> Tensor:
    return x * SCALE + TABLES.shift


def paths(cell: Any) -> list[str]:
    return [const.path for const in assert_agrees(cell, row(H), row(H), rows=(2,)).consts]


def test_parameters_buffers_and_attributes() -> None:
    class Cell(nn.Module):
        table = torch.rand(H)

        def __init__(self) -> None:
            super().__init__()
            self.maps = nn.ModuleList([nn.Linear(H, H, bias=False)])
            self.several = nn.ParameterDict({"a": torch.rand(H)})
            self.plain = [{"k": torch.rand(H)}]
            self.register_buffer("mean", torch.rand(H))

        def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            h = torch.tanh(self.maps[0](x) + h * self.several["a"] - self.mean + self.plain[0]["k"] * self.table)
            return h, h

    assert paths(Cell()) == ["cell.maps[0].weight", "cell.several.a", "cell.mean", "cell.plain[0]['k']", "cell.table"]


def test_closures_globals_defaults_and_partials() -> None:
    w = torch.rand(H, H, requires_grad=True)
    linear = nn.Linear(H, H)

    def step(v: Tensor, x: Tensor, h: Tensor, *, u: Tensor = torch.rand(H)) -> tuple[Tensor, Tensor]:  # noqa: B008
        h = torch.tanh(x @ w + linear(h) * v + scaled(h) * u)
        return h, h

    found = paths(functools.partial(step, torch.rand(H, requires_grad=True)))
    assert found == [
        "cell.func.<closure>.w",
        "cell.func.<closure>.linear.weight",
        "cell.func.<closure>.linear.bias",
        "cell.args[0]",
        f"{__name__}.SCALE",
        f"{__name__}.TABLES.shift",
        "cell.func.__kwdefaults__['u']",
    ]


def test_bound_methods_and_objects_of_other_classes() -> None:
    @dataclass
    class Weights:
        w: Tensor = field(default_factory=lambda: torch.rand(H, H, requires_grad=True))

    class Plain:
        __slots__ = ("weights",)

        def __init__(self) -> None:
            self.weights = {"in": [Weights()]}

        def step(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            h = torch.tanh(x @ self.weights["in"][0].w + h)
            return h, h

    assert paths(Plain().step) == ["cell.__self__.weights['in'][0].w"]


class Memory(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.memory = torch.rand(H)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        return x * self.memory, h


def test_what_is_put_in_its_place_is_read() -> None:
    cell = Memory()
    trace = trace_step(cell, row(H), row(H))
    cell.memory = torch.full((H,), 5.0)
    consts = trace.read_consts(cell)
    assert consts[0] is cell.memory
    assert trace.fits(consts)
    for other in (torch.rand(1), torch.rand(H).double(), torch.rand(H, requires_grad=True)):
        cell.memory = other
        assert not trace.fits(trace.read_consts(cell))


def test_gradients_of_what_is_trainable_and_of_nothing_else() -> None:
    frozen, buffer = nn.Parameter(torch.rand(H), requires_grad=False), torch.rand(H)
    plain, made = torch.rand(H, requires_grad=True), (torch.rand(H, requires_grad=True) * 2)
    whole = torch.arange(H)

    def step(x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        return x * frozen + buffer * h + plain * made + whole, h

    trace = assert_agrees(step, row(H), row(H))
    by_path = dict(zip([const.path.split(".")[-1] for const in trace.consts], trace.pair.d_consts, strict=True))
    assert {name: gradient is not None for name, gradient in by_path.items()} == {
        "frozen": False, "buffer": False, "plain": True, "made": True, "whole": False
    }  # fmt: skip
    described = trace.pair.forward.of_kind("const")
    assert [i.requires_grad for i in described] == [gradient is not None for gradient in trace.pair.d_consts]


def test_a_detached_const_has_no_gradient() -> None:
    w = torch.rand(H, H, requires_grad=True)
    trace = assert_agrees(lambda x, h: (x @ w.detach() + h @ w.data, h), row(H), row(H))
    assert trace.pair.d_consts == (None,)


def test_names_are_readable_and_unique() -> None:
    w = nn.ModuleDict({"a-b": nn.Linear(H, H), "a_b": nn.Linear(H, H)})
    trace = assert_agrees(lambda x, h: (w["a-b"](x) + w["a_b"](h), h), row(H), row(H))
    names = [i.name for i in trace.pair.forward.inputs]
    assert len(set(names)) == len(names)
    assert all(name.isidentifier() for name in names)


def test_a_tensor_without_a_path_is_kept_and_said_so() -> None:
    held = deque([torch.rand(H)])
    cell = lambda x, h: (x * held[0], h)  # noqa: E731
    trace = assert_agrees(cell, row(H), row(H), rows=(2,))
    assert [const.by_reference for const in trace.consts] == [True]
    assert "no attribute of the cell holds" in trace.consts[0].path
    assert trace.read_consts(cell)[0] is held[0]


def test_one_tensor_in_two_places_is_one_const() -> None:
    cell = Memory()
    cell.again = cell.memory
    assert len(trace_step(lambda x, h: (cell(x, h)[0] * cell.again, h), row(H), row(H)).consts) == 1


def test_a_trace_leaves_no_tensor_behind() -> None:
    """The graph that PyTorch makes of a step holds results that it saves: no ring of these may outlive the trace."""

    def step(x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        return torch.sigmoid(x + h), torch.exp(h - x) * torch.tanh(x)

    def shapes() -> int:
        gc.collect()
        return sum(isinstance(made, Tensor) and made.is_meta for made in gc.get_objects())

    before = shapes()
    trace_step(step, row(4), row(4))
    assert shapes() <= before


def test_a_checkpointed_step_reads_its_weights_anew() -> None:
    """Its gradient runs the step again, with the tensors that it closes over."""
    w = torch.randn(3, 3, requires_grad=True)

    def step(x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.utils.checkpoint.checkpoint(lambda x, h: torch.tanh(h @ w + x), x, h, use_reentrant=False)
        return h, h

    x, start = torch.randn(2, 5, 3), torch.randn(2, 3)
    gradients = []
    for backend in ("native", "portable"):
        for scale in (1.0, 0.5):
            with torch.no_grad():
                w.copy_(scale * torch.eye(3))
            outputs, _ = dynamic_rnn(step, x, None, start, backend=backend)
            gradients.append(torch.autograd.grad(outputs.sum(), w)[0])
    torch.testing.assert_close(gradients[:2], gradients[2:])
