"""What native code asks of the machine that runs it, so that a saved model is refused instead of ending the process."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optimizer.target import CPUS, Cpu, Target, detect_cpu

__all__ = ["machine_needed", "why_unusable"]

_X86_EXTENSIONS = ("sse", "ssse", "avx", "fma", "f16c", "bmi", "abm", "popcnt", "movbe", "adx", "amx", "gfni", "vaes")


def machine_needed(target: str) -> dict[str, Any]:
    """What code for a target needs, as JSON types; nothing for a target without native code."""
    cpu = Target.parse(target).cpu
    if cpu is None:
        return {}
    return {
        "architecture": cpu.architecture if cpu.foreign else platform.machine(),
        "system": "Linux" if cpu.foreign else platform.system(),
        "vector_bytes": cpu.vector_bytes,
        "extensions": _extensions() if cpu.name not in CPUS else _beyond_vectors(cpu),
    }


def _beyond_vectors(cpu: Cpu) -> list[str]:
    """The extensions that the length of a named processor's vectors does not tell."""
    known = {"avx512_bf16": cpu.bfloat16, "avx512_vnni": cpu.vnni, "avx512vbmi": cpu.vbmi}
    return [name for name, has in known.items() if has]


def why_unusable(needed: Mapping[str, Any]) -> str:
    """Why this machine cannot run such code, `""` if it can."""
    if not needed:
        return ""
    for key, here in (("architecture", platform.machine()), ("system", platform.system())):
        if needed.get(key) != here:
            return f"it was compiled for {key} {needed.get(key)!r}, this machine has {here!r}"
    if not isinstance(needed.get("vector_bytes"), int) or not isinstance(needed.get("extensions"), list):
        return "it does not say which CPU it needs"
    if needed["vector_bytes"] > detect_cpu().vector_bytes:
        return (
            f"it needs vector registers of {needed['vector_bytes']} bytes, this CPU's have {detect_cpu().vector_bytes}"
        )
    missing = sorted(set(map(str, needed["extensions"])) - set(_extensions()))
    return f"it uses {', '.join(missing)}, which this CPU lacks" if missing else ""


def _extensions() -> list[str]:
    """The instruction set extensions that a compiler may use, as Linux names them; none where it does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="ignore").splitlines()
    except OSError:
        return []
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return sorted(flag for flag in flags if flag.startswith(_X86_EXTENSIONS))
