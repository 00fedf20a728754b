"""A cell stays the same cell: copied, pickled, saved, loaded, parametrized, hooked, before and after its first call."""

import copy
import multiprocessing

import pytest
import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrizations

from cells.spawned import parameter_dtypes, step_values
from throughtime._nested import leaves
from throughtime.cells import (
    BasicLSTMCell,
    BasicRNNCell,
    DropoutWrapper,
    GRUCell,
    LSTMCell,
    MultiRNNCell,
    ResidualWrapper,
    RNNCell,
)

MAKERS = {
    "basic_rnn": lambda size: BasicRNNCell(4, "relu", input_size=size),
    "basic_lstm": lambda size: BasicLSTMCell(4, input_size=size),
    "lstm": lambda size: LSTMCell(4, True, 0.5, num_proj=2, proj_clip=0.3, input_size=size),
    "gru": lambda size: GRUCell(4, input_size=size),
    "stack": lambda size: MultiRNNCell(
        [LSTMCell(4, input_size=size), ResidualWrapper(GRUCell(4, input_size=None if size is None else 4))]
    ),
    "dropout": lambda size: DropoutWrapper(GRUCell(4, input_size=size), 0.5, 0.5, 0.5).eval(),
}
KINDS = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


def step(cell: RNNCell, x: torch.Tensor) -> list[torch.Tensor]:
    return leaves(cell(x, cell.initial_state(len(x), x.dtype)))


def assert_same(a: list[torch.Tensor], b: list[torch.Tensor]) -> None:
    assert len(a) == len(b)
    assert all(torch.equal(x, y) for x, y in zip(a, b))


@KINDS
def test_deepcopy_of_a_sized_cell(make) -> None:
    cell, x = make(3), torch.randn(2, 3)
    twin = copy.deepcopy(cell)
    assert_same(step(cell, x), step(twin, x))
    with torch.no_grad():
        next(twin.parameters()).add_(1.0)
    assert not torch.equal(next(twin.parameters()), next(cell.parameters()))


@KINDS
def test_deepcopy_of_an_unsized_cell(make) -> None:
    cell, x = make(None), torch.randn(2, 3)
    twin = copy.deepcopy(cell)
    step(cell, x)
    assert any(is_lazy(weight) for weight in twin.parameters())
    step(twin, torch.randn(2, 5))
    twin = copy.deepcopy(cell)
    assert_same(step(cell, x), step(twin, x))


@KINDS
def test_state_dict_into_an_unsized_cell(make) -> None:
    cell, other, x = make(3), make(None), torch.randn(2, 3)
    other.load_state_dict(cell.state_dict())
    assert_same(step(cell, x), step(other, x))


@KINDS
def test_a_sized_cell_has_no_hooks_left(make) -> None:
    loaded, called = make(None), make(None)
    loaded.load_state_dict(make(3).state_dict())
    step(called, torch.randn(2, 3))
    for cell in (make(3), loaded, called):
        for module in cell.modules():
            assert not module._forward_pre_hooks
            assert not module._load_state_dict_pre_hooks


@KINDS
def test_state_dict_of_an_unsized_cell(make) -> None:
    cell, other = make(None), make(None)
    other.load_state_dict(cell.state_dict())
    step(other, torch.randn(2, 3))
    assert list(make(3).state_dict()) == list(cell.state_dict())


@KINDS
def test_state_dict_between_sized_cells(make) -> None:
    cell, other, x = make(3), make(3), torch.randn(2, 3)
    other.load_state_dict(cell.state_dict())
    assert_same(step(cell, x), step(other, x))


@KINDS
def test_dtype_set_before_the_first_call(make) -> None:
    cell = make(None).double()
    assert all(leaf.dtype == torch.float64 for leaf in step(cell, torch.randn(2, 3).double()))


@KINDS
def test_an_optimizer_made_before_the_first_call_trains(make) -> None:
    cell = make(None)
    optimizer = torch.optim.SGD(cell.parameters(), 0.1)
    x = torch.randn(2, 3)
    before = step(cell, x)[0]
    before.square().sum().backward()
    optimizer.step()
    assert not torch.equal(before, step(cell, x)[0])


@KINDS
def test_data_parallel_replication_of_a_sized_cell(make) -> None:
    cell = make(None)
    step(cell, torch.randn(2, 3))
    for module in cell.modules():
        assert type(module._replicate_for_data_parallel()) is type(module)


def test_data_parallel_replication_of_an_unsized_cell() -> None:
    with pytest.raises(RuntimeError, match="DataParallel"):
        BasicRNNCell(3)._replicate_for_data_parallel()


def test_pickling_to_a_spawned_worker() -> None:
    x = torch.randn(2, 3)
    sized = [make(3) for make in MAKERS.values()]
    unsized = [make(None).double() for make in MAKERS.values()]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        for cell in sized:
            expected = [leaf.detach().flatten().tolist() for leaf in step(cell, x)]
            assert pool.apply(step_values, (cell, x)) == expected
        for cell in unsized:
            assert set(pool.apply(parameter_dtypes, (cell,))) == {"torch.float64"}
            shapes = [len(leaf.flatten()) for leaf in step(copy.deepcopy(cell), x.double())]
            assert [len(values) for values in pool.apply(step_values, (cell, x.double()))] == shapes


OWNERS = {
    "basic_rnn": lambda cell: cell,
    "basic_lstm": lambda cell: cell,
    "lstm": lambda cell: cell,
    "gru": lambda cell: cell.gates,
    "stack": lambda cell: cell.cells[0],
    "dropout": lambda cell: cell.cell.candidate,
}


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("called", [False, True], ids=["input_size", "called"])
def test_weight_norm(kind: str, called: bool) -> None:
    """Weight norm leaves the function as it is and trains its magnitude and direction."""
    cell, x = MAKERS[kind](None if called else 3), torch.randn(2, 3)
    before = step(cell, x)
    owner = parametrizations.weight_norm(OWNERS[kind](cell), "kernel")
    after = step(cell, x)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(before, after))
    after[0].sum().backward()
    assert all(weight.grad is not None for weight in owner.parametrizations.kernel.parameters())
    twin = copy.deepcopy(cell)
    assert_same(step(cell, x), step(twin, x))
    twin.load_state_dict(cell.state_dict())


@pytest.mark.parametrize("kind", MAKERS)
def test_spectral_norm(kind: str) -> None:
    cell, x = MAKERS[kind](3).train(), torch.randn(2, 3)
    owner = parametrizations.spectral_norm(OWNERS[kind](cell), "kernel", n_power_iterations=30)
    step(cell, x)
    assert torch.linalg.matrix_norm(owner.eval().kernel, 2).item() == pytest.approx(1.0, abs=0.02)


def test_a_parametrized_kernel_is_computed_once_a_step() -> None:
    class Count(nn.Module):
        calls = 0

        def forward(self, kernel: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return kernel

    for cell in (BasicRNNCell(4, input_size=3), LSTMCell(4, input_size=3), BasicLSTMCell(4, input_size=3)):
        counter = Count()
        nn.utils.parametrize.register_parametrization(cell, "kernel", counter, unsafe=True)
        counter.calls = 0
        step(cell, torch.randn(2, 3))
        assert counter.calls == 1


def test_reset_parameters_goes_through_a_parametrization() -> None:
    cell = parametrizations.weight_norm(BasicRNNCell(4, input_size=3), "kernel")
    before = cell.kernel.detach().clone()
    cell.reset_parameters()
    assert not torch.allclose(before, cell.kernel)
    assert cell.kernel.abs().max() <= (6 / 11) ** 0.5


def test_parametrizing_an_unsized_cell_is_refused_by_pytorch() -> None:
    with pytest.raises(RuntimeError, match="Call `forward` to initialize"):
        parametrizations.weight_norm(BasicRNNCell(4), "kernel")


@KINDS
@pytest.mark.parametrize("size", [None, 3], ids=["unsized", "sized"])
def test_forward_hooks(make, size) -> None:
    cell, seen = make(size), []
    cell.register_forward_pre_hook(lambda module, args: (2 * args[0], *args[1:]))
    cell.register_forward_hook(lambda module, args, result: seen.append(result[0]))
    plain = copy.deepcopy(cell)
    plain._forward_pre_hooks.clear()
    x = torch.randn(2, 3)
    first = step(cell, x)
    assert torch.equal(seen[0], first[0])
    plain = make(None)
    plain.load_state_dict(cell.state_dict())
    assert_same(first, step(plain, 2 * x))


@KINDS
def test_backward_hooks(make) -> None:
    cell, seen = make(3), []
    cell.register_full_backward_hook(lambda module, grad_in, grad_out: seen.append(grad_out[0]))
    x = torch.randn(2, 3, requires_grad=True)
    step(cell, x)[0].sum().backward()
    assert torch.equal(seen[0], torch.ones_like(seen[0]))


def test_an_unsized_cell_prints_and_a_sized_one_shows_its_shapes() -> None:
    cell = LSTMCell(4)
    assert "kernel [?]" in repr(cell)
    step(cell, torch.randn(2, 3))
    assert "kernel [7, 16], bias [16]" in repr(cell)
