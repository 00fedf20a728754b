"""The spill file and its faults: a clear error, nothing left behind, and training goes on."""

import errno
import gc
import os
import resource
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from throughtime import Spill, SpillError, dynamic_rnn
from throughtime.loop.spill import SpillFile

CELL = nn.LSTMCell(4, 16)


def train(directory: Path, backend: Any = "native", steps: int = 300, rows: int = 8) -> torch.Tensor:
    torch.manual_seed(0)
    x = torch.randn(rows, steps, 4, requires_grad=True)
    outputs, _ = dynamic_rnn(CELL, x, memory=Spill(str(directory)), backend=backend)
    return torch.autograd.grad(outputs.square().sum(), x)[0]


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("throughtime.plan.memory.SEGMENT_BYTES", 1000)


@pytest.fixture
def file_limit() -> Iterator[None]:
    """No file grows beyond 100 KB, as on a full disk. (Python ignores SIGXFSZ.)"""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_was_written_is_read(tmp_path: Path) -> None:
    file = SpillFile(0, str(tmp_path))
    written = {k: {"a": torch.randn(k, 3), "b": torch.arange(k), "c": torch.rand(2, k) < 0.5} for k in range(20)}
    for key, tensors in written.items():
        file.write(key, tensors)
    for key in (3, 0, 19, 3):
        file.prefetch(key)
        found = file.read(key)
        assert all(torch.equal(found[name], tensor) for name, tensor in written[key].items())


def test_the_file_has_no_name_and_no_other_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    unlink = os.unlink
    monkeypatch.setattr(os, "unlink", lambda path: (seen.append(os.stat(path)), unlink(path)))
    file = SpillFile(100_000, str(tmp_path))
    assert [stat.S_IMODE(found.st_mode) for found in seen] == [0o600]
    assert list(tmp_path.iterdir()) == []
    found = os.fstat(file._file.descriptor)
    assert found.st_nlink == 0
    assert found.st_blocks * 512 >= 100_000, "its space is reserved"


def test_the_file_closes_with_the_graph(tmp_path: Path) -> None:
    def open_files() -> list[str]:
        links = (os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd"))
        return [link for link in links if link.startswith(str(tmp_path))]

    outputs = dynamic_rnn(CELL, torch.randn(2, 50, 4), memory=Spill(str(tmp_path)), backend="native")[0]
    assert len(open_files()) == 1
    outputs.sum().backward()
    del outputs
    deadline = time.monotonic() + 30  # the thread that read last may hold the file for a moment
    while open_files() and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.01)
    assert open_files() == []


@pytest.mark.parametrize("backend", ["native", "portable"])
@pytest.mark.parametrize("place", ["missing", "a_file", "a_file/below"])
def test_no_such_directory(tmp_path: Path, place: str, backend: Any) -> None:
    (tmp_path / "a_file").write_text("")
    with pytest.raises(SpillError, match=r"cannot make a file in .*: (No such|Not a) .*Name a directory that exists"):
        train(tmp_path / place, backend)
    assert torch.equal(train(tmp_path, backend), train(tmp_path, backend))


@pytest.mark.usefixtures("file_limit")
def test_no_room_is_said_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(SpillError, match=r"has no room for the [0-9]+ bytes of this call: File too large"):
        train(tmp_path)
    assert train(tmp_path, steps=10).isfinite().all()


@pytest.mark.usefixtures("file_limit")
def test_full_on_the_way(tmp_path: Path) -> None:
    """The portable backend does not know what it will save."""
    with pytest.raises(SpillError, match=r"writing or reading the file in .* failed: File too large"):
        train(tmp_path, "portable", steps=20, rows=128)
    assert train(tmp_path, "portable", steps=10).isfinite().all()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_a_full_disk(tmp_path: Path) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(tmp_path)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"mounting is not allowed here: {mounted.stderr.decode()}")
    try:
        with pytest.raises(SpillError, match=r"has no room for .*No space left"):
            train(tmp_path)
        assert os.statvfs(tmp_path).f_bfree > 0, "what was reserved is given back"
        assert train(tmp_path, steps=10).isfinite().all()
    finally:
        gc.collect()
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


@pytest.mark.usefixtures("small_segments")
@pytest.mark.parametrize("name", ["preadv", "pwrite"])
def test_a_fault_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    wanted = train(tmp_path)
    whole, calls = getattr(os, name), []

    def failing(*given: Any) -> int:
        calls.append(given)
        if len(calls) == 8:
            raise OSError(errno.EIO, "Input/output error")
        return whole(*given)

    with monkeypatch.context() as patch:
        patch.setattr(os, name, failing)
        with pytest.raises(SpillError, match=r"writing or reading the file in .* failed: Input/output error"):
            train(tmp_path)
    assert len(calls) >= 8
    assert torch.equal(train(tmp_path), wanted)


@pytest.mark.usefixtures("small_segments")
def test_short_reads_and_writes_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = train(tmp_path)
    pwrite, preadv = os.pwrite, os.preadv
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: pwrite(file, data[: len(data) // 2 + 1], at))
    monkeypatch.setattr(os, "preadv", lambda file, parts, at: preadv(file, [parts[0][: len(parts[0]) // 2 + 1]], at))
    assert torch.equal(train(tmp_path), wanted)


def test_a_file_that_ends_early(tmp_path: Path) -> None:
    file = SpillFile(0, str(tmp_path))
    file.write("a", {"t": torch.ones(1000)})
    file._wait()
    os.ftruncate(file._file.descriptor, 100)
    with pytest.raises(SpillError, match="failed: it ended early"):
        file.read("a")


KILLED = """
import os, signal, sys, torch, throughtime
from throughtime.loop import spill
read, count = os.preadv, 0
def dying(*given):
    global count
    count += 1
    if count == 3:
        print(os.listdir(sys.argv[1]), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    return read(*given)
os.preadv = dying
cell = torch.nn.LSTMCell(4, 16)
outputs, _ = throughtime.dynamic_rnn(cell, torch.randn(8, 300, 4), memory=throughtime.Spill(sys.argv[1]))
outputs.sum().backward()
"""


def test_killed_in_the_backward_pass(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert done.stdout.strip() == "[]", "the file has no name while it is in use"
    assert list(tmp_path.iterdir()) == []


def test_the_default_is_the_directory_for_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(SpillError, match=r"cannot make a file in .*gone"):
        dynamic_rnn(CELL, torch.randn(2, 5, 4), swap_memory=True, backend="native")
