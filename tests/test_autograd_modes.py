"""Guarantee: machine code is one node of PyTorch's graph, and behaves as any other under every mode of autograd."""

import copy
import io
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import throughtime
from throughtime import BackendError, BackendWarning, dynamic_rnn
from throughtime._pipeline import compilations

LENGTHS = [5, 2, 4]


def inputs(size: int = 3) -> Tensor:
    return torch.randn(3, 5, size, requires_grad=True)


def run(cell: nn.Module, x: Tensor, backend: str = "native") -> tuple[Tensor, Tensor]:
    return dynamic_rnn(cell, x, LENGTHS, backend=backend)  # type: ignore[arg-type]


def gradients(loss: Tensor, *wanted: Tensor, **options: bool) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, wanted, **options)


@pytest.fixture(scope="module")
def gru() -> nn.Module:
    torch.manual_seed(1)
    return nn.GRUCell(3, 4)


@pytest.fixture(scope="module")
def square() -> nn.Module:
    """A cell whose outputs may be its inputs."""
    torch.manual_seed(1)
    return nn.GRUCell(4, 4)


def agree(on: Callable[[str], tuple[Tensor, ...]]) -> None:
    """The native backend and the portable one."""
    for native, portable in zip(on("native"), on("portable"), strict=True):
        torch.testing.assert_close(native, portable)


# --- which gradients


def test_the_same_cell_twice_in_one_graph(square: nn.Module) -> None:
    x = inputs(4)

    def on(backend: str) -> tuple[Tensor, ...]:
        once, _ = run(square, x, backend)
        twice, _ = run(square, once + x, backend)
        return gradients((once * twice).sum(), x, *square.parameters())

    agree(on)


class Shared(nn.Module):
    """Two layers, one weight."""

    state_size = 4

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.a(x) + self.b(h))
        return h, h


def test_one_parameter_in_two_places_and_then_two() -> None:
    cell, x = Shared(), inputs(4)

    def on(backend: str) -> tuple[Tensor, ...]:
        outputs, _ = run(cell, x, backend)
        return (outputs.detach(), *gradients(outputs.square().sum(), *cell.parameters()))

    agree(on)
    cell.b.weight = nn.Parameter(torch.randn(4, 4))
    agree(on)
    cell.a.weight = cell.b.weight
    agree(on)


def test_frozen_parameters_and_frozen_again(gru: nn.Module) -> None:
    x, cell, before = inputs(), copy.deepcopy(gru), compilations()
    for frozen in ([], ["weight_ih"], ["weight_ih", "bias_hh"], [], ["weight_ih"]):
        for name, parameter in cell.named_parameters():
            parameter.requires_grad_(name not in frozen)
            parameter.grad = None
        run(cell, x)[0].sum().backward()
        assert [n for n, p in cell.named_parameters() if p.grad is None] == frozen
        live = [p for p in cell.parameters() if p.requires_grad]
        want = gradients(run(cell, x, "portable")[0].sum(), *live)
        for parameter, gradient in zip(live, want):
            torch.testing.assert_close(parameter.grad, gradient)
    assert compilations() - before == 3


def test_everything_frozen_but_the_inputs_and_nothing_at_all(gru: nn.Module) -> None:
    cell, x = copy.deepcopy(gru).requires_grad_(False), inputs()
    agree(lambda backend: gradients(run(cell, x, backend)[0].sum(), x))
    assert not run(cell, x.detach())[0].requires_grad


def test_gradients_of_a_part_of_the_results() -> None:
    cell, x = throughtime.LSTMCell(4, input_size=3), inputs()
    parts: list[Callable[[Tensor, throughtime.LSTMStateTuple], Tensor]] = [
        lambda outputs, state: outputs.sum(),
        lambda outputs, state: state.c.sum(),
        lambda outputs, state: state.h.square().sum(),
        lambda outputs, state: outputs[1, :2].sum(),
        lambda outputs, state: (outputs[:, -1] + state.c).sum(),
    ]
    for part in parts:

        def on(backend: str, part: Callable = part) -> tuple[Tensor, ...]:
            return gradients(part(*run(cell, x, backend)), x, *cell.parameters())

        agree(on)


def test_two_calls_share_a_state() -> None:
    """Back through time over two calls."""
    cell, x = throughtime.LSTMCell(4, input_size=3), inputs()

    def on(backend: str) -> tuple[Tensor, ...]:
        _, state = run(cell, x, backend)
        outputs, _ = dynamic_rnn(cell, x, LENGTHS, state, backend=backend)  # type: ignore[arg-type]
        return gradients(outputs.sum(), x, *cell.parameters())

    agree(on)


# --- modes


def test_no_grad_has_the_same_numbers_and_no_graph(gru: nn.Module) -> None:
    x = inputs()
    with torch.no_grad():
        outputs, state = run(gru, x)
    assert not outputs.requires_grad
    assert not state.requires_grad
    assert torch.equal(outputs, run(gru, x)[0])


def test_no_grad_keeps_nothing_for_a_backward_pass(gru: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    from throughtime.loop.native.kernel import NativeKernel

    monkeypatch.setattr(NativeKernel, "schedule", None)
    x = inputs()
    with torch.no_grad():
        run(gru, x)
    run(copy.deepcopy(gru).requires_grad_(False), x.detach())


def test_inference_mode_makes_inference_tensors(gru: nn.Module) -> None:
    with torch.inference_mode():
        x = torch.randn(3, 5, 3)
        outputs, _ = run(gru, x)
        assert outputs.is_inference()
    torch.testing.assert_close(outputs.clone(), run(gru, x.clone())[0])


def test_inference_tensors_are_inputs_like_others(gru: nn.Module) -> None:
    with torch.inference_mode():
        x = torch.randn(3, 5, 3)
    agree(lambda backend: gradients(run(gru, x, backend)[0].square().sum(), *gru.parameters()))


def test_a_cell_that_finds_its_sizes_in_inference_mode_can_be_trained() -> None:
    cell = throughtime.GRUCell(4)
    with torch.inference_mode():
        run(cell, torch.randn(3, 5, 3))
    run(cell, inputs())[0].sum().backward()
    assert all(p.grad is not None for p in cell.parameters())


def test_anomaly_mode_and_hooks_of_tensors(gru: nn.Module) -> None:
    cell, x, seen = copy.deepcopy(gru), inputs(), []
    for name, parameter in cell.named_parameters():
        parameter.register_hook(lambda gradient, name=name: seen.append(name))
    x.register_hook(lambda gradient: seen.append("x"))
    with torch.autograd.detect_anomaly(check_nan=True):
        run(cell, x)[0].sum().backward()
    assert sorted(seen) == ["bias_hh", "bias_ih", "weight_hh", "weight_ih", "x"]


# --- the graph's life


def test_backward_twice(gru: nn.Module) -> None:
    x = inputs()
    loss = run(gru, x)[0].square().sum()
    first = gradients(loss, x, *gru.parameters(), retain_graph=True)
    second = gradients(loss, x, *gru.parameters())
    assert all(map(torch.equal, first, second))
    with pytest.raises(RuntimeError, match="second time"):
        gradients(loss, x)


def test_a_second_derivative_names_the_backend_that_has_it(gru: nn.Module) -> None:
    x = inputs()
    (first,) = gradients(run(gru, x)[0].square().sum(), x, create_graph=True)
    with pytest.raises(BackendError, match=r"no second derivative.*backend='portable'"):
        gradients(first.sum(), x)


def test_a_derivative_by_what_the_gradient_was_given(gru: nn.Module) -> None:
    """The trick that makes forward derivatives of two backward ones must not give zeros."""
    x, v = inputs(), torch.ones(3, 5, 4, requires_grad=True)
    (first,) = gradients(run(gru, x)[0], x, grad_outputs=v, create_graph=True)  # type: ignore[arg-type]
    with pytest.raises(BackendError, match="second derivative"):
        gradients(first.sum(), v)


def test_the_portable_backend_has_second_derivatives(gru: nn.Module) -> None:
    cell, x = copy.deepcopy(gru).double(), inputs().detach().double().requires_grad_()

    def outputs(x: Tensor, *_: Tensor) -> Tensor:
        return run(cell, x, "portable")[0]

    assert torch.autograd.gradgradcheck(outputs, (x, *cell.parameters()), fast_mode=True)


def test_a_graph_that_is_made_and_never_differentiated_again(gru: nn.Module) -> None:
    x = inputs()
    (first,) = gradients(run(gru, x)[0].sum(), x, create_graph=True)
    (plain,) = gradients(run(gru, x)[0].sum(), x)
    assert torch.equal(first, plain)


def test_a_parameter_that_changes_before_the_backward_pass(gru: nn.Module) -> None:
    cell, x = copy.deepcopy(gru), inputs()
    loss = run(cell, x)[0].sum()
    with torch.no_grad():
        next(iter(cell.parameters())).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_an_output_that_is_kept_may_not_change(gru: nn.Module) -> None:
    x = inputs()
    outputs, _ = dynamic_rnn(gru, x, backend="native")  # dense: what the user gets is the kept tensor itself
    loss = outputs.mul_(2).sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


class Running(nn.Module):
    """A sum: nothing of it is needed for its gradient."""

    state_size = 4

    def forward(self, x: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        total = total + x
        return total * 3, total


def test_an_output_that_is_not_kept_may_change() -> None:
    x = inputs(4)

    def on(backend: str) -> tuple[Tensor, ...]:
        outputs, state = dynamic_rnn(Running(), x, backend=backend)  # type: ignore[arg-type]
        return gradients(outputs.mul_(2).square().sum() + state.mul_(5).sum(), x)

    agree(on)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoint(gru: nn.Module, reentrant: bool) -> None:
    x = inputs()
    plain = gradients(run(gru, x)[0].square().sum(), x, *gru.parameters())
    for parameter in gru.parameters():
        parameter.grad = None
    outputs = checkpoint(lambda x: run(gru, x)[0], x, use_reentrant=reentrant)
    outputs.square().sum().backward()
    for parameter, gradient in zip([x, *gru.parameters()], plain):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, gradient)
    gru.zero_grad()


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_around_the_call_that_compiles(reentrant: bool) -> None:
    """The trace is no part of the step: what it saves is not counted, and not seen by hooks."""
    cell, x = nn.RNNCell(3, 5), inputs()
    checkpoint(lambda x: run(cell, x)[0], x, use_reentrant=reentrant).sum().backward()  # type: ignore[union-attr]
    want = gradients(run(cell, x)[0].sum(), x)[0]
    assert x.grad is not None
    assert torch.equal(x.grad, want)


def test_checkpoint_draws_the_same_noise() -> None:
    cell, x = throughtime.DropoutWrapper(nn.GRUCell(3, 4), output_keep_prob=0.5), inputs()
    torch.manual_seed(3)
    plain = gradients(run(cell, x)[0].square().sum(), x)
    torch.manual_seed(3)
    outputs = checkpoint(lambda x: run(cell, x)[0], x, use_reentrant=False)
    assert torch.equal(gradients(outputs.square().sum(), x)[0], plain[0])  # type: ignore[union-attr]


def test_saved_tensors_go_through_hooks(gru: nn.Module) -> None:
    """As `torch.autograd.graph.save_on_cpu` and the like need it."""
    x, packed = inputs(), []

    def pack(tensor: Tensor) -> int:
        packed.append(tensor.clone())
        return len(packed) - 1

    want = gradients(run(gru, x)[0].square().sum(), x)
    with torch.autograd.graph.saved_tensors_hooks(pack, packed.__getitem__):
        loss = run(gru, x)[0].square().sum()
    assert torch.equal(gradients(loss, x)[0], want[0])


def test_a_cell_that_has_run_can_be_copied_and_sent(gru: nn.Module) -> None:
    x = inputs()
    run(gru, x)
    buffer = io.BytesIO()
    torch.save(gru, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(gru), torch.load(buffer, weights_only=False)):
        assert torch.equal(run(twin, x)[0], run(gru, x)[0])


# --- what other transforms see


def test_functional_transforms_are_refused_and_run_portably(gru: nn.Module) -> None:
    cell, x = copy.deepcopy(gru), inputs().detach()

    def loss(x: Tensor, backend: str) -> Tensor:
        return run(cell, x, backend)[0].square().sum()

    with pytest.raises(BackendError, match=r"torch\.func transform"):
        torch.func.grad(loss)(x, "native")
    with pytest.warns(BackendWarning, match=r"torch\.func transform"):
        found = torch.func.grad(loss)(x, "auto")
    torch.testing.assert_close(found, gradients(loss(x.requires_grad_(), "native"), x)[0])


def test_vmap_over_batches_runs_portably(gru: nn.Module) -> None:
    many = torch.randn(2, 3, 5, 3)
    found = torch.func.vmap(lambda x: dynamic_rnn(gru, x, backend="portable")[0])(many)
    torch.testing.assert_close(found[1], dynamic_rnn(gru, many[1], backend="native")[0])


def test_forward_derivatives_are_refused_and_run_portably(gru: nn.Module) -> None:
    x, tangent = inputs().detach(), torch.randn(3, 5, 3)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, tangent)
        with pytest.raises(BackendError, match="forward-mode"):
            run(gru, dual)
        outputs, _ = run(gru, dual, "portable")
        _, slope = torch.autograd.forward_ad.unpack_dual(outputs)
    step = 1e-3
    quotient = (run(gru, x + step * tangent)[0] - run(gru, x - step * tangent)[0]) / (2 * step)
    torch.testing.assert_close(slope, quotient, atol=1e-3, rtol=1e-3)


def test_gradients_in_batches_are_refused(gru: nn.Module) -> None:
    x = inputs()
    outputs, _ = run(gru, x)
    with pytest.raises(BackendError, match="batch of gradients"):
        gradients(outputs, x, grad_outputs=torch.randn(2, 3, 5, 4), is_grads_batched=True)  # type: ignore[arg-type]


def test_a_trace_of_torchs_own_records_operators(gru: nn.Module) -> None:
    x, model = inputs().detach(), throughtime.RNN(copy.deepcopy(gru))
    with pytest.warns(BackendWarning, match=r"torch\.jit\.trace"):
        traced = torch.jit.trace(model, x, check_trace=False)
    assert torch.equal(traced(2 * x)[0], dynamic_rnn(model.cell, 2 * x, backend="portable")[0])


# --- inside a compiled model, and in several processes


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.before, self.rnn, self.after = nn.Linear(3, 4), throughtime.RNN(nn.GRUCell(4, 4)), nn.Linear(4, 2)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        outputs, _ = self.rnn(torch.relu(self.before(x)), sequence_length=lengths)
        return self.after(outputs).square().sum()


def test_inside_a_compiled_model_no_number_of_steps_compiles_again() -> None:
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    model, counter = Classifier(), CompileCounter()
    compiled = torch.compile(model, backend=counter)
    frames, loops = [], []
    for steps in (4, 5, 6, 9, 20):
        x, lengths = torch.randn(2, steps, 3), torch.tensor([steps, 2])
        loss = compiled(x, lengths)
        torch.testing.assert_close(loss, model(x, lengths))
        loss.backward()
        frames.append(counter.frame_count)
        loops.append(compilations())
    assert frames[0] == 2, "one program before the loop and one after it"
    assert frames[1:] == frames[1:2] * 4, "the second number of steps makes the programs ready for all"
    assert loops == loops[:1] * 5
    torch._dynamo.reset()


def _train_in_parallel(rank: int, port: int, results: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", world_size=2, rank=rank)
    model = nn.parallel.DistributedDataParallel(Classifier())
    torch.manual_seed(5)
    x, lengths = torch.randn(4, 6, 3), torch.tensor([6, 2, 3, 5])
    for _ in range(2):
        model.zero_grad()
        model(x[rank::2], lengths[rank::2]).backward()
    torch.save([p.grad for p in model.parameters()], f"{results}/{rank}")
    torch.distributed.destroy_process_group()


def test_two_processes_average_their_gradients(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_train_in_parallel, (port, str(tmp_path)), nprocs=2)
    model = Classifier()
    torch.manual_seed(5)
    x, lengths = torch.randn(4, 6, 3), torch.tensor([6, 2, 3, 5])
    (model(x, lengths) / 2).backward()
    first, second = (torch.load(tmp_path / rank, weights_only=True) for rank in "01")
    for a, b, parameter in zip(first, second, model.parameters(), strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, parameter.grad)
