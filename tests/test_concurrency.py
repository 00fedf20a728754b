"""Guarantee: calls from several threads, and from forked processes, give what a call alone gives."""

import os
import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

import throughtime
from throughtime import dynamic_rnn
from throughtime._pipeline import compilations

LENGTHS = [7, 2, 5]


def step_of(cell: nn.Module, x: Tensor) -> list[Tensor]:
    """Outputs and gradients."""
    outputs, _ = dynamic_rnn(cell, x, LENGTHS, backend="native")
    return [outputs.detach(), *torch.autograd.grad(outputs.square().sum(), list(cell.parameters()))]


def at_once(*works: Callable[[], list[Tensor]]) -> list[list[Tensor]]:
    """Each on a thread of its own, started together."""
    results: list[list[Tensor] | BaseException | None] = [None] * len(works)
    start = threading.Barrier(len(works))

    def run(place: int) -> None:
        start.wait()
        try:
            results[place] = works[place]()
        except BaseException as error:  # handed on below
            results[place] = error

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = []
    for result in results:
        if isinstance(result, BaseException):
            raise result
        assert result is not None
        found.append(result)
    return found


def test_the_first_calls_of_one_cell_race() -> None:
    cell, x = throughtime.LSTMCell(5, input_size=3), torch.randn(3, 7, 3)
    before = compilations()
    results = at_once(*[lambda: step_of(cell, x)] * 4)
    assert compilations() - before == 1
    want = step_of(cell, x)
    for result in results:
        assert all(map(torch.equal, result, want))


def test_different_cells_at_once() -> None:
    x = torch.randn(3, 7, 3)
    cells = [throughtime.LSTMCell(4, input_size=3), nn.GRUCell(3, 6), nn.RNNCell(3, 5)]
    results = at_once(*[lambda cell=cell: step_of(cell, x) for cell in cells])
    for cell, result in zip(cells, results, strict=True):
        assert all(map(torch.equal, result, step_of(cell, x)))


def test_many_calls_of_a_compiled_cell_at_once() -> None:
    cell = nn.GRUCell(3, 4)
    inputs = [torch.randn(3, 7, 3) for _ in range(4)]
    wants = [step_of(cell, x) for x in inputs]

    def many(x: Tensor) -> list[Tensor]:
        for _ in range(15):
            result = step_of(cell, x)
        return result

    for result, want in zip(at_once(*[lambda x=x: many(x) for x in inputs]), wants, strict=True):
        assert all(map(torch.equal, result, want))


class Unrolled(torch.utils.data.Dataset):
    """A data set that runs the library where it is asked."""

    def __init__(self, cell: nn.Module, x: Tensor) -> None:
        self.cell, self.x = cell, x

    def __len__(self) -> int:
        return 4

    def __getitem__(self, place: int) -> Tensor:
        with torch.no_grad():
            return dynamic_rnn(self.cell, self.x + place, LENGTHS, backend="native")[0]


@pytest.fixture
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.usefixtures("_two_threads")
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("compiled", [False, True], ids=["compiled in the child", "compiled in the parent"])
def test_in_a_forked_worker_of_a_data_loader(workers: int, compiled: bool) -> None:
    """The parent has run on all its threads before."""
    cell, x = nn.GRUCell(3, 4), torch.randn(3, 7, 3)
    _ = torch.randn(400, 400) @ torch.randn(400, 400)
    data = Unrolled(cell, x)
    if compiled:
        step_of(cell, x)
    loader = torch.utils.data.DataLoader(data, 2, num_workers=workers, multiprocessing_context="fork", timeout=60)
    got = torch.cat(list(loader))
    torch.testing.assert_close(got, torch.stack([data[place] for place in range(4)]))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_fork_while_another_thread_compiles() -> None:
    """The child finds no lock taken by a thread that it does not have."""
    cells, x = [throughtime.LSTMCell(units, input_size=3) for units in (4, 5, 6)], torch.randn(3, 7, 3)
    compiling = threading.Thread(target=lambda: [step_of(cell, x) for cell in cells])
    compiling.start()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with torch.no_grad():
                dynamic_rnn(nn.GRUCell(3, 4), x, LENGTHS, backend="native")
            code = 0
        finally:
            os._exit(code)
    watch = threading.Timer(60, os.kill, (child, 9))
    watch.start()
    _, status = os.waitpid(child, 0)
    watch.cancel()
    compiling.join()
    assert status == 0
