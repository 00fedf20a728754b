"""LLVM module -> machine code in memory, or assembly for another machine.

LLVM's passes and the code generator run under one lock: modules are parsed into LLVM's global context, which
is not safe for threads. Compiled code itself needs no lock.
"""

import ctypes
import functools
import os
from collections.abc import Callable, Sequence

from llvmlite import binding as llvm
from llvmlite import ir

from throughtime.loop.native.target import Target

__all__ = ["CompiledModule", "compile_module", "emit_assembly", "emit_object"]

# llvmlite's own reentrant lock, which it takes for each single call, also when it frees what nobody refers to.
_LLVM_LOCK = llvm.ffi.lib._lock

# A fork waits until no other thread is inside LLVM; the child would find the lock taken for ever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_LLVM_LOCK.__enter__, after_in_parent=_LLVM_LOCK.__exit__, after_in_child=_LLVM_LOCK.__exit__
    )


class CompiledModule:
    """Machine code that lives as long as this object does."""

    def __init__(self, engine: llvm.ExecutionEngine, addresses: dict[str, int], uses: tuple) -> None:
        self._engine = engine
        self._addresses = addresses
        # The code may call into these, so they must live as long.
        self._uses = uses

    @property
    def names(self) -> frozenset[str]:
        """The functions that can be called from outside."""
        return frozenset(self._addresses)

    def address(self, name: str) -> int:
        """Where the function called `name` starts."""
        if name not in self._addresses:
            raise KeyError(f"the compiled module has no function {name!r}; it has {sorted(self._addresses)}")
        return self._addresses[name]

    def function(self, name: str, *argument_types: type, result: type | None = None) -> Callable:
        """The function as a ctypes callable, which releases the interpreter lock while it runs."""
        call = ctypes.CFUNCTYPE(result, *argument_types)(self.address(name))
        call.module = self  # type: ignore[attr-defined]  # the code must outlive the callable
        return call


def compile_module(
    module: ir.Module | str, target: Target, libraries: Sequence[CompiledModule] = (), *, quickly: bool = False
) -> CompiledModule:
    """Optimise and compile for the processor that this process runs on.

    A function that the module declares and one of `libraries` defines is linked to it. `quickly`: for code that calls
    the libraries for its products, where LLVM's -O2 took longer than its -O1 and gained nothing.
    """
    with _LLVM_LOCK:
        machine = _make_machine(target)
        optimised = _optimise(module, target, machine, 1 if quickly else 2)
        defined = [f.name for f in optimised.functions if not f.is_declaration and f.linkage.name == "external"]
        engine = llvm.create_mcjit_compiler(optimised, machine)
        for declared in [f for f in optimised.functions if f.is_declaration]:
            for library in libraries:
                if declared.name in library.names:
                    engine.add_global_mapping(declared, library.address(declared.name))
        engine.finalize_object()
        addresses = {name: engine.get_function_address(name) for name in defined}
    return CompiledModule(engine, addresses, tuple(libraries))


def emit_assembly(module: ir.Module | str, target: Target) -> str:
    """The assembly text for any processor; nothing is run."""
    with _LLVM_LOCK:
        machine = _make_machine(target)
        return machine.emit_assembly(_optimise(module, target, machine))


def emit_object(module: ir.Module | str, target: Target) -> bytes:
    """The object file for any processor; nothing is run."""
    with _LLVM_LOCK:
        machine = _make_machine(target)
        return machine.emit_object(_optimise(module, target, machine))


@functools.cache
def _initialise_llvm() -> None:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()


def _make_machine(target: Target) -> llvm.TargetMachine:
    _initialise_llvm()
    llvm_target = llvm.Target.from_triple(target.triple)
    return llvm_target.create_target_machine(cpu=target.cpu, features=target.features, opt=2)


def _optimise(module: ir.Module | str, target: Target, machine: llvm.TargetMachine, level: int = 2) -> llvm.ModuleRef:
    parsed = llvm.parse_assembly(str(module))
    parsed.triple = target.triple
    parsed.data_layout = str(machine.target_data)
    parsed.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=level)
    # Emitters write vectors themselves; unrolling and revectorising costs compile time and gained nothing.
    options.loop_vectorization = False
    options.slp_vectorization = False
    options.loop_unrolling = False
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(parsed, builder)
    return parsed
