"""How near do our matrix products come to PyTorch's, on one thread?

    OMP_NUM_THREADS=1 python benchmarks/microkernel.py [--double | --bfloat16] [--avx2] [--repeats 15]

Ours and `torch.mm` take turns in one process; medians of processor time, so that other work on the machine disturbs
less. `packing` is the time of `pack_b` as a share of one product: weights are packed once per call, not per step.
"""

import argparse
import ctypes
import statistics
import time
from collections.abc import Callable

import torch

from throughtime.loop.native.amx import AMX_SCRATCH, amx_library, amx_packed_size, emit_amx
from throughtime.loop.native.gemm import emit_products, outer_scratch, packed_size, products_library
from throughtime.loop.native.ir import F32, F64, new_module
from throughtime.loop.native.jit import compile_module
from throughtime.loop.native.target import host_target

I, P = ctypes.c_int64, ctypes.c_void_p
FLOPS_PER_TURN = 1e8
# rows, k, n; the first are an LSTM of 256 units with 256 inputs (x and h together, and apart), then the tables' others.
PRODUCTS = [
    (32, 512, 1024),
    (32, 256, 1024),
    (64, 256, 1024),
    (32, 128, 512),
    (64, 512, 2048),
    (32, 1024, 256),
    (75, 150, 600),
    (512, 256, 1024),
]
FEW_ROWS = [(rows, 256, 1024) for rows in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 16)] + [(1, 128, 512)]
# pairs, m, n
OUTERS = [(1024, 256, 1024), (1024, 512, 1024), (2048, 512, 2048), (1024, 150, 600), (512, 64, 512), (28, 28, 150)]


class Ours:
    """The compiled functions for one element type. Those for bfloat16 run on AMX tiles, and read and write float32."""

    def __init__(self, target, dtype: torch.dtype) -> None:
        self.target, self.dtype = target, dtype
        self.on_tiles = dtype is torch.bfloat16
        self.element, self.stored = (F64, torch.float64) if dtype is torch.float64 else (F32, torch.float32)
        library = amx_library(target) if self.on_tiles else products_library(target, self.element)
        name = ("amx_{}_" if self.on_tiles else "{}_") + ("f32" if self.element is F32 else "f64")
        self.pack_b = library.function(name.format("pack_b"), I, I, P, I, I, P)
        self.product = library.function(name.format("product"), I, I, I, P, I, P, P, I, P, I)
        outer = (I, I, P, I, P, I, P) if self.on_tiles else (I, I, I, P, I, P, I, P, I, P)
        self.outer = library.function(name.format("outer"), *outer)
        size = AMX_SCRATCH if self.on_tiles else outer_scratch(target, self.element)
        self.scratch = torch.empty(size, dtype=self.stored)

    def packed_size(self, k: int, n: int) -> int:
        return amx_packed_size(k, n) if self.on_tiles else packed_size(k, n, self.target, self.element)

    def random(self, *size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The same numbers for us and for PyTorch."""
        numbers = torch.randn(*size, dtype=self.dtype)
        return numbers.to(self.stored), numbers.clone()


def median_seconds(works: list[Callable[[], object]], flops: float, repeats: int) -> list[float]:
    """Median processor time of one call of each work, all taking turns."""
    calls = max(1, int(FLOPS_PER_TURN / flops))
    seconds: list[list[float]] = [[] for _ in works]
    for turn in range(repeats + 1):
        for work, taken in zip(works, seconds, strict=True):
            start = time.thread_time()
            for _ in range(calls):
                work()
            if turn:
                taken.append((time.thread_time() - start) / calls)
    return [statistics.median(taken) for taken in seconds]


def compare_product(ours: Ours, rows: int, k: int, n: int, repeats: int) -> str:
    """One line: C = A @ B."""
    (a, left), (w, right), (c, theirs) = ours.random(rows, k), ours.random(k, n), ours.random(rows, n)
    packed = torch.empty(ours.packed_size(k, n), dtype=ours.stored)
    pack = (k, n, w.data_ptr(), n, 1, packed.data_ptr())
    ours.pack_b(*pack)
    call = (rows, k, n, a.data_ptr(), k, packed.data_ptr(), c.data_ptr(), n, 0, 0)
    flops = 2.0 * rows * k * n
    works = [lambda: ours.product(*call), lambda: torch.mm(left, right, out=theirs), lambda: ours.pack_b(*pack)]
    mine, mkl, packing = median_seconds(works, flops, repeats)
    return f"{line('product', (rows, k, n), flops, mine, mkl)}   packing {packing / mine:6.2f}"


def compare_outer(ours: Ours, p: int, m: int, n: int, repeats: int) -> str:
    """One line: C += A^T @ G."""
    (a, left), (g, right), (c, theirs) = ours.random(p, m), ours.random(p, n), ours.random(m, n)
    factor = torch.tensor([m, a.data_ptr(), m, c.data_ptr(), n])
    call = (p, m, n, a.data_ptr(), m, g.data_ptr(), n, c.data_ptr(), n, ours.scratch.data_ptr())
    if ours.on_tiles:
        call = (p, n, g.data_ptr(), n, ours.scratch.data_ptr(), 1, factor.data_ptr())
    flops = 2.0 * p * m * n
    works = [lambda: ours.outer(*call), lambda: theirs.addmm_(left.t(), right)]
    return line("outer", (p, m, n), flops, *median_seconds(works, flops, repeats))


def line(name: str, shape: tuple[int, ...], flops: float, mine: float, theirs: float) -> str:
    """What both reached, and the ratio."""
    sizes = " x ".join(f"{size:4}" for size in shape)
    reached, rival = flops / mine / 1e9, flops / theirs / 1e9
    return f"{name:8} {sizes}: {reached:6.1f} GFLOP/s, torch {rival:6.1f}, {reached / rival:5.2f} x"


def compile_seconds(target, ours: Ours) -> float:
    """Processor time to emit and compile all products for one element type."""
    start = time.process_time()
    module = new_module("products", target)
    emit_amx(module, target) if ours.on_tiles else emit_products(module, target, ours.element)
    compile_module(module, target)
    return time.process_time() - start


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--double", dest="dtype", action="store_const", const=torch.float64, default=torch.float32)
    kind.add_argument("--bfloat16", dest="dtype", action="store_const", const=torch.bfloat16, help="on AMX tiles")
    parser.add_argument("--avx2", action="store_true", help="without anything wider than AVX2")
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    target = host_target().restricted_to_avx2() if options.avx2 else host_target()
    if options.dtype is torch.bfloat16 and not target.has_amx_bf16:
        parser.error("this machine has no AMX tiles, or the system does not permit them")
    ours = Ours(target, options.dtype)
    print(f"{target.cpu}, {target.lanes(32)} x float32, tile {target.tile(32)}, {ours.dtype}")
    for shape in PRODUCTS + FEW_ROWS:
        print(compare_product(ours, *shape, options.repeats), flush=True)
    for shape in OUTERS:
        print(compare_outer(ours, *shape, options.repeats), flush=True)
    print(f"compiling all of it: {compile_seconds(target, ours):.3f} s, once per process")


if __name__ == "__main__":
    main()
