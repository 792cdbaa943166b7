"""What the code will run on: the kind of target, and for a CPU its vector unit and memory hierarchy."""

from __future__ import annotations

import difflib
import os
import platform
from dataclasses import dataclass, replace
from pathlib import Path

from optimizer.errors import TargetError

__all__ = ["CPUS", "Cpu", "Target"]

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
        bfloat16: whether it multiplies pairs of bfloat16 in 512-bit vectors (x86's AVX512_BF16).
    """

    name: str
    vector_bytes: int
    vector_registers: int
    l1_bytes: int
    l2_bytes: int
    l3_bytes: int
    cores: int = 1
    bfloat16: bool = False

    @property
    def lanes(self) -> int:
        """Number of float32 elements in a vector register."""
        return self.vector_bytes // 4


CPUS: dict[str, Cpu] = {
    "generic": Cpu("generic", 16, 16, 32 * _KIB, 256 * _KIB, 4 * _MIB),
    "x86-64": Cpu("x86-64", 16, 16, 32 * _KIB, 256 * _KIB, 4 * _MIB),
    "x86-64-v3": Cpu("x86-64-v3", 32, 16, 32 * _KIB, 256 * _KIB, 8 * _MIB),
    "x86-64-v4": Cpu("x86-64-v4", 64, 32, 32 * _KIB, 1 * _MIB, 16 * _MIB),
    "haswell": Cpu("haswell", 32, 16, 32 * _KIB, 256 * _KIB, 8 * _MIB),
    "skylake-avx512": Cpu("skylake-avx512", 64, 32, 32 * _KIB, 1 * _MIB, 16 * _MIB),
    "icelake-server": Cpu("icelake-server", 64, 32, 48 * _KIB, 1280 * _KIB, 32 * _MIB),
    "sapphirerapids": Cpu("sapphirerapids", 64, 32, 48 * _KIB, 2 * _MIB, 64 * _MIB, bfloat16=True),
    "znver3": Cpu("znver3", 32, 16, 32 * _KIB, 512 * _KIB, 32 * _MIB),
    "znver4": Cpu("znver4", 64, 32, 32 * _KIB, 1 * _MIB, 32 * _MIB, bfloat16=True),
    "znver5": Cpu("znver5", 64, 32, 48 * _KIB, 1 * _MIB, 32 * _MIB, bfloat16=True),
}
"""CPUs that can be named as `"cpu:NAME"`; sizes as in the vendors' manuals (the smallest model of a series)."""

_KINDS = ("cpu", "onnx")


@dataclass(frozen=True)
class Target:
    """A place to run.

    Attributes:
        kind: "cpu" (compiled through TVM) or "onnx" (the optimized graph alone, run by ONNX Runtime).
        cpu: the processor, for kind "cpu".
    """

    kind: str
    cpu: Cpu | None = None

    @classmethod
    def parse(cls, text: str | Target) -> Target:
        """Read a target such as `"cpu"` (this machine), `"cpu:x86-64-v3"` or `"onnx"`.

        Raises:
            TargetError: the kind or the processor is unknown.
        """
        if isinstance(text, Target):
            return text
        if not isinstance(text, str):
            raise TargetError(f"target must be a string or an optimizer.Target, not {type(text).__name__}")
        kind, _, detail = text.partition(":")
        if kind not in _KINDS:
            raise TargetError(
                f"unknown target {text!r}{_nearest(kind, _KINDS)}; available: {', '.join(_KINDS)}, or cpu:NAME"
            )
        if kind == "onnx":
            if detail:
                raise TargetError(f"target {text!r}: 'onnx' takes no detail; use 'onnx'")
            return cls("onnx")
        if detail in ("", "native"):
            return cls("cpu", detect_cpu())
        if detail not in CPUS:
            raise TargetError(
                f"unknown processor in target {text!r}{_nearest(detail, CPUS)}; available: {', '.join(sorted(CPUS))}"
            )
        return cls("cpu", replace(CPUS[detail], cores=_cores()))

    def __str__(self) -> str:
        return self.kind if self.cpu is None or self.cpu.name == "native" else f"{self.kind}:{self.cpu.name}"


def detect_cpu() -> Cpu:
    """The machine at hand; what the system does not tell is taken from the nearest entry of `CPUS`."""
    flags = _x86_flags()
    if {"avx512f", "avx512bw", "avx512vl", "avx512dq"} <= flags:
        base = CPUS["x86-64-v4"]
    elif {"avx2", "fma"} <= flags:
        base = CPUS["x86-64-v3"]
    else:
        base = CPUS["generic"]
    registers = 32 if platform.machine() in ("aarch64", "arm64") else base.vector_registers
    return Cpu(
        "native",
        base.vector_bytes,
        registers,
        _cache_bytes(1) or base.l1_bytes,
        _cache_bytes(2) or base.l2_bytes,
        _cache_bytes(3) or base.l3_bytes,
        _cores(),
        bfloat16=base.vector_bytes == CPUS["x86-64-v4"].vector_bytes and "avx512_bf16" in flags,
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _x86_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="ignore").splitlines()
    except OSError:
        return set()
    line = next((ln for ln in lines if ln.startswith("flags")), "")
    return set(line.partition(":")[2].split())


def _cache_bytes(level: int) -> int:
    """Size of the data (or unified) cache of a level as Linux tells it; 0 if it does not."""
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            if int((index / "level").read_text()) != level or (index / "type").read_text().strip() == "Instruction":
                continue
            size = (index / "size").read_text().strip()
        except (OSError, ValueError):
            continue
        units = {"K": _KIB, "M": _MIB}
        return int(size[:-1]) * units[size[-1]] if size and size[-1] in units and size[:-1].isdigit() else 0
    return 0


def _nearest(word: str, known: object) -> str:
    matches = difflib.get_close_matches(word, list(known), n=1)  # type: ignore[call-overload]
    return f" (did you mean {matches[0]!r}?)" if matches else ""
