"""What the code will run on: the kind of target, and for a CPU which one."""

from __future__ import annotations

import difflib
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from optimizer.cpus import CPUS, Cpu
from optimizer.errors import TargetError
from optimizer.gpus import GPUS, Gpu
from optimizer.nvidia import detect_gpu
from optimizer.onnx_limits import OnnxLimits
from optimizer.plugins import plugin_kinds

__all__ = ["CPUS", "OWN_KINDS", "Choices", "Cpu", "OnnxLimits", "Target"]

OWN_KINDS = ("cpu", "cuda", "onnx", "opencl")
"""The kinds of targets that this package has itself; others are of `optimizer.plugins`."""

_DEFAULT_GPU = "sm_80"
"""The architecture of `"cuda"` where there is no GPU: code for it runs on the others, translated or as it is."""

Choices = tuple[tuple[str, int], ...]
"""Pairs of what is decided and the value; see `optimizer.tuning`."""


@dataclass(frozen=True)
class Target:
    """A place to run.

    Attributes:
        kind: "cpu", "cuda" or "opencl" (compiled through TVM), "onnx" (the optimized graph alone, run by ONNX Runtime),
            or that of a backend in another package.
        cpu: the processor, for kind "cpu".
        gpu: the architecture that code is made for, for kinds "cuda" and "opencl".
        onnx: what the graph may be made of, for kind "onnx".
        detail: what stands behind the colon. For kind "opencl" which device runs it, by number or name: "" for the
            first GPU, or else the first device; for kind "cuda" the architecture. A target of another package
            says what it means.
        choices: what was measured to be better there than what the tile model would choose; see `optimizer.tuning`.
    """

    kind: str
    cpu: Cpu | None = None
    choices: Choices = ()
    onnx: OnnxLimits = field(default_factory=OnnxLimits)
    detail: str = ""
    gpu: Gpu | None = None

    @classmethod
    def parse(cls, text: str | Target) -> Target:
        """Read a target such as `"cpu"` (this machine), `"cpu:x86-64-v3"`, `"cuda:sm_90"`, `"onnx:17"` or `"opencl:1"`.

        `"cuda"` is the architecture of the first GPU, or `sm_80` where there is none.

        Raises:
            TargetError: the kind or the processor is unknown.
        """
        if isinstance(text, Target):
            return text
        if not isinstance(text, str):
            raise TargetError(f"target must be a string or an optimizer.Target, not {type(text).__name__}")
        kind, detail = re.fullmatch(r"(\w*):?(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]  # all fit
        if kind not in OWN_KINDS:
            others = plugin_kinds()
            if kind in others:
                return cls(kind, detail=detail)
            kinds = (*OWN_KINDS, *sorted(others))
            raise TargetError(
                f"unknown target {text!r}{_nearest(kind, kinds)}; available: {', '.join(kinds)}, or cpu:NAME"
            )
        if kind == "onnx":
            return cls("onnx", onnx=OnnxLimits.parse(detail, text))
        if kind == "opencl":
            return cls("opencl", detail=detail, gpu=GPUS["opencl"])
        if kind == "cuda":
            gpu = _architecture(detail, text)
            return cls("cuda", detail=gpu.name, gpu=gpu)
        if detail in ("", "native"):
            return cls("cpu", detect_cpu())
        if detail not in CPUS:
            raise TargetError(
                f"unknown processor in target {text!r}{_nearest(detail, CPUS)}; available: {', '.join(sorted(CPUS))}"
            )
        return cls("cpu", replace(CPUS[detail], cores=_cores()))

    def __str__(self) -> str:
        if self.detail:
            return f"{self.kind}:{self.detail}"
        if self.kind == "onnx":
            return f"onnx{self.onnx}"
        return self.kind if self.cpu is None or self.cpu.name == "native" else f"{self.kind}:{self.cpu.name}"


def _architecture(name: str, text: str) -> Gpu:
    """Of that name; of the GPU at hand, or `_DEFAULT_GPU`, for the empty string."""
    if not name:
        return detect_gpu() or GPUS[_DEFAULT_GPU]
    known = sorted(each for each, gpu in GPUS.items() if gpu.kind == "cuda")
    if name not in known:
        raise TargetError(
            f"unknown architecture in target {text!r}{_nearest(name, known)}; available: {', '.join(known)}"
        )
    return GPUS[name]


def detect_cpu() -> Cpu:
    """The machine at hand: the entry of `CPUS` that is nearest to it, with the caches and cores that the system tells.

    Nothing is measured, so that the same machine always gets the same code.
    """
    facts = _cpu_facts()
    base = _nearest_entry(facts, platform.machine())
    return replace(
        base,
        name="native",
        l1_bytes=_cache_bytes(1) or base.l1_bytes,
        l2_bytes=_cache_bytes(2) or base.l2_bytes,
        l3_bytes=_cache_bytes(3) or base.l3_bytes,
        cores=_cores(),
        bfloat16=base.bfloat16 and "avx512_bf16" in facts.get("flags", "").split(),
        vnni=base.vector_bytes == 64 and "avx512_vnni" in facts.get("flags", "").split(),
        vbmi=base.vector_bytes == 64 and "avx512vbmi" in facts.get("flags", "").split(),
    )


_ARM_PARTS = {"0xd0b": "cortex-a76", "0xd0c": "neoverse-n1", "0xd40": "neoverse-v1", "0xd4f": "neoverse-v2"}
"""What an Arm core calls itself (MIDR_EL1, part number)."""
_AVX512 = {"avx512f", "avx512bw", "avx512vl", "avx512dq"}


def _nearest_entry(facts: Mapping[str, str], machine: str) -> Cpu:
    """The entry of `CPUS` for what Linux tells of a processor; unknown ones get the entry of their vector unit."""
    if machine in ("aarch64", "arm64"):
        apple = facts.get("CPU implementer") == "0x61" or not facts
        return CPUS["apple-m1" if apple else _ARM_PARTS.get(facts.get("CPU part", ""), "neoverse-n1")]
    flags = set(facts.get("flags", "").split())
    amd = facts.get("vendor_id") == "AuthenticAMD"
    if flags >= _AVX512:
        if amd:
            return CPUS["znver5" if "avx512_vp2intersect" in flags else "znver4"]
        newest = (("amx_tile", "sapphirerapids"), ("avx512_vbmi2", "icelake-server"), ("clwb", "skylake-avx512"))
        return CPUS[next((name for flag, name in newest if flag in flags), "x86-64-v4")]
    if {"avx2", "fma"} <= flags:
        return CPUS["znver3" if amd else "x86-64-v3"]
    return CPUS["generic"]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_facts() -> dict[str, str]:
    """What `/proc/cpuinfo` says of the first processor; nothing where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="ignore")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _cache_bytes(level: int) -> int:
    """Size of the data (or unified) cache of a level as Linux tells it; 0 if it does not."""
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            if int((index / "level").read_text()) != level or (index / "type").read_text().strip() == "Instruction":
                continue
            size = (index / "size").read_text().strip()
        except (OSError, ValueError):
            continue
        units = {"K": 1024, "M": 1024 * 1024}
        return int(size[:-1]) * units[size[-1]] if size and size[-1] in units and size[:-1].isdigit() else 0
    return 0


def _nearest(word: str, known: object) -> str:
    matches = difflib.get_close_matches(word, list(known), n=1)  # type: ignore[call-overload]
    return f" (did you mean {matches[0]!r}?)" if matches else ""
