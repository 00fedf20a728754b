"""What a step must not do. Each refusal says what, where and what to do instead."""

import itertools
import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from capture.agreement import assert_agrees, row
from throughtime import BackendWarning, CaptureError, StateError, dynamic_rnn
from throughtime.capture import trace_step
from throughtime.capture.refusals import MISTAKES
from throughtime.capture.rowcount import RowCount, mark_rows, rows_are
from throughtime.capture.rules import RULES

H = 7
WEIGHT = torch.randn(H, H, requires_grad=True)
NORM = nn.BatchNorm1d(H)

Step = Callable[[Tensor, Tensor], Any]


def refused(function: Step, match: str) -> str:
    """What is said of a step that returns what the function returns, and the state."""
    with pytest.raises(CaptureError, match=match) as caught:
        trace_step(lambda x, h: (function(x, h), h), row(H), row(H))
    return str(caught.value)


BATCH_SIZE: dict[str, tuple[Step, str]] = {
    "branch": (lambda x, h: x if x.shape[0] > 4 else h, "the step compares 4 with the batch size"),
    "equal": (lambda x, h: x if x.size(0) == 1 else h, "the step compares 1 with the batch size"),
    "equal shapes": (lambda x, h: x if x.shape == (3, H) else h, "the step compares 3 with the batch size"),
    "root": (lambda x, h: h / x.size(0) ** 0.5, "the step computes with the batch size"),
    "float": (lambda x, h: h * float(x.shape[0]), "the step computes with the batch size"),
    "sum": (lambda x, h: h.new_zeros(x.shape[0] + 1), "the step computes with the batch size"),
    "square": (lambda x, h: h.new_zeros(x.shape[0] * x.shape[0]), "the step squares the batch size"),
    "half": (lambda x, h: h.new_zeros(x.shape[0] // 2), "the step divides by 2 the batch size"),
    "odd": (lambda x, h: x if x.shape[0] % 2 else h, "the step takes modulo 2 the batch size"),
    "number": (lambda x, h: h / x.size(0), "div cannot run row by row: it computes with the batch size"),
    "plain number": (lambda x, h: h * int(x.size(0)), "mul cannot run row by row: it computes with the batch size"),
    "filled": (lambda x, h: h + torch.full((H,), x.shape[0]), "full cannot run row by row: it computes with"),
}
MIXED = {
    "mean over rows": (lambda x, h: x - x.mean(0), "sum cannot run row by row: it reduces over the row axis"),
    "softmax over rows": (lambda x, h: x.softmax(0), "amax cannot run row by row: it reduces over the row axis"),
    "batch statistics": (lambda x, h: F.batch_norm(x, None, None, training=True), "call .eval\\(\\) on it"),
    "largest of all": (lambda x, h: x * x.max(), "max cannot run row by row: it reduces over"),
    "products of rows": (lambda x, h: (x @ x.T) @ h, "it multiplies values of all rows with values of all rows"),
    "sum of products": (lambda x, h: x @ (x.T @ h), "mm cannot run row by row: it sums over the row axis"),
    "running sum": (lambda x, h: x.cumsum(0), "cumsum cannot run row by row: it accumulates over the rows"),
    "running largest": (lambda x, h: x.cummax(0)[0], "cummax cannot run row by row: it accumulates over the rows"),
    "running log": (lambda x, h: x.logcumsumexp(0), "logcumsumexp cannot run row by row: it accumulates"),
    "sorted": (lambda x, h: x.sort(0)[0], "it sorts the rows"),
    "top": (lambda x, h: x + x.topk(1, 0)[0], "it takes the largest of the rows"),
    "median": (lambda x, h: x + x.median(0)[0], "it compares the rows"),
    "searched": (lambda x, h: x + x.argmax(0), "it searches among the rows"),
    "flipped": (lambda x, h: x.flip(0), "it reverses the rows"),
    "rolled": (lambda x, h: x.roll(1), "it rolls the rows into one another"),
    "rolled by one": (lambda x, h: x.roll(1, 0), "roll cannot run row by row: it takes some rows out"),
    "sliced": (lambda x, h: x + x[:2].sum(), "slice cannot run row by row: it takes some rows out of the batch"),
    "one row": (lambda x, h: x + x[0], "the step takes row 0 out of the batch"),
    "one row at a time": (lambda x, h: torch.stack([r * 2 for r in x]), "makes more than 10000 tensors"),
    "shuffled": (lambda x, h: x[torch.randperm(x.shape[0])], "no rule for this random operator"),
    "joined": (lambda x, h: torch.cat([x, h])[: len(x)], "it joins values along the row axis"),
    "cut by a view": (lambda x, h: x.reshape(-1, len(x)).T.reshape(len(x), -1), "which cuts the row axis"),
    "viewed away": (lambda x, h: (x[:, :, None] * x.T[None]).sum((1, 2)), "whose rows are not on the same axis"),
    "every row with every other": (lambda x, h: x.new_zeros(len(x), len(x)).sum(1), "has two axes of rows"),
    "numbered": (lambda x, h: x + torch.arange(len(x))[:, None], "computes with torch.arange\\(batch size\\)"),
    "spaced": (lambda x, h: x + torch.linspace(0, 1, len(x))[:, None], "linspace cannot run row by row: it numbers"),
    "resized": (
        lambda x, h: x + F.interpolate(x.T[None], scale_factor=2)[0, :, : len(x)].T,
        "it resizes an image along",
    ),
    "triangle": (lambda x, h: x.tril(), "it takes a triangle of the rows"),
    "diagonal": (lambda x, h: x + x.diagonal().sum(), "it takes the diagonal of the rows"),
    "diagonal written": (lambda x, h: torch.diagonal_scatter(x, torch.zeros(H)), "writes on the diagonal of the rows"),
    "windows": (lambda x, h: x + x.unfold(0, 2, 1).sum(), "it puts windows over the rows"),
    "convolved": (lambda x, h: F.conv1d(x.T[None], torch.ones(H, H, 1))[0].T, "it slides over the row axis"),
    "pooled": (lambda x, h: F.max_pool1d(x.T[None], 3, 1, 1)[0].T, "it works on images"),
    "rows by index": (
        lambda x, h: x + x[torch.tensor([0, 1])].sum(),
        "index cannot run row by row: it takes some rows by index",
    ),
    "rows chosen": (
        lambda x, h: x + x.index_select(0, torch.tensor([0])),
        "index_select cannot run row by row: it takes",
    ),
    "gathered": (lambda x, h: x.gather(0, x.argsort(1)), "gather cannot run row by row: it takes some rows by index"),
    "two indices": (lambda x, h: x[:, None, :][:, [0], [1]], "it indexes several axes at once"),
    "own index": (lambda x, h: x.index_select(1, x[:, 0].long())[:, :H], "its index differs from row to row"),
    "shared table written": (
        lambda x, h: x + torch.zeros(9).index_add(0, x[:, 0].long(), x[:, 0])[:H],
        "what all rows share",
    ),
    "shared entries written": (
        lambda x, h: x + torch.zeros(9).index_put((x[:, 0].long(),), x[:, 0])[:H],
        "index_put cannot run row by row: it writes by index what all rows share",
    ),
    "scattered over rows": (lambda x, h: x.scatter(0, x.argsort(1), x), "scatter cannot run row by row: it takes some"),
    "scattered with reduction": (
        lambda x, h: torch.scatter(x, 1, x.argsort(1), x, reduce="add"),
        "scatter with reduce= is not supported",
    ),
    "gathered from other rows": (
        lambda x, h: x[:, None].expand(-1, 2, -1).reshape(-1, H).gather(1, x[:, :1].long()),
        "must all have their rows on the same axis",
    ),
    "frequencies": (
        lambda x, h, table=nn.Embedding(9, H, scale_grad_by_freq=True): table(x[:, 0].long()),  # noqa: B008
        "counts the entries of the other rows",
    ),
    "no rule": (lambda x, h: torch.fft.rfft(x).real, "there is no rule for this operator on values of a row"),
    "rows from what is shared": (
        lambda x, h: torch.ops.aten.affine_grid_generator(
            torch.ones(1, 2, 3).expand(len(x), 2, 3), [len(x), 1, 2, 2], True
        ),
        "affine_grid_generator",
    ),
    "noise for all rows": (lambda x, h: x @ F.dropout(WEIGHT, 0.5), "one random value for all rows at each step"),
    "large table": (lambda x, h: x + torch.arange(9999.0)[:H], "it makes a table of 9999 numbers at each step"),
}


@pytest.mark.parametrize("name", BATCH_SIZE)
def test_the_batch_size_is_a_size_and_nothing_else(name: str) -> None:
    function, match = BATCH_SIZE[name]
    refused(function, match=match)


@pytest.mark.parametrize("name", MIXED)
def test_rows_do_not_meet(name: str) -> None:
    function, match = MIXED[name]
    refused(function, match=match)


def test_why_not_the_batch_size() -> None:
    refused(lambda x, h: x * len(x) if x.shape[0] == 2 else h, match="the loop drops finished rows as it goes")


def test_the_batch_size_may_be_a_size() -> None:
    def step(x: Tensor, h: Tensor) -> Tensor:
        assert x.shape == h.shape
        assert x.size(0) == len(h) == h.shape[0] >= 1
        assert x.shape[0] > 0 != x.shape[0]
        assert not x.shape[0] < 1
        assert not x.shape[0] <= 0
        assert x.shape[0] * 2 // 2 == x.shape[0]
        assert x.shape[0] * 6 % 3 == 0
        assert x.numel() // x.shape[0] == H
        return x + torch.zeros(x.shape[0] * 2, H).view(2, x.shape[0], H).sum(0) + h.new_ones(x.shape)

    assert_agrees(lambda x, h: (step(x, h), h), row(H), row(H), rows=(2,))


def test_outside_of_a_trace_it_is_an_ordinary_number() -> None:
    with rows_are(10):
        rows = mark_rows(torch.Size([20, 7]))[0]
        assert isinstance(rows, RowCount)
    assert rows + 1 > 4
    assert rows == float(rows) == 20
    assert (rows // 3, rows % 3, rows**2, rows * rows) == (6, 2, 400, 400)


def test_every_row_with_every_other_as_output() -> None:
    refused(lambda x, h: x @ h.T, match="holds an entry for every pair of rows")


def test_an_axis_as_long_as_the_rows_of_a_trace() -> None:
    table = torch.zeros(1, 1).expand(10_007, 1)
    refused(lambda x, h: x + table[0], match="with an axis of B, a size kept for tracing")


def test_the_line_is_the_users() -> None:
    def deep(x: Tensor) -> Tensor:
        return x.flip(0)  # here

    assert "return x.flip(0)  # here" in refused(lambda x, h: deep(x) * 2, match="reverses the rows")


def test_the_line_of_an_operator_that_writes_in_place() -> None:
    def deep(x: Tensor) -> Tensor:
        y = x.clone()
        y[:, 0] = 1
        return y.flip(0)  # here

    assert "# here" in refused(lambda x, h: deep(x) * 2, match="reverses the rows")


PYTHON = {
    "item": (lambda x, h: x if x.sum().item() > 0 else h, "it reads a number out of a tensor"),
    "truth": (lambda x, h: x if (x > 0).all() else h, "it reads a number out of a tensor"),
    "size of a choice": (lambda x, h: x[x > 0].sum() + h, "a tensor whose size depends on numbers"),
    "numpy": (lambda x, h: torch.from_numpy(x.detach().numpy()), "takes the numbers of a tensor out of PyTorch"),
    "a list": (lambda x, h: torch.tensor(x.tolist()), "takes the numbers of a tensor out of PyTorch"),
    "foreign code": (lambda x, h: x * x.data_ptr(), "takes the numbers of a tensor out of PyTorch"),
    "its own error": (lambda x, h: 1 // 0, "it raised ZeroDivisionError: integer"),
    "a tensor of rows": (lambda x, h: x * torch.randn(4, H), "one entry per row must be part of the inputs"),
}


@pytest.mark.parametrize("name", PYTHON)
def test_python_that_looks_at_numbers(name: str) -> None:
    function, match = PYTHON[name]
    message = refused(function, match=match)
    assert "1000003" not in message
    assert "10007" not in message


def test_closed_over_rows_are_told_of_row_consts() -> None:
    memory = torch.randn(4, H)
    message = refused(lambda x, h: x * memory, match="cannot be traced: it raised RuntimeError")
    assert "row_consts" in message


def test_torchscript() -> None:
    cell = torch.jit.script(nn.GRUCell(H, H))
    with pytest.raises(CaptureError, match="it runs TorchScript"):
        trace_step(cell, row(H), row(H))


WRITES = {
    "trainable": (lambda x, h: (WEIGHT.mul_(0.5), x)[1], "writes in place on a trainable tensor that it closes over"),
    "data": (lambda x, h: (WEIGHT.data.mul_(0.5), x)[1], "WEIGHT, but a step is a function of its input and state"),
    "part": (lambda x, h: (NORM.running_mean[:2].zero_(), x)[1], "NORM.running_mean, but a step is a function"),
    "statistics": (lambda x, h: NORM(x), "NORM.num_batches_tracked, but a step is a function"),
    "assigned": (lambda x, h: (setattr(WEIGHT, "data", WEIGHT * 2), x)[1], "the step assigns .data of a tensor"),
}


@pytest.mark.parametrize("name", WRITES)
def test_a_step_does_not_write_on_what_it_closes_over(name: str) -> None:
    function, match = WRITES[name]
    before = WEIGHT.detach().clone(), NORM.running_mean.clone()
    refused(function, match=match)
    assert torch.equal(WEIGHT, before[0])
    assert torch.equal(NORM.running_mean, before[1])


class Keeps(nn.Module):
    """Has a state of its own: `kind` says how."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.count, self.h, self.log = kind, 0, None, [torch.zeros(1)]
        self.register_buffer("mean", torch.zeros(H))

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        if self.kind == "count":
            self.count += 1
        elif self.kind == "attribute":
            self.h = x if self.h is None else self.h * 0.5 + x
            return self.h, state
        elif self.kind == "list":
            self.log.append(x)
            return x + self.log[-2].sum(1, keepdim=True) if len(self.log) > 2 else x, state
        elif self.kind == "buffer":
            self.mean = self.mean * 0.9 + x[:, :H]
            return x + self.mean, state
        return x, state


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        ("count", "the step changes cell.count, from 0 to 1"),
        ("attribute", "the step reads cell.h, which the step before wrote there"),
        ("list", "the step reads cell.log, which the step before wrote there"),
        ("buffer", "the step reads cell.mean, which the step before wrote there"),
    ],
)
def test_a_state_beside_the_state(kind: str, match: str) -> None:
    cell = Keeps(kind)
    before = (cell.count, cell.h, list(cell.log), cell.mean)
    with pytest.raises(CaptureError, match=match):
        trace_step(cell, row(H), row(H))
    assert (cell.count, cell.h, cell.log, cell.mean) == before


class Records(nn.Module):
    """Only writes: what it records says nothing of the step's result."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.all = None, []

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        self.last = x * 2
        self.all.append(h)
        return self.last + h, h


def test_what_is_only_written_is_left_alone() -> None:
    cell = Records()
    trace = trace_step(cell, row(H), row(H))
    assert trace.dropped == ("cell.all", "cell.last")
    assert (cell.last, cell.all) == (None, [])


class ClipsByNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, d_y: Tensor) -> Tensor:
        return d_y / d_y.norm()


class ReadsWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x @ WEIGHT

    @staticmethod
    def backward(ctx: Any, d_y: Tensor) -> Tensor:
        return d_y @ WEIGHT.T


stored_apply = ClipsByNorm.apply

GRADIENTS = {
    "of a row by the others": (
        lambda x, h: ClipsByNorm.apply(x + h),
        "gradient of one row is made from those of the other",
    ),
    "of a weight, not a sum": (
        lambda x, h: x @ ClipsByNorm.apply(WEIGHT),
        "not the sum of what each row and step gives",
    ),
    "of a weight read inside": (lambda x, h: ReadsWeight.apply(x), "reads a trainable tensor that is not among its"),
    "of a weight, past us": (lambda x, h: x @ stored_apply(WEIGHT), "its `apply` was stored in a variable"),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_custom_gradients_over_the_batch(name: str) -> None:
    function, match = GRADIENTS[name]
    with pytest.raises(CaptureError, match=match):
        trace_step(lambda x, h: ((y := function(x, h)), y), row(H), row(H))


def test_a_closed_over_tensor_that_is_not_dense() -> None:
    sparse = torch.eye(H).to_sparse()
    refused(lambda x, h: torch.sparse.mm(sparse, x.T).T, match="closes over a tensor that is not dense")


STATES = {
    "shape": (lambda x, h: (x, h[:, :3]), "state: expected float32\\[B, 7\\], got float32\\[B, 3\\]"),
    "dtype": (lambda x, h: (x, h.double()), "got float64\\[B, 7\\]"),
    "structure": (lambda x, h: (x, (h, h)), "of the structure of the one it gets"),
    "output without rows": (lambda x, h: (x.new_zeros(3), h), "output must be \\[B, ...\\], got float32\\[3\\]"),
}


@pytest.mark.parametrize("name", STATES)
def test_what_the_cell_returns(name: str) -> None:
    step, match = STATES[name]
    with pytest.raises(StateError, match=match):
        trace_step(step, row(H), row(H))


def test_numbers_from_numpy_are_part_of_the_step() -> None:
    table = np.arange(H, dtype=np.float32)
    trace = assert_agrees(lambda x, h: (x * torch.from_numpy(table), h), row(H), row(H), rows=(2,))
    assert [n.op for n in trace.pair.forward.nodes] == ["constant", "mul"]


@pytest.mark.parametrize("fault", MISTAKES, ids=lambda fault: fault.__name__)
def test_a_fault_of_a_rule_is_a_refusal(fault: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, "sinh", raising(fault))
    said = refused(lambda x, h: torch.sinh(x), r"a mistake in the compiler \(capture of sinh: .*; please report it")
    assert f"{fault.__name__}: " in said
    assert "torch.sinh(x)" in said


def raising(fault: type[Exception]) -> Callable[..., Any]:
    def broken(*_: Any, **__: Any) -> Any:
        raise fault("of ours")

    return broken


def test_a_fault_of_a_rule_costs_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, "sinh", raising(KeyError))
    x = torch.randn(2, 3, H)
    with pytest.warns(BackendWarning, match="a mistake in the compiler"):
        found, _ = dynamic_rnn(lambda x, h: (torch.sinh(x), h), x, initial_state=x[:, 0])
    torch.testing.assert_close(found, torch.sinh(x))


def test_a_fault_after_the_rules_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("throughtime.capture.trace.make_pair", lambda *_: {}["nothing"])
    refused(lambda x, h: x, r"a mistake in the compiler \(capture: KeyError")


@pytest.mark.parametrize("fault", MISTAKES, ids=lambda fault: fault.__name__)
@pytest.mark.filterwarnings("ignore::throughtime.BackendWarning")
def test_a_cells_own_error_passes_as_it_is(fault: type[Exception]) -> None:
    x = torch.randn(2, 3, H)
    with pytest.raises(fault, match=r"^'?of ours'?$"):
        dynamic_rnn(raising(fault), x, initial_state=x[:, 0])


PLAIN_NUMBERS: dict[str, Callable[[], float]] = {
    "random": random.random,
    "random.choice": lambda: random.choice([1.0, 2.0]),
    "numpy.random": np.random.rand,
    "numpy.random.randn": lambda: float(np.random.randn()),
}


@pytest.mark.parametrize("name", PLAIN_NUMBERS)
def test_numbers_drawn_in_python(name: str) -> None:
    said = refused(lambda x, h: x * PLAIN_NUMBERS[name](), match="the step draws a number from Python's module .*: all")
    assert f"module {'numpy.random' if 'numpy' in name else 'random'}," in said


@pytest.mark.parametrize("name", PLAIN_NUMBERS)
@pytest.mark.filterwarnings("ignore::throughtime.BackendWarning")
def test_a_run_draws_the_numbers_of_a_plain_loop(name: str) -> None:
    """The trace that was refused has drawn none."""
    draw, x, found = PLAIN_NUMBERS[name], torch.randn(2, 4, H), []
    for run in (
        lambda: dynamic_rnn(lambda x, h: (x * draw(), h), x, initial_state=x[:, 0])[0],
        lambda: torch.stack([x[:, t] * draw() for t in range(4)], 1),
    ):
        random.seed(1)
        np.random.seed(1)
        found.append(run())
    torch.testing.assert_close(*found)


CHANGING: dict[str, Callable[[], float]] = {
    "a clock": time.perf_counter,
    "an iterator": itertools.count(0.5).__next__,
    "an iterator of whole numbers": itertools.count(1).__next__,
    "a generator": np.random.default_rng(0).random,
    "a generator of Python's": random.Random(0).random,
}


@pytest.mark.parametrize("name", CHANGING)
def test_numbers_that_change_from_run_to_run(name: str) -> None:
    refused(
        lambda x, h: x * CHANGING[name](),
        match="another at each run .*, then .*, of a clock, an iterator or a generator",
    )


DEVICES: dict[str, tuple[Step, str]] = {
    "another": (lambda x, h: x + torch.zeros(H, device="mps"), "the step puts a tensor on mps, but machine code"),
    "none": (lambda x, h: x + torch.tensor([1.0] * H, device="meta"), "makes a tensor of numbers on device='meta'"),
    "closed over": (lambda x, h: x + ON_META, "computes on two devices, cpu and meta"),
}
ON_META = torch.empty(H, device="meta")


@pytest.mark.parametrize("name", DEVICES)
def test_other_devices(name: str) -> None:
    function, match = DEVICES[name]
    refused(function, match=match)


def test_the_step_is_told_that_its_tensors_are_on_the_cpu() -> None:
    def where(x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        assert (x.device, x.is_cpu, x.is_meta, x.is_cuda) == (torch.device("cpu"), True, False, False)
        return x * torch.tensor([2.0] * H, device=x.device) + x.new_tensor([1.0] * H).to(h.device), h.cpu()

    assert_agrees(where, row(H), row(H), rows=(2,))


def test_numbers_of_a_small_table() -> None:
    """Are known, until something is written on it."""

    def reads(x: Tensor, h: Tensor) -> Tensor:
        table = torch.tensor([2.0, 3.0])
        return x * float(table[1] - 1) * int(table.sum())

    def writes(x: Tensor, h: Tensor) -> Tensor:
        table = torch.tensor([2.0, 3.0])
        table[1] = x.detach()[:, 0].new_ones(()) * 5
        return x * float(table[1])

    assert_agrees(lambda x, h: (reads(x, h), h), row(H), row(H), rows=(2,))
    refused(writes, match="reads a number out of a tensor")


OWN_GENERATOR = torch.Generator().manual_seed(3)
OWN_DRAWS: dict[str, Step] = {
    "rand": lambda x, h: x + torch.rand(h.shape, generator=OWN_GENERATOR),
    "randn": lambda x, h: x + torch.randn(h.shape, generator=OWN_GENERATOR),
    "bernoulli": lambda x, h: x + torch.bernoulli(torch.full_like(h, 0.5), generator=OWN_GENERATOR),
    "normal": lambda x, h: x + torch.empty_like(h).normal_(generator=OWN_GENERATOR),
}


@pytest.mark.parametrize("name", OWN_DRAWS)
def test_a_generator_of_the_steps_own(name: str) -> None:
    """A plain loop draws from it step by step, which no noise that is keyed by row and step can repeat."""
    refused(lambda x, h: (OWN_DRAWS[name](x, h), h), match=f"{name}.* draws from a torch.Generator of its own")


DISTRIBUTIONS: dict[str, Step] = {
    "arguments": lambda x, h: torch.distributions.Normal(h, 1.0, validate_args=True).rsample(),
    "value": lambda x, h: WIDE.log_prob(x),
}
WIDE = torch.distributions.Normal(torch.zeros(H), 2.0, validate_args=True)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_checks_of_a_distribution(name: str) -> None:
    refused(DISTRIBUTIONS[name], "a check of torch.distributions reads a number .*validate_args=False")


def test_distributions_without_checks() -> None:
    assert_agrees(lambda x, h: (torch.distributions.Normal(h, 2.0, validate_args=False).log_prob(x), h), row(H), row(H))
