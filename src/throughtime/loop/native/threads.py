"""A function in machine code and its shares of work -> the threads that are awake already.

After a parallel PyTorch operator the idle threads of its OpenMP pool spin for milliseconds, which would keep a core
from threads of our own. So the shares run on that very pool, through `GOMP_parallel` of the OpenMP library that PyTorch
has loaded. Where there is none (macOS, Windows), they run on a small pool of Python threads; ctypes releases the
interpreter lock.

An OpenMP runtime may give fewer threads than asked, so a thread never *is* a share: whoever shows up draws tickets
from the block of arguments until none is left.

    block    i64 next ticket, i64 number of shares, then the arguments, 8 bytes each
"""

import ctypes
import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from llvmlite import ir

from throughtime.loop.native.ir import I64, PTR, define
from throughtime.loop.native.target import Target

__all__ = ["FIRST_ARGUMENT", "define_worker", "run_shares", "share_block"]

# Where the arguments start in a block, in steps of 8 bytes.
FIRST_ARGUMENT = 2

_Worker = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_GompParallel = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)


def share_block(shares: int, arguments: Sequence[int]) -> ctypes.Array:
    """A block of pointers and integers for one call; keep it alive until `run_shares` returns."""
    return (ctypes.c_int64 * (FIRST_ARGUMENT + len(arguments)))(0, shares, *arguments)


def define_worker(module: ir.Module, target: Target, name: str, body: ir.Function) -> ir.Function:
    """Write `void name(ptr block)`, which calls `void body(ptr block, i64 share)` for each ticket that it draws."""
    e = define(module, name, {"block": PTR}, target)
    block = e.arguments[0]
    shares = e.load(block, I64, 1)

    def draw() -> ir.Instruction:
        return e.b.atomic_rmw("add", block, e.integer(1), "monotonic")

    slot = e.stack(I64, 1)

    def is_left() -> ir.Instruction:
        e.store(draw(), slot)
        return e.compare("<", e.load(slot, I64), shares)

    e.while_(is_left, lambda: e.call(body, [block, e.load(slot, I64)]))
    return e.done()


def run_shares(worker: int, block: int, n_threads: int) -> None:
    """Call the worker at address `worker` on up to `n_threads` threads, all with the same block, and wait for all.

    A forked child runs on the calling thread: its parent's threads did not come along, and OpenMP waits for them.
    """
    if n_threads <= 1 or _is_forked:
        _Worker(worker)(block)
        return
    parallel = _openmp_parallel()
    if parallel is None:
        _run_on_own_threads(worker, block, n_threads)
    else:
        parallel(worker, block, n_threads, 0)


@functools.cache
def _openmp_parallel() -> Callable | None:
    """`GOMP_parallel` as PyTorch's own libraries see it: a lookup among what they have loaded, which loads nothing."""
    if not hasattr(os, "RTLD_NOLOAD"):
        return None
    torch_libraries = ctypes.CDLL(torch._C.__file__, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
    try:
        entry = torch_libraries.GOMP_parallel
    except AttributeError:
        return None
    return ctypes.cast(entry, _GompParallel)


def _run_on_own_threads(worker: int, block: int, n_threads: int) -> None:
    call = _Worker(worker)
    helpers = [_own_threads().submit(call, block) for _ in range(n_threads - 1)]
    call(block)
    # All tickets are drawn by now. A helper that has not started need not; one that has may still be at work.
    for helper in helpers:
        if not helper.cancel():
            helper.result()


@functools.cache
def _own_threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="throughtime")


_is_forked = False


def _remember_fork() -> None:
    global _is_forked
    _is_forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_remember_fork)
