"""Shares run once each, on several threads, beside PyTorch's own parallel work, from several callers, after a fork."""

import ctypes
import os
import signal
import sys
import threading
import time
from functools import cache
from pathlib import Path

import pytest
import torch

from throughtime.loop.native import threads
from throughtime.loop.native.ir import I64, PTR, define, new_module
from throughtime.loop.native.jit import CompiledModule, compile_module
from throughtime.loop.native.target import host_target
from throughtime.loop.native.threads import FIRST_ARGUMENT, define_worker, share_block

WAYS = ["run_shares", "_run_on_own_threads"]
SPINS = 2_000_000_000


@cache
def _machine_code() -> CompiledModule:
    target = host_target()
    module = new_module("shares", target)
    _define_count(module, target)
    _define_meet(module, target)
    return compile_module(module, target)


def _define_count(module, target) -> None:
    """counts[share] += share + 1"""
    e = define(module, "count_share", {"block": PTR, "share": I64}, target, internal=True)
    block, share = e.arguments
    counts = e.load_pointer(block, FIRST_ARGUMENT)
    e.store(e.add(e.load(counts, I64, share), e.add(share, 1)), counts, share)
    define_worker(module, target, "count", e.done())


def _define_meet(module, target) -> None:
    """Wait until all shares have come, or for a number of spins; counts[share] = how many had come."""
    e = define(module, "meet_share", {"block": PTR, "share": I64}, target, internal=True)
    block, share = e.arguments
    counts, shares = e.load_pointer(block, FIRST_ARGUMENT), e.load(block, I64, 1)
    come = e.offset(counts, shares, I64)
    e.b.atomic_rmw("add", come, e.integer(1), "seq_cst")
    spins = e.stack(I64, 1)
    e.store(e.integer(SPINS), spins)

    def alone():
        e.store(e.sub(e.load(spins, I64), 1), spins)
        now = e.b.load_atomic(come, "seq_cst", 8, typ=I64)
        return e.b.and_(e.compare("<", now, shares), e.compare(">", e.load(spins, I64), 0))

    e.while_(alone, lambda: None)
    e.store(e.b.load_atomic(come, "seq_cst", 8, typ=I64), counts, share)
    define_worker(module, target, "meet", e.done())


def _run(way: str, name: str, shares: int, n_threads: int) -> list[int]:
    counts = torch.zeros(shares + 1, dtype=torch.int64)
    block = share_block(shares, [counts.data_ptr()])
    getattr(threads, way)(_machine_code().address(name), ctypes.addressof(block), n_threads)
    return counts[:shares].tolist()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("n_threads", [1, 2, 3, 5])
def test_every_share_runs_once(way: str, n_threads: int) -> None:
    for shares in (0, 1, 2, 3, 17, 1000):
        assert _run(way, "count", shares, n_threads) == list(range(1, shares + 1))


@pytest.mark.parametrize("way", WAYS)
def test_shares_run_at_the_same_time(way: str) -> None:
    assert _run(way, "meet", 2, 2) == [2, 2]


@pytest.mark.parametrize("way", WAYS)
def test_beside_parallel_pytorch_operators(way: str) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        a = torch.randn(300, 300)
        want = a @ a
        for _ in range(20):
            assert torch.equal(a @ a, want)
            assert _run(way, "count", 5, 2) == [1, 2, 3, 4, 5]
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("way", WAYS)
def test_several_python_threads_call_at_once(way: str) -> None:
    wrong: list[list[int]] = []

    def caller(shares: int) -> None:
        for _ in range(100):
            got = _run(way, "count", shares, 2)
            if got != list(range(1, shares + 1)):
                wrong.append(got)

    callers = [threading.Thread(target=caller, args=(3 + i,)) for i in range(4)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    assert wrong == []


def test_without_openmp_our_own_threads_run_the_shares(monkeypatch) -> None:
    monkeypatch.setattr(threads, "_openmp_parallel", lambda: None)
    assert _run("run_shares", "meet", 2, 2) == [2, 2]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's list of mapped libraries")
def test_the_shares_run_on_the_openmp_library_that_pytorch_has_loaded() -> None:
    before = _openmp_libraries()
    parallel = threads._openmp_parallel()
    assert parallel is not None
    _run("run_shares", "count", 2, 2)
    assert _openmp_libraries().keys() == before.keys()
    address = ctypes.cast(parallel, ctypes.c_void_p).value
    owners = [path for path, places in before.items() if any(address in place for place in places)]
    assert len(owners) == 1
    assert Path(owners[0]).is_relative_to(Path(torch.__file__).parents[1])


def _openmp_libraries() -> dict[str, list[range]]:
    found: dict[str, list[range]] = {}
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "omp" in line.rsplit("/", 1)[-1]:
            start, stop = (int(number, 16) for number in line.split()[0].split("-"))
            found.setdefault(line.split()[-1], []).append(range(start, stop))
    return found


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_runs_all_shares_on_one_thread() -> None:
    assert _run("run_shares", "meet", 2, 2) == [2, 2]
    child = os.fork()
    if child == 0:
        right = _run("run_shares", "count", 3, 2) == [1, 2, 3]
        os._exit(0 if right and threads._is_forked else 1)
    assert _exit_code(child, seconds=30) == 0
    assert not threads._is_forked
    assert _run("run_shares", "meet", 2, 2) == [2, 2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_forked_in_the_middle_of_a_compilation_can_compile() -> None:
    stop = threading.Event()

    def keep_compiling() -> None:
        while not stop.is_set():
            _machine_code.__wrapped__()

    compiling = threading.Thread(target=keep_compiling)
    compiling.start()
    try:
        for _ in range(5):
            child = os.fork()
            if child == 0:
                _machine_code.__wrapped__()
                os._exit(0)
            assert _exit_code(child, seconds=30) == 0
    finally:
        stop.set()
        compiling.join()


def _exit_code(child: int, seconds: float) -> int:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError(f"the forked child hung for {seconds} s")
