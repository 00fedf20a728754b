"""The matrix products: right against float64, and the same bits however the work is cut."""

import ctypes
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from throughtime.loop.native.gemm import (
    declare_products,
    emit_products,
    outer_scratch,
    packed_size,
    panel_width,
    products_library,
)
from throughtime.loop.native.ir import F32, F64, I64, PTR, define, new_module
from throughtime.loop.native.jit import compile_module, emit_assembly
from throughtime.loop.native.target import Target, avx2_target, avx512_target, host_target, neon_target

NAN = float("nan")
TOLERANCE = {torch.float32: 2e-6, torch.float64: 4e-15}
HOSTS = {"host": host_target()}
if host_target().vector_bytes == 64:
    HOSTS["avx2"] = host_target().restricted_to_avx2()
# The tiles of AVX-512 and of NEON: LLVM splits or halves their vectors where this machine has others.
HOSTS["wide"] = replace(host_target(), vector_bytes=64, vector_registers=32)
HOSTS["narrow"] = replace(host_target(), vector_bytes=16, vector_registers=32)
I, P = ctypes.c_int64, ctypes.c_void_p


@dataclass
class Products:
    """The compiled functions, called with tensors; every buffer starts as NaN."""

    target: Target
    dtype: torch.dtype

    def __post_init__(self) -> None:
        self.element = F32 if self.dtype is torch.float32 else F64
        library = products_library(self.target, self.element)
        suffix = f"_f{self.element_bits}"
        self.pack_b = library.function("pack_b" + suffix, I, I, P, I, I, P)
        self.call_product = library.function("product" + suffix, I, I, I, P, I, P, P, I, P, I)
        self.call_outer = library.function("outer" + suffix, I, I, I, P, I, P, I, P, I, P)
        self.call_sums = library.function("column_sums" + suffix, I, I, P, I, P)
        self.scratch = self.empty(outer_scratch(self.target, self.element))

    @property
    def element_bits(self) -> int:
        return 32 if self.dtype is torch.float32 else 64

    def empty(self, *size: int) -> torch.Tensor:
        return torch.full(size, NAN, dtype=self.dtype)

    def packed(self, w: torch.Tensor) -> torch.Tensor:
        out = self.empty(packed_size(*w.shape, self.target, self.element))
        self.pack_b(*w.shape, w.data_ptr(), *w.stride(), out.data_ptr())
        return out

    def product(self, a: torch.Tensor, w: torch.Tensor, c: torch.Tensor, init: torch.Tensor | None) -> None:
        """c = init + a @ w."""
        where = (0, 0) if init is None else (init.data_ptr(), init.stride(0) if init.dim() == 2 else 0)
        b = self.packed(w)
        places = (a.data_ptr(), a.stride(0), b.data_ptr(), c.data_ptr(), c.stride(0))
        self.call_product(len(a), *w.shape, *places, *where)

    def outer(self, a: torch.Tensor, g: torch.Tensor, c: torch.Tensor) -> None:
        """c += a.T @ g."""
        places = (a.data_ptr(), a.stride(0), g.data_ptr(), g.stride(0), c.data_ptr(), c.stride(0))
        self.call_outer(len(a), a.shape[1], g.shape[1], *places, self.scratch.data_ptr())


@cache
def products(host: str, dtype: torch.dtype) -> Products:
    return Products(HOSTS[host], dtype)


each_kind = pytest.mark.parametrize(
    "kernel",
    [(host, dtype) for host in HOSTS for dtype in TOLERANCE],
    ids=lambda kind: f"{kind[0]}-{str(kind[1])[6:]}",
)
sizes = st.integers(1, 70)


def _random(kernel: Products, rows: int, columns: int, gap: int = 3) -> torch.Tensor:
    """A matrix whose rows lie apart, with NaN between them."""
    whole = kernel.empty(rows, columns + gap)
    whole[:, :columns] = torch.randn(rows, columns, dtype=kernel.dtype)
    return whole[:, :columns]


def _assert_close(got: torch.Tensor, want: torch.Tensor, scale: torch.Tensor) -> None:
    """The error is measured against the sum of the terms' sizes, which is what rounding follows."""
    assert ((got.double() - want).abs() <= TOLERANCE[got.dtype] * (scale + 1e-30)).all()


@each_kind
@settings(max_examples=40, deadline=None)
@given(
    rows=sizes,
    k=st.integers(0, 70),
    n=sizes,
    transposed=st.booleans(),
    init=st.sampled_from(["none", "bias", "matrix", "itself"]),
    seed=st.integers(0, 2**31),
)
def test_product(kernel, rows: int, k: int, n: int, transposed: bool, init: str, seed: int) -> None:
    torch.manual_seed(seed)
    kernel = products(*kernel)
    a = _random(kernel, rows, k)
    w = _random(kernel, n, k).T if transposed else _random(kernel, k, n)
    whole = kernel.empty(rows, n + 5)
    c = whole[:, :n]
    start = {"none": None, "bias": _random(kernel, 1, n)[0], "matrix": _random(kernel, rows, n), "itself": c}[init]
    if init == "itself":
        c.copy_(torch.randn(rows, n))
    first = torch.zeros(rows, n) if start is None else start.double().expand(rows, n).clone()
    kernel.product(a, w, c, start)
    scale = first.abs() + a.double().abs() @ w.double().abs()
    _assert_close(c, first + a.double() @ w.double(), scale)
    assert whole[:, n:].isnan().all()


@each_kind
def test_a_row_has_the_same_bits_alone_and_among_others(kernel) -> None:
    kernel = products(*kernel)
    for k, n in ((5, 3), (64, 40), (129, 150)):
        a, w, bias = _random(kernel, 33, k), _random(kernel, k, n), _random(kernel, 1, n)[0]
        together = kernel.empty(33, n)
        kernel.product(a, w, together, bias)
        for rows in range(1, 33):
            apart = kernel.empty(rows, n)
            for first in (0, 33 - rows):
                kernel.product(a[first : first + rows], w, apart, bias)
                assert torch.equal(apart, together[first : first + rows]), (rows, first)


@each_kind
def test_a_product_cut_in_two_along_k_or_by_panels_has_the_same_bits(kernel) -> None:
    kernel = products(*kernel)
    width = panel_width(kernel.target, kernel.element)
    a, w = _random(kernel, 9, 50), _random(kernel, 50, 3 * width + 2)
    whole = kernel.empty(9, w.shape[1])
    kernel.product(a, w, whole, None)
    along_k = kernel.empty(9, w.shape[1])
    kernel.product(a[:, :21], w[:21], along_k, None)
    kernel.product(a[:, 21:], w[21:], along_k, along_k)
    assert torch.equal(along_k, whole)
    by_panels = kernel.empty(9, w.shape[1])
    packed = kernel.packed(w)
    for first, count in ((0, width), (width, 2 * width + 2)):
        b, c = packed[first * 50 :].data_ptr(), by_panels[:, first:]
        places = (a.data_ptr(), a.stride(0), b, c.data_ptr(), c.stride(0))
        kernel.call_product(9, 50, count, *places, 0, 0)
    assert torch.equal(by_panels, whole)


@each_kind
@settings(max_examples=30, deadline=None)
@given(p=st.integers(0, 600), m=st.integers(1, 120), n=sizes, seed=st.integers(0, 2**31))
def test_outer(kernel, p: int, m: int, n: int, seed: int) -> None:
    torch.manual_seed(seed)
    kernel = products(*kernel)
    a, g = _random(kernel, p, m), _random(kernel, p, n)
    whole = kernel.empty(m, n + 5)
    c = whole[:, :n]
    c.copy_(torch.randn(m, n))
    first = c.double().clone()
    kernel.outer(a, g, c)
    scale = first.abs() + a.double().abs().T @ g.double().abs()
    # A longer sum than in `test_product`, rounded at each term.
    _assert_close(c, first + a.double().T @ g.double(), 4 * scale)
    assert whole[:, n:].isnan().all()


@each_kind
@settings(max_examples=10, deadline=None)
@given(
    cuts_p=st.sets(st.integers(1, 599), max_size=4),
    cut_m=st.integers(1, 149),
    cut_n=st.integers(1, 69),
)
def test_outer_has_the_same_bits_for_any_cut(kernel, cuts_p: set[int], cut_m: int, cut_n: int) -> None:
    kernel = products(*kernel)
    a, g = _random(kernel, 600, 150), _random(kernel, 600, 70)
    whole = torch.zeros(150, 70, dtype=kernel.dtype)
    kernel.outer(a, g, whole)
    cut = torch.zeros(150, 70, dtype=kernel.dtype)
    edges = [0, *sorted(cuts_p), 600]
    for start, stop in pairwise(edges):
        for m in (slice(0, cut_m), slice(cut_m, 150)):
            for n in (slice(0, cut_n), slice(cut_n, 70)):
                kernel.outer(a[start:stop, m], g[start:stop, n], cut[m, n])
    assert torch.equal(cut, whole)


@each_kind
@settings(max_examples=25, deadline=None)
@given(p=st.integers(0, 60), n=sizes, cut=st.integers(0, 60))
def test_column_sums(kernel, p: int, n: int, cut: int) -> None:
    kernel = products(*kernel)
    g = _random(kernel, p, n)
    out = kernel.empty(n + 5)
    out[:n] = 1
    kernel.call_sums(p, n, g.data_ptr(), g.stride(0), out.data_ptr())
    _assert_close(out[:n], 1 + g.double().sum(0), 1 + g.double().abs().sum(0))
    assert out[n:].isnan().all()
    parts = torch.ones(n, dtype=kernel.dtype)
    for part in (g[:cut], g[cut:]):
        kernel.call_sums(len(part), n, part.data_ptr(), part.stride(0), parts.data_ptr())
    assert torch.equal(parts, out[:n])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_the_width_of_vectors_changes_no_bit(dtype: torch.dtype) -> None:
    a, w, g = torch.randn(30, 77, dtype=dtype), torch.randn(77, 50, dtype=dtype), torch.randn(30, 50, dtype=dtype)
    results = []
    for host in HOSTS:
        kernel = products(host, dtype)
        c, d = kernel.empty(30, 50), torch.zeros(77, 50, dtype=dtype)
        kernel.product(a, w, c, None)
        kernel.outer(a, g, d)
        results.append((c, d))
    for c, d in results[1:]:
        assert torch.equal(c, results[0][0])
        assert torch.equal(d, results[0][1])


@each_kind
def test_packing_fills_the_last_panel_with_zeros(kernel) -> None:
    kernel = products(*kernel)
    width = panel_width(kernel.target, kernel.element)
    for n in (1, width, width + 1):
        for w in (_random(kernel, 7, n), _random(kernel, n, 7).T):
            panels = kernel.packed(w).view(-1, 7, width).transpose(0, 1).reshape(7, -1)
            assert torch.equal(panels[:, :n], w)
            assert (panels[:, n:] == 0).all()


def test_a_module_of_its_own_calls_the_compiled_products() -> None:
    target = host_target()
    module = new_module("caller", target)
    declared = declare_products(module, F64)
    assert declare_products(module, F64) == declared
    e = define(module, "sums", {"p": I64, "n": I64, "g": PTR, "ldg": I64, "out": PTR}, target)
    e.call(declared.column_sums, e.arguments)
    e.done()
    compiled = compile_module(module, target, [products_library(target, F64)])
    g, out = torch.randn(11, 5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    compiled.function("sums", I, I, P, I, P)(11, 5, g.data_ptr(), 5, out.data_ptr())
    torch.testing.assert_close(out, g.sum(0))


@pytest.mark.parametrize("element", [F32, F64], ids=str)
def test_other_machines_get_their_own_microkernels(element) -> None:
    text = {}
    for target in (avx2_target(), avx512_target(), neon_target()):
        module = new_module("products", target)
        emit_products(module, target, element)
        text[target.vector_bytes] = emit_assembly(module, target)
    assert "zmm" not in text[32]
    assert "vfmadd231p" in text[32]
    assert "zmm26" in text[64], "12 x 2 sums, two vectors of B and a factor are 27 registers"
    assert "fmla\tv" in text[16]
