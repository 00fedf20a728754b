"""Guarantee: inputs of `unroll_loss` may be mapped arrays or an iterator of chunks. No bit changes, none is held."""

import gc
import resource
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from throughtime import Recompute, SaveAll, SequenceError, Spill, SpillError, unroll_loss

STEPS = 700
CELL = nn.GRUCell(3, 5)
ROWS = {"one row": [STEPS], "dense": [STEPS] * 3, "ragged": [40, STEPS, 0, 333]}


def squared(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().mean(-1)


def data(rows: int, time_major: bool = False) -> tuple[Tensor, Tensor]:
    torch.manual_seed(7)
    sizes = (STEPS, rows) if time_major else (rows, STEPS)
    return torch.randn(*sizes, 3), torch.randn(*sizes, 5)


def trained(inputs: Any, targets: Any, lengths: list[int], **given: Any) -> list[Tensor]:
    """Losses, state and the weights' gradients."""
    given = {"backend": "native", "reduction": "none", **given}
    lengths_given = None if min(lengths) == STEPS else lengths
    losses, state = unroll_loss(CELL, inputs, targets, squared, lengths_given, **given)
    return [losses.detach(), state.detach(), *torch.autograd.grad(losses.sum() + state.sum(), list(CELL.parameters()))]


def mapped(tensor: Tensor, path: Path, mode: Any) -> np.ndarray:
    np.save(path, tensor.numpy())
    return np.load(path, mmap_mode=mode)


def chunks(x: Tensor, y: Tensor, axis: int) -> Iterator[tuple[Tensor, Tensor]]:
    sizes = [1, 31, 300, 0, STEPS - 332]
    return zip(x.split(sizes, axis), y.split(sizes, axis), strict=True)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("time_major", [False, True])
def test_no_bit_changes(rows: str, time_major: bool, tmp_path: Path) -> None:
    """The whole tensors, which want a gradient, are what all others are compared with."""
    lengths, axis = ROWS[rows], 0 if time_major else 1
    x, y = data(len(lengths), time_major)
    wanted = trained(x.clone().requires_grad_(), y, lengths, time_major=time_major)
    ways: dict[str, Callable[[], tuple[Any, Any]]] = {
        "tensors": lambda: (x, y),
        "arrays": lambda: (x.numpy(), y),
        "closed map": lambda: (mapped(x, tmp_path / "x.npy", "r"), mapped(y, tmp_path / "y.npy", "r")),
        "map as tensor": lambda: (torch.from_numpy(mapped(x, tmp_path / "z.npy", "c")), y),
        "chunks": lambda: (chunks(x, y, axis), None),
    }
    for way, make in ways.items():
        found = trained(*make(), lengths, time_major=time_major)
        assert all(map(torch.equal, found, wanted)), way


@pytest.mark.parametrize("memory", [SaveAll(), Recompute(64), Spill()], ids=str)
def test_every_policy(memory: Any) -> None:
    lengths = ROWS["ragged"]
    x, y = data(len(lengths))
    wanted = trained(x.clone().requires_grad_(), y, lengths)
    for inputs in ((x.numpy(), y.numpy()), (chunks(x, y, 1), None)):
        assert all(map(torch.equal, trained(*inputs, lengths, memory=memory), wanted))


@pytest.mark.parametrize("memory", [SaveAll(), Recompute(20), Spill()], ids=str)
def test_the_portable_backend(memory: Any) -> None:
    lengths = [10, 50, 0, 33]
    x, y = (t[:, :50].contiguous() for t in data(len(lengths)))
    wanted = trained(x.clone().requires_grad_(), y, lengths, backend="portable")
    for inputs in ((x.numpy(), y.numpy()), (zip(x.split(20, 1), y.split(20, 1)), None)):
        found = trained(*inputs, lengths, backend="portable", memory=memory)
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("backend", ["native", "portable"])
def test_without_gradients(backend: Any) -> None:
    x, y = (t[:, :50].contiguous() for t in data(3))
    with torch.no_grad():
        wanted = unroll_loss(CELL, x.clone(), y, squared, backend="native")[0]
        for inputs in ((x.numpy(), y.numpy()), (zip(x.split(20, 1), y.split(20, 1)), None)):
            found = unroll_loss(CELL, *inputs, squared, backend=backend)[0]
            torch.testing.assert_close(found, wanted)


def test_class_ids_and_structures_in_chunks() -> None:
    embedding, cell = nn.Embedding(4, 3), nn.GRUCell(4, 6)
    parameters = [*embedding.parameters(), *cell.parameters()]

    def step(x: dict[str, Tensor], h: Tensor) -> Tensor:
        return cell(torch.cat([embedding(x["word"]), x["level"].unsqueeze(-1)], -1), h)

    def loss(output: Tensor, label: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output, label, reduction="none")

    def gradients(inputs: Any, targets: Any) -> list[Tensor]:
        start = torch.zeros(2, 6)
        return list(torch.autograd.grad(unroll_loss(step, inputs, targets, loss, initial_state=start)[0], parameters))

    x, label = {"word": torch.randint(4, (2, 90)), "level": torch.randn(2, 90)}, torch.randint(6, (2, 90))
    parts = [({k: v[:, t : t + 20] for k, v in x.items()}, label[:, t : t + 20]) for t in range(0, 90, 20)]
    assert all(map(torch.equal, gradients(iter(parts), None), gradients(x, label)))
    parts[-1][1][0, 0] = 6
    with pytest.raises(IndexError, match=r"got .* to 6"):
        gradients(iter(parts), None)


class Noting(np.ndarray):
    """Notes how many steps are read at once."""

    seen: list[int]

    def __getitem__(self, place: Any) -> Any:
        part = super().__getitem__(place)
        Noting.seen.append(np.asarray(part).shape[1])
        return np.asarray(part)


@pytest.mark.parametrize(("backend", "steps"), [("native", STEPS), ("portable", 100)])
def test_a_range_of_steps_is_read_at_a_time(backend: Any, steps: int) -> None:
    x, y = (t[:, :steps] for t in data(8))
    Noting.seen = []
    unroll_loss(CELL, x.numpy().view(Noting), y, squared, backend=backend)[0].backward()
    assert sum(Noting.seen) >= 2 * steps, "the backward pass reads them again"
    assert max(Noting.seen) <= 64


def test_a_chunk_is_let_go_before_the_next_one() -> None:
    alive: list[weakref.ref] = []

    def read() -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(4):
            assert [reference() for reference in alive] == [None] * len(alive)
            chunk = torch.randn(2, 50, 3)
            alive.append(weakref.ref(chunk))
            yield chunk, torch.randn(2, 50, 5)
            del chunk

    loss, _ = unroll_loss(CELL, read(), None, squared)
    gc.collect()
    assert len(alive) == 4
    assert loss.isfinite()


def test_a_graph_that_is_kept_goes_back_twice() -> None:
    loss, _ = unroll_loss(CELL, chunks(*data(3), 1), None, squared, backend="native")
    first, second = (torch.autograd.grad(loss, list(CELL.parameters()), retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("which", [0, 1])
def test_what_is_changed_before_the_backward_pass(which: int) -> None:
    both = data(3)
    loss, _ = unroll_loss(CELL, *both, squared)
    both[which].zero_()
    with pytest.raises(SequenceError, match="inputs or targets were changed in place before the backward pass"):
        loss.backward()


def test_no_chunk() -> None:
    with pytest.raises(SequenceError, match=r"there is no chunk\. An iterator can be used once only"):
        unroll_loss(CELL, iter(()), None, squared)


def test_targets_beside_chunks() -> None:
    x, y = data(3)
    with pytest.raises(SequenceError, match="targets beside them must be None"):
        unroll_loss(CELL, chunks(x, y, 1), y, squared)


@pytest.mark.parametrize("chunk", [torch.zeros(2, 4, 3), (torch.zeros(2, 4, 3),), "ab"])
def test_a_chunk_that_is_no_pair(chunk: Any) -> None:
    with pytest.raises(SequenceError, match=r"each chunk is a pair \(inputs, targets\), chunk 0 is a"):
        unroll_loss(CELL, iter([chunk]), None, squared)


@pytest.mark.parametrize("bad", [torch.zeros(2, 4, 3, requires_grad=True), [1.0, 2.0], None])
def test_chunks_go_to_a_file(bad: Any) -> None:
    good = torch.zeros(2, 4, 3), torch.zeros(2, 4, 5)
    with pytest.raises(SequenceError, match="arrays that want no gradient, as they go to a file: in chunk 1, chunk"):
        unroll_loss(CELL, iter([good, (bad, good[1])]), None, squared)


@pytest.mark.parametrize("bad", [torch.zeros(3, 4, 3), torch.zeros(2, 4, 2), torch.zeros(2, 4, 3).double(), {}])
def test_chunks_of_several_kinds(bad: Any) -> None:
    good = torch.zeros(2, 4, 3), torch.zeros(2, 4, 5)
    rows = bad.shape[0] if isinstance(bad, Tensor) else 2
    with pytest.raises(SequenceError, match="chunks differ in their number of steps only"):
        unroll_loss(CELL, iter([good, (bad, torch.zeros(rows, 4, 5))]), None, squared)


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(SpillError, match=r"writing or reading the file in .* failed: File too large"):
            unroll_loss(CELL, chunks(*data(3), 1), None, squared, memory=Spill(str(tmp_path)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []
