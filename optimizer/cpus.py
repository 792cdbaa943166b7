"""Processors as the schedules and the tile model see them: vector unit, caches, and what each delivers in a cycle.

All values are declared, none is measured: the same target gives the same code, whatever the machine was doing. What a
machine really delivers (its clock, its memory) is measured by `optimizer.peaks`, for predictions and shares alone.

Sources of the table:

* x86: Intel 64 and IA-32 Architectures Optimization Reference Manual (ports, cache sizes, bytes a cycle); AMD Software
  Optimization Guides for family 19h (Zen 3, Zen 4) and 1Ah (Zen 5); Fog, The Microarchitecture of Intel, AMD and VIA
  CPUs, and Instruction Tables (latencies).
* Arm: Software Optimization Guides of Neoverse N1, V1, V2 and of Cortex-A76 (pipes, latencies), Technical Reference
  Manuals (caches). Apple publishes none of M1; its values are those that are commonly measured.

Manuals give the most that a cache delivers in a cycle. `l2_bytes_a_cycle` and `l3_bytes_a_cycle` are what a loop
sustains: about two thirds of it where hits compete with fills, less where many cores share a third level.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass

__all__ = ["CPUS", "Cpu"]

_OTHER_NAMES = {"arm64": "aarch64", "AMD64": "x86_64"}
"""Of architectures, as macOS and Windows call them."""
_KIB = 1024
_MIB = 1024 * 1024


@dataclass(frozen=True)
class Cpu:
    """A CPU as the schedules see it.

    Attributes:
        name: the name that LLVM knows it by (`-mcpu`), or "native" for the machine at hand.
        vector_bytes: width of a vector register, in bytes.
        vector_registers: number of architectural vector registers.
        l1_bytes, l2_bytes, l3_bytes: data caches: per core, per core, shared.
        cores: cores that a run may use.
        architecture: as `platform.machine()` has it on Linux: "x86_64" or "aarch64".
        fma_pipes: multiply-adds of whole vectors that start in a cycle.
        load_ports: loads of whole vectors that start in a cycle.
        fma_latency: cycles until the result of a multiply-add can be added to.
        l2_bytes_a_cycle, l3_bytes_a_cycle, memory_bytes_a_cycle: what a core gets from beyond its first-level cache.
        bfloat16: whether it multiplies pairs of bfloat16 in 512-bit vectors (x86's AVX512_BF16).
        vnni: whether it adds up four products of bytes in one instruction (x86's AVX512_VNNI).
        vbmi: whether it looks bytes up in a table of 128 bytes in registers (x86's AVX512_VBMI).
        clock: cycles a second that all cores sustain, as declared.
    """

    name: str
    vector_bytes: int
    vector_registers: int
    l1_bytes: int
    l2_bytes: int
    l3_bytes: int
    cores: int = 1
    architecture: str = "x86_64"
    fma_pipes: int = 2
    load_ports: int = 2
    fma_latency: int = 4
    l2_bytes_a_cycle: float = 32.0
    l3_bytes_a_cycle: float = 12.0
    memory_bytes_a_cycle: float = 5.0
    clock: float = 3.0e9
    bfloat16: bool = False
    vnni: bool = False
    vbmi: bool = False

    @property
    def lanes(self) -> int:
        """Number of float32 elements in a vector register."""
        return self.vector_bytes // 4

    @property
    def foreign(self) -> bool:
        """Whether this machine is of another architecture."""
        here = platform.machine()
        return self.name != "native" and self.architecture != _OTHER_NAMES.get(here, here)

    @property
    def flops_a_cycle(self) -> int:
        """Floating-point operations in float32 that a core completes in a cycle at most."""
        return 2 * self.fma_pipes * self.lanes


def _x86(name: str, vector: int, registers: int, caches: tuple[int, int, int], **more: float) -> Cpu:
    return Cpu(name, vector, registers, *caches, **more)  # type: ignore[arg-type]  # integers where they are meant


def _arm(name: str, caches: tuple[int, int, int], **more: float) -> Cpu:
    """Code for Arm uses vectors of 16 bytes (Advanced SIMD), also where there is SVE."""
    return Cpu(name, 16, 32, *caches, architecture="aarch64", **more)  # type: ignore[arg-type]


_BYTES = {"vnni": True, "vbmi": True}
_NARROW = {"bfloat16": True, **_BYTES}
_OLD = (32 * _KIB, 256 * _KIB, 4 * _MIB)
_OLD_RATES = {"l2_bytes_a_cycle": 16.0, "l3_bytes_a_cycle": 8.0, "memory_bytes_a_cycle": 4.0}
_ZEN4 = (32 * _KIB, 1 * _MIB, 32 * _MIB)
_ZEN5 = (48 * _KIB, 1 * _MIB, 32 * _MIB)
_ZEN5_RATES = {"l2_bytes_a_cycle": 44.0, "l3_bytes_a_cycle": 26.0, "memory_bytes_a_cycle": 8.0}

CPUS: dict[str, Cpu] = {
    cpu.name: cpu
    for cpu in (
        _x86("generic", 16, 16, _OLD, **_OLD_RATES),
        _x86("x86-64", 16, 16, _OLD, **_OLD_RATES),
        _x86("x86-64-v3", 32, 16, (32 * _KIB, 256 * _KIB, 8 * _MIB)),
        _x86("x86-64-v4", 64, 32, (32 * _KIB, 1 * _MIB, 16 * _MIB), l2_bytes_a_cycle=40.0, memory_bytes_a_cycle=8.0),
        _x86("haswell", 32, 16, (32 * _KIB, 256 * _KIB, 8 * _MIB), fma_latency=5, memory_bytes_a_cycle=4.0),
        _x86("skylake-avx512", 64, 32, (32 * _KIB, 1 * _MIB, 16 * _MIB), l2_bytes_a_cycle=40.0, clock=2.8e9),
        _x86("icelake-server", 64, 32, (48 * _KIB, 1280 * _KIB, 32 * _MIB), l2_bytes_a_cycle=40.0, **_BYTES),
        _x86("sapphirerapids", 64, 32, (48 * _KIB, 2 * _MIB, 64 * _MIB), l2_bytes_a_cycle=40.0, **_NARROW),
        _x86("znver3", 32, 16, (32 * _KIB, 512 * _KIB, 32 * _MIB), l2_bytes_a_cycle=24.0, clock=3.4e9),
        # Zen 4 takes a vector of 64 bytes in two halves: one multiply-add and one load a cycle.
        _x86("znver4", 64, 32, _ZEN4, fma_pipes=1, load_ports=1, clock=3.7e9, **_NARROW),
        _x86("znver5", 64, 32, _ZEN5, **_ZEN5_RATES, clock=4.1e9, **_NARROW),
        _arm("cortex-a76", (64 * _KIB, 256 * _KIB, 2 * _MIB), l2_bytes_a_cycle=16.0, clock=2.4e9),
        _arm("neoverse-n1", (64 * _KIB, 1 * _MIB, 32 * _MIB), l2_bytes_a_cycle=20.0, clock=2.5e9),
        _arm("neoverse-v1", (64 * _KIB, 1 * _MIB, 32 * _MIB), fma_pipes=4, load_ports=3, clock=2.6e9),
        _arm("neoverse-v2", (64 * _KIB, 1 * _MIB, 32 * _MIB), fma_pipes=4, load_ports=3, clock=2.8e9),
        # 12 MB of second-level cache serve four cores; the third level is the one of the whole system.
        _arm("apple-m1", (128 * _KIB, 3 * _MIB, 8 * _MIB), fma_pipes=4, load_ports=3, clock=3.2e9),
    )
}
"""CPUs that can be named as `"cpu:NAME"`; sizes are those of the smallest model of a series."""
