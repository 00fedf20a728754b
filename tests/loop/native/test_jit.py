"""Compilation in memory: what is written is what runs, on this machine, by any thread; other machines get assembly."""

import ctypes
import platform
import threading
from pathlib import Path

import numpy as np
import pytest

from throughtime.loop.native import target as targets
from throughtime.loop.native.ir import F32, F64, I64, PTR, Emitter, define, new_module
from throughtime.loop.native.jit import CompiledModule, compile_module, emit_assembly, emit_object
from throughtime.loop.native.target import (
    Target,
    avx2_target,
    avx512_target,
    host_target,
    make_target,
    neon_target,
)

HOSTS = [host_target()]
if host_target().vector_bytes >= 32:
    HOSTS.append(host_target().restricted_to_avx2())
ELEMENTS = {F32: (np.float32, ctypes.c_float), F64: (np.float64, ctypes.c_double)}


def _axpy(target: Target, element) -> tuple:
    """y[:n] += a * x[:n], as a module."""
    module = new_module("axpy", target)
    e = define(module, "axpy", {"n": I64, "a": element, "x": PTR, "y": PTR}, target)
    n, a, x, y = e.arguments

    def step(index, mask) -> None:
        xs, ys = (e.load_vector(p, element, mask, index=index) for p in (x, y))
        e.store_vector(e.fma(e.splat(a), xs, ys), y, mask, index=index)

    e.each_vector(n, element, step)
    e.done()
    return module


@pytest.mark.parametrize("target", HOSTS, ids=lambda t: f"{t.vector_bytes}bytes")
@pytest.mark.parametrize("element", ELEMENTS, ids=str)
def test_a_tail_is_masked_and_nothing_past_it_is_touched(target: Target, element) -> None:
    number, c_number = ELEMENTS[element]
    compiled = compile_module(_axpy(target, element), target)
    axpy = compiled.function("axpy", ctypes.c_int64, c_number, ctypes.c_void_p, ctypes.c_void_p)
    for n in range(40):
        x = np.arange(n + 9, dtype=number)
        y = np.full(n + 9, 7, dtype=number)
        axpy(n, 2.0, x.ctypes.data, y.ctypes.data)
        np.testing.assert_array_equal(y[:n], 7 + 2 * x[:n])
        np.testing.assert_array_equal(y[n:], 7)


def _sum_to(module, target: Target, name: str = "sum_to") -> Emitter:
    e = define(module, name, {"n": I64}, target, result=I64)
    (total,) = e.loop(e.arguments[0], lambda index, carried: [e.add(carried[0], index)], [e.integer(0)])
    e.done(total)
    return e


def test_a_loop_carries_values_and_may_run_zero_times() -> None:
    module = new_module("loops", host_target())
    _sum_to(module, host_target())
    sum_to = compile_module(module, host_target()).function("sum_to", ctypes.c_int64, result=ctypes.c_int64)
    assert [sum_to(n) for n in (-1, 0, 1, 5)] == [0, 0, 0, 10]


def test_a_loop_whose_body_loses_a_carried_value_is_refused() -> None:
    e = define(new_module("bad", host_target()), "bad", {"n": I64}, host_target())
    with pytest.raises(ValueError, match="must return its 1 carried values, got 0"):
        e.loop(e.arguments[0], lambda index, carried: [], [e.integer(0)])


def test_choices_join_their_values() -> None:
    target = host_target()
    module = new_module("choices", target)
    e = define(module, "pick", {"n": I64}, target, result=I64)
    n = e.arguments[0]
    slot = e.stack(I64, 1)
    e.store(e.integer(-1), slot)
    e.switch(n, {k: lambda k=k: e.store(e.integer(10 * k), slot) for k in (1, 2)})
    (chosen,) = e.choose(e.compare("<", n, 0), lambda: [e.integer(99)], lambda: [e.load(slot, I64)])
    e.done(chosen)
    pick = compile_module(module, target).function("pick", ctypes.c_int64, result=ctypes.c_int64)
    assert [pick(n) for n in (-5, 0, 1, 2, 3)] == [99, -1, 10, 20, -1]


def test_a_module_calls_into_a_library_and_keeps_it_alive() -> None:
    target = host_target()
    library_module = new_module("library", target)
    _sum_to(library_module, target, "sum_to_in_library")
    library = compile_module(library_module, target)
    module = new_module("caller", target)
    e = define(module, "twice", {"n": I64}, target, result=I64)
    e.done(e.mul(e.intrinsic("sum_to_in_library", I64, e.arguments), 2))
    compiled = compile_module(module, target, [library])
    assert compiled.names == {"twice"}
    del library
    assert compiled.function("twice", ctypes.c_int64, result=ctypes.c_int64)(5) == 20


def test_an_unknown_function_is_named() -> None:
    module = new_module("loops", host_target())
    _sum_to(module, host_target())
    with pytest.raises(KeyError, match=r"no function 'product'; it has.*sum_to"):
        compile_module(module, host_target()).address("product")


def test_many_threads_compile_and_run_at_once() -> None:
    wrong: list[int] = []

    def work(start: int) -> None:
        for size in range(start, start + 3):
            module = new_module("loops", host_target())
            _sum_to(module, host_target())
            compiled: CompiledModule = compile_module(module, host_target())
            if compiled.function("sum_to", ctypes.c_int64, result=ctypes.c_int64)(size) != size * (size - 1) // 2:
                wrong.append(size)

    threads = [threading.Thread(target=work, args=(10 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_other_machines_get_their_own_vectors() -> None:
    assembly = {t: emit_assembly(_axpy(t, F32), t) for t in (avx2_target(), avx512_target(), neon_target())}
    avx2, avx512, neon = assembly.values()
    assert "ymm" in avx2
    assert "zmm" not in avx2
    assert "zmm" in avx512
    assert "fmla\tv" in neon
    assert emit_object(_axpy(neon_target(), F32), neon_target())[:4] == b"\x7fELF"


def test_without_fused_multiply_add_no_library_is_called() -> None:
    old = make_target("x86_64-unknown-linux-gnu", "x86-64", {"sse2": True})
    text = emit_assembly(_axpy(old, F32), old)
    assert "mulps" in text
    assert "fmaf" not in text


def test_what_a_target_knows_of_itself() -> None:
    assert [t.lanes(32) for t in (avx2_target(), avx512_target(), neon_target())] == [8, 16, 4]
    assert [t.lanes(64) for t in (avx2_target(), avx512_target(), neon_target())] == [4, 8, 2]
    assert [t.vector_registers for t in (avx2_target(), avx512_target(), neon_target())] == [16, 32, 32]
    rich = avx512_target(bf16=True, amx=True)
    assert (rich.has_avx512_bf16, rich.has_amx_bf16) == (True, True)
    poor = rich.restricted_to_avx2()
    assert (poor.has_avx512_bf16, poor.has_amx_bf16, poor.vector_bytes) == (False, False, 32)
    assert "zmm" not in emit_assembly(_axpy(poor, F32), poor)


def test_tiles_without_products_of_bfloat16_are_none() -> None:
    assert not make_target("x86_64-unknown-linux-gnu", "x86-64-v4", {"amx-tile": True}).has_amx_bf16


@pytest.mark.parametrize(("processor", "permitted"), [(True, True), (True, False), (False, True)])
def test_a_machine_has_tiles_if_processor_and_system_give_them(
    monkeypatch: pytest.MonkeyPatch, processor: bool, permitted: bool
) -> None:
    features = {"avx512f": True, "amx-tile": processor, "amx-bf16": processor}
    monkeypatch.setattr(targets.llvm, "get_process_triple", lambda: "x86_64-unknown-linux-gnu")
    monkeypatch.setattr(targets.llvm, "get_host_cpu_features", lambda: features)
    monkeypatch.setattr(targets, "_tiles_are_permitted", lambda: permitted)
    assert host_target.__wrapped__().has_amx_bf16 == (processor and permitted)


@pytest.mark.skipif(platform.system() != "Linux", reason="Linux is asked")
def test_the_system_does_not_permit_what_the_processor_has_not() -> None:
    permitted = targets._tiles_are_permitted()
    assert not permitted or "amx_tile" in Path("/proc/cpuinfo").read_text()
