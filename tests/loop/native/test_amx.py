"""Products of bfloat16 on AMX tiles: right to the bit, and the same bits however the work is cut.

Where the processor has no AMX, a handler of illegal instructions does in software what the manual says.
"""

import ctypes
import os
import platform
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from weakref import WeakValueDictionary

import pytest
import torch
from torch import Tensor, nn

from conformance import test_autocast
from conformance.descriptors import by_name
from throughtime import Recompute, SaveAll, Spill, _pipeline, dynamic_rnn, explain
from throughtime._cache import Cache
from throughtime._nested import leaves
from throughtime.capture import trace_step
from throughtime.loop.native import kernel
from throughtime.loop.native.amx import AMX_SCRATCH, amx_library, amx_packed_size, emit_amx
from throughtime.loop.native.ir import I8, PTR, VOID, define, new_module
from throughtime.loop.native.jit import compile_module, emit_assembly
from throughtime.loop.native.lower import Lowered, lower
from throughtime.loop.native.target import Target, avx512_target, host_target
from throughtime.plan.make import make_plan
from throughtime.plan.memory import MemoryPolicy

NAN = float("nan")
OTHER_CELLS = [cell.name for cell in test_autocast.CELLS if cell.name != "nn.LSTMCell"]
I, P = ctypes.c_int64, ctypes.c_void_p


@dataclass
class Tiles:
    """The compiled functions, called with tensors. emulated: how many instructions were so far."""

    target: Target
    emulated: Callable[[], int]

    def __post_init__(self) -> None:
        library = amx_library(self.target)
        self.pack_b = library.function("amx_pack_b_f32", I, I, P, I, I, P)
        self.call_product = library.function("amx_product_f32", I, I, I, P, I, P, P, I, P, I)
        self.call_outer = library.function("amx_outer_f32", I, I, P, I, P, I, P)
        self.scratch = torch.full((AMX_SCRATCH,), NAN)

    def product(self, a: Tensor, w: Tensor, c: Tensor, init: Tensor | None) -> None:
        """c = init + a @ w."""
        (rows, k), n = a.shape, w.shape[1]
        packed = torch.full((amx_packed_size(k, n),), NAN)
        self.pack_b(k, n, w.data_ptr(), *w.stride(), packed.data_ptr())
        where = (0, 0) if init is None else (init.data_ptr(), init.stride(0) if init.dim() == 2 else 0)
        places = (a.data_ptr(), a.stride(0), packed.data_ptr(), c.data_ptr(), c.stride(0))
        self.call_product(rows, k, n, *places, *where)

    def check(self, got: Tensor, by_the_manual: Tensor) -> None:
        """To the bit; a processor may know better than its manual what it does."""
        if host_target().has_amx_bf16:
            torch.testing.assert_close(got, by_the_manual, rtol=1e-5, atol=1e-4)
        else:
            assert torch.equal(got, by_the_manual)

    def outer(self, a: Tensor, g: Tensor, c: Tensor) -> None:
        """c += a.T @ g."""
        self.outers([(a, c)], g)

    def outers(self, factors: list[tuple[Tensor, Tensor]], g: Tensor) -> None:
        """The same for several (a, c)."""
        words = [(a.shape[1], a.data_ptr(), a.stride(0), c.data_ptr(), c.stride(0)) for a, c in factors]
        table = torch.tensor(words)
        places = (g.data_ptr(), g.stride(0), self.scratch.data_ptr(), len(factors), table.data_ptr())
        self.call_outer(*g.shape, *places)


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tiles]:
    host = host_target()
    if host.has_amx_bf16:
        yield Tiles(host, lambda: 0)
        return
    if platform.system() != "Linux" or platform.machine() != "x86_64" or shutil.which("cc") is None:
        pytest.skip("emulating AMX takes Linux on x86-64 and a C compiler")
    emulator = _emulator(tmp_path_factory.mktemp("amx"))
    emulator.amx_start()
    count = ctypes.c_ulonglong.in_dll(emulator, "amx_emulated")
    with_tiles = replace(host, features=f"{host.features},+amx-tile,+amx-bf16", has_amx_bf16=True)
    yield Tiles(with_tiles, lambda: count.value)
    emulator.amx_stop()


def _emulator(directory: Path) -> ctypes.CDLL:
    library = directory / "amx_emulator.so"
    flags = ["-O3", "-march=native", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run(["cc", *flags, "-o", library, Path(__file__).with_name("amx_emulator.c")], check=True)
    return ctypes.CDLL(str(library))


@pytest.fixture(scope="module")
def loops_on_tiles(tiles: Tiles) -> Iterator[Tiles]:
    """What is compiled meanwhile is forgotten."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "host_target", lambda: tiles.target)
        patch.setattr(_pipeline, "_cache", Cache())
        patch.setattr(_pipeline, "_kernels", WeakValueDictionary())
        yield tiles


def rounded(rows: int, columns: int, gap: int = 3) -> Tensor:
    """Numbers of bfloat16 in rows that lie apart, with NaN between them."""
    whole = torch.full((rows, columns + gap), NAN)
    whole[:, :columns] = torch.randn(rows, columns).bfloat16()
    return whole[:, :columns]


def by_the_manual(a: Tensor, w: Tensor, c: Tensor) -> Tensor:
    """c + a @ w: of each 32 along k the even and the odd ones upwards, both, c. Products of bfloat16 are exact."""
    missing = -a.shape[1] % 32
    a, w = nn.functional.pad(a, (0, missing)), nn.functional.pad(w, (0, 0, 0, missing))
    for start in range(0, a.shape[1], 32):
        even, odd = torch.zeros_like(c), torch.zeros_like(c)
        for k in range(start, start + 32, 2):
            even = even + a[:, k : k + 1] * w[k]
            odd = odd + a[:, k + 1 : k + 2] * w[k + 1]
        c = c + (even + odd)
    return c


SIZES = [(1, 5, 3), (3, 0, 5), (16, 64, 64), (17, 33, 40), (32, 64, 96), (33, 600, 70), (70, 1030, 33), (5, 31, 130)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("init", ["none", "bias", "matrix", "itself"])
def test_product(tiles: Tiles, size: tuple[int, int, int], init: str) -> None:
    rows, k, n = size
    a = rounded(rows, k)
    whole = torch.full((rows, n + 5), NAN)
    c = whole[:, :n]
    start = {"none": None, "bias": torch.randn(n), "matrix": torch.randn(rows, n), "itself": c}[init]
    for w in (rounded(k, n), rounded(n, k).T):
        if init == "itself":
            c.copy_(torch.randn(rows, n))
        want = by_the_manual(a, w, torch.zeros(rows, n) if start is None else start.expand(rows, n).clone())
        tiles.product(a, w, c, start)
        tiles.check(c, want)
        assert whole[:, n:].isnan().all()


@pytest.mark.parametrize(
    "size", [(1, 3, 5), (40, 20, 50), (600, 70, 140), (300, 33, 40), (33, 530, 20), (40, 5, 1060)], ids=str
)
def test_outer(tiles: Tiles, size: tuple[int, int, int]) -> None:
    pairs, m, n = size
    a, g = rounded(pairs, m), rounded(pairs, n)
    whole = torch.full((m, n + 5), NAN)
    c = whole[:, :n]
    c.copy_(torch.randn(m, n))
    want = by_the_manual(a.T, g, c.clone())
    tiles.outer(a, g, c)
    tiles.check(c, want)
    assert whole[:, n:].isnan().all()


def test_several_factors_share_what_they_are_multiplied_with(tiles: Tiles) -> None:
    g = rounded(300, 40)
    factors = [(rounded(300, m), torch.randn(m, 40)) for m in (50, 3, 33)]
    wants = [by_the_manual(a.T, g, c.clone()) for a, c in factors]
    tiles.outers(factors, g)
    for (_, c), want in zip(factors, wants):
        tiles.check(c, want)


def test_a_row_has_the_same_bits_alone_and_among_others(tiles: Tiles) -> None:
    for k, n in ((5, 3), (70, 100)):
        a, w, bias = rounded(40, k), rounded(k, n), torch.randn(n)
        together, apart = torch.empty(40, n), torch.empty(40, n)
        tiles.product(a, w, together, bias)
        for rows in (1, 2, 15, 16, 17, 31, 33):
            for first in (0, 40 - rows):
                tiles.product(a[first : first + rows], w, apart, bias)
                assert torch.equal(apart[:rows], together[first : first + rows]), (rows, first)


def test_infinities_and_nan_stay_in_their_rows_and_columns(tiles: Tiles) -> None:
    a, w = rounded(20, 40), rounded(40, 50)
    clean, c = torch.empty(20, 50), torch.empty(20, 50)
    tiles.product(a, w, clean, None)
    a[3, 7], w[9, 49] = NAN, float("inf")
    tiles.product(a, w, c, None)
    others = [i for i in range(20) if i != 3]
    assert c[3].isnan().all()
    assert not c[others, 49].isfinite().any()
    assert torch.equal(c[others, :49], clean[others, :49])


def test_outer_has_the_same_bits_for_any_cut_at_whole_steps(tiles: Tiles) -> None:
    a, g = rounded(600, 50), rounded(600, 70)
    whole, cut = torch.zeros(50, 70), torch.zeros(50, 70)
    tiles.outer(a, g, whole)
    for start, stop in pairwise([0, 32, 256, 576, 600]):
        for m in (slice(0, 17), slice(17, 50)):
            for n in (slice(0, 33), slice(33, 70)):
                tiles.outer(a[start:stop, m], g[start:stop, n], cut[m, n])
    assert torch.equal(cut, whole)


def test_nobody_finds_tiles_in_use(tiles: Tiles) -> None:
    module = new_module("configuration", tiles.target)
    e = define(module, "store", {"to": PTR}, tiles.target)
    e.intrinsic("llvm.x86.sttilecfg", VOID, e.arguments)
    e.done()
    store = compile_module(module, tiles.target).function("store", P)
    tiles.product(rounded(2, 2), rounded(2, 2), torch.empty(2, 2), None)
    tiles.outer(rounded(2, 2), rounded(2, 2), torch.empty(2, 2))
    table = torch.full((64,), 7, dtype=torch.uint8)
    store(table.data_ptr())
    assert not table.any()


def test_the_emulator_ends_a_process_that_breaks_a_rule(tiles: Tiles) -> None:
    if host_target().has_amx_bf16:
        pytest.skip("the processor itself looks at its instructions")
    module = new_module("unconfigured", tiles.target)
    e = define(module, "zero", {}, tiles.target)
    e.intrinsic("llvm.x86.tilezero", VOID, [e.integer(3, I8)])
    e.done()
    zero = compile_module(module, tiles.target).function("zero")
    child = os.fork()
    if child == 0:
        zero()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGILL


# --- in loops


class Projected(nn.Module):
    """An LSTM with its output projected: products in the loop and after it, one with a weight as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTMCell(9, 20), nn.Parameter(torch.randn(20, 6))

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        h, c = self.lstm(x, state)
        return h @ self.out, (h, c)


LENGTHS = [35, 0, 3, 35, 20, *range(1, 23)]
Results = dict[str, Tensor]


def train(
    cell: nn.Module, x: Tensor, lengths: list[int], *, memory: MemoryPolicy | None = None, threads: int = 1
) -> Results:
    """Outputs, final state and all gradients, in bfloat16."""
    x = x.clone().requires_grad_()
    wanted = {"x": x, **dict(cell.named_parameters())}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs, state = dynamic_rnn(cell, x, lengths, memory=memory or SaveAll(), backend="native")
        made = {"outputs": outputs, **{f"state.{i}": leaf for i, leaf in enumerate(leaves(state))}}
        loss = torch.stack([tensor.square().sum() for tensor in made.values()]).sum()
        return made | dict(zip(wanted, torch.autograd.grad(loss, list(wanted.values()))))
    finally:
        torch.set_num_threads(before)


def different(left: Results, right: Results) -> list[str]:
    return [name for name, tensor in left.items() if not torch.equal(tensor, right[name])]


Case = tuple[nn.Module, Tensor, Results]


@pytest.fixture(scope="module")
def case(loops_on_tiles: Tiles) -> Case:
    torch.manual_seed(0)
    cell, x = Projected(), torch.randn(len(LENGTHS), 35, 9)
    return cell, x, train(cell, x, LENGTHS)


def test_the_loop_runs_on_tiles(loops_on_tiles: Tiles, case: Case) -> None:
    cell, x, _ = case
    before = loops_on_tiles.emulated()
    train(cell, x[:2], LENGTHS[:2])
    assert loops_on_tiles.emulated() > before or host_target().has_amx_bf16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert "bfloat16 on AMX tiles" in str(explain(cell, x, LENGTHS))


def test_no_bit_depends_on_threads(case: Case) -> None:
    cell, x, want = case
    assert different(want, train(cell, x, LENGTHS, threads=2)) == []


@pytest.mark.parametrize("memory", [Recompute(every=7), Spill()], ids=str)
def test_no_bit_depends_on_the_memory_policy(case: Case, memory: MemoryPolicy) -> None:
    cell, x, want = case
    assert different(want, train(cell, x, LENGTHS, memory=memory)) == []


def test_a_row_of_a_loop_has_the_same_bits_alone(case: Case) -> None:
    cell, x, want = case
    for row in (0, 2, 20):
        alone = train(cell, x[row : row + 1], LENGTHS[row : row + 1])
        of_row = {name: want[name][row : row + 1] for name in ("outputs", "x", "state.0", "state.1")}
        assert different(of_row, alone) == []


@pytest.mark.parametrize("name", ["nn.LSTMCell", *(pytest.param(n, marks=pytest.mark.slow) for n in OTHER_CELLS)])
def test_no_worse_than_the_eager_loop(loops_on_tiles: Tiles, name: str) -> None:
    test_autocast.test_no_worse_than_the_eager_loop(by_name(name)[0], "native")


def lowered(step: Callable, x: Tensor, h: Tensor) -> Lowered:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return lower(make_plan(trace_step(step, x, h, ()).pair))


def test_what_a_step_itself_computes_in_bfloat16_is_not_rounded() -> None:
    """It is kept in float32, so its products stay there; others of the same step run on tiles."""
    w, u = torch.randn(5, 4, requires_grad=True), torch.randn(4, 4, requires_grad=True)

    def step(x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(((2 * x.bfloat16()) @ w.bfloat16()).float() + h @ u)
        return h, h

    made = lowered(step, torch.randn(7, 5), torch.zeros(7, 4))
    assert made.training is not None
    assert {(weight.k, weight.rounded) for weight in made.training.weights.values()} == {(5, False), (4, True)}
    assert {(int(r.node.shape[0]), r.rounded) for r in made.reductions} == {(5, False), (4, True)}


def test_what_is_no_number_is_none_when_its_low_half_is_cut_off() -> None:
    bits = torch.tensor([0x7F800001, 0x7FFFFFFF, -1], dtype=torch.int32)
    x = bits.view(torch.float32).view(1, 1, 3)
    assert x.isnan().all()
    outputs, _ = dynamic_rnn(
        lambda x, h: (x.bfloat16().float(), h), x, initial_state=torch.zeros(1, 1), backend="native"
    )
    assert outputs.isnan().all()
    assert not (outputs.view(torch.int32) & 0xFFFF).any()


def test_windows_of_what_is_rounded_are_rounded() -> None:
    w = torch.randn(2, 3, 3, requires_grad=True)

    def step(x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(nn.functional.conv1d(torch.cat([x, h], 1), w, padding=1))
        return h, h

    made = lowered(step, torch.randn(7, 1, 5), torch.zeros(7, 2, 5))
    assert made.training is not None
    assert made.backward is not None
    assert all(weight.rounded for weight in [*made.training.weights.values(), *made.backward.weights.values()])
    assert [r.rounded for r in made.reductions] == [True]


def test_the_instructions_for_a_machine_with_tiles() -> None:
    machine = avx512_target(bf16=True, amx=True)
    module = new_module("tiles", machine)
    emit_amx(module, machine)
    text = emit_assembly(module, machine)
    for instruction in ("ldtilecfg", "tileloadd", "tdpbf16ps", "tilestored", "tilerelease", "vpermt2w", "vpermt2d"):
        assert f"\t{instruction}" in text
    assert text.count("\ttdpbf16ps") == 4 + 4 + 2, "tiles of C: two by two, one by four and one by two"
