"""A machine -> what code generation has to know of it: vector width, registers, tile shapes.

Always read from LLVM's view of the host, never from an environment variable; tests pass other targets.
"""

import ctypes
import functools
import platform
from dataclasses import dataclass, replace

from llvmlite import binding as llvm

__all__ = ["Target", "TileShape", "avx2_target", "avx512_target", "host_target", "make_target", "neon_target"]

# LLVM keeps the last word on a feature, so switching one off also switches off what needs it.
_WIDER_THAN_AVX2 = ("avx10.1", "avx10.2", "avx512f", "amx-tile")
_AVX2 = ("sse4.2", "avx", "avx2", "fma", "f16c", "bmi", "bmi2", "lzcnt", "popcnt", "movbe")
_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _TILE_DATA = 158, 0x1023, 18
_AVX512 = ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")


@dataclass(frozen=True)
class TileShape:
    """The outputs that one microkernel keeps in registers: `rows` times `vectors` vectors."""

    rows: int
    vectors: int


@dataclass(frozen=True)
class Target:
    """One processor as code generation sees it."""

    triple: str
    cpu: str
    features: str
    vector_bytes: int
    vector_registers: int
    fma: bool
    has_avx512_bf16: bool = False
    has_amx_bf16: bool = False

    def lanes(self, bits: int) -> int:
        """How many numbers of `bits` bits one vector holds."""
        return self.vector_bytes * 8 // bits

    def tile(self, bits: int) -> TileShape:
        """The tile of the matrix products; the same for every element size, as lanes carry the difference."""
        del bits
        if self.vector_bytes == 64:
            return TileShape(rows=12, vectors=2)
        if self.vector_registers == 32:
            return TileShape(rows=8, vectors=3)
        return TileShape(rows=6, vectors=2)

    def restricted_to_avx2(self) -> "Target":
        """The same x86 processor without anything wider than AVX2."""
        switched_off = ",".join(f"-{name}" for name in _WIDER_THAN_AVX2)
        return replace(
            self,
            features=f"{self.features},{switched_off}",
            vector_bytes=32,
            vector_registers=16,
            has_avx512_bf16=False,
            has_amx_bf16=False,
        )


def make_target(triple: str, cpu: str, features: dict[str, bool]) -> Target:
    """Read the facts from LLVM's names of the features; a 64-bit Arm processor always has NEON and FMA."""
    flags = ",".join(f"{'+' if on else '-'}{name}" for name, on in sorted(features.items()))
    if triple.startswith(("aarch64", "arm64")):
        return Target(triple, cpu, flags, vector_bytes=16, vector_registers=32, fma=True)
    has_avx512 = features.get("avx512f", False)
    has_avx2 = features.get("avx2", False)
    return Target(
        triple,
        cpu,
        flags,
        vector_bytes=64 if has_avx512 else 32 if has_avx2 else 16,
        vector_registers=32 if has_avx512 else 16,
        fma=features.get("fma", False),
        has_avx512_bf16=has_avx512 and features.get("avx512bf16", False),
        has_amx_bf16=features.get("amx-tile", False) and features.get("amx-bf16", False),
    )


@functools.cache
def host_target() -> Target:
    """The processor that this process runs on, with what the system permits of it."""
    target = make_target(llvm.get_process_triple(), llvm.get_host_cpu_name(), dict(llvm.get_host_cpu_features()))
    return replace(target, has_amx_bf16=target.has_amx_bf16 and _tiles_are_permitted())


def _tiles_are_permitted() -> bool:
    """Linux keeps room for a thread's tiles only in processes that have asked."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):  # elsewhere the number is of another call
        return False
    return ctypes.CDLL(None).syscall(*map(ctypes.c_long, (_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _TILE_DATA))) == 0


def avx2_target(triple: str = "x86_64-unknown-linux-gnu") -> Target:
    """Any x86 with AVX2 and FMA, such as Haswell or the first Zen."""
    return make_target(triple, "x86-64-v3", dict.fromkeys(_AVX2, True))


def avx512_target(triple: str = "x86_64-unknown-linux-gnu", bf16: bool = False, amx: bool = False) -> Target:
    """Any x86 with AVX-512, such as Skylake-X; with `bf16` Cooper Lake's instructions, with `amx` tiles."""
    features = dict.fromkeys(_AVX2 + _AVX512, True)
    features |= {"avx512bf16": bf16, "amx-tile": amx, "amx-bf16": amx}
    return make_target(triple, "x86-64-v4", features)


def neon_target(triple: str = "aarch64-unknown-linux-gnu") -> Target:
    """Any Arm processor of 64 bits."""
    return make_target(triple, "generic", {"neon": True})
