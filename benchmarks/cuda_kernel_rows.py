"""What the tables of CUDA kernels say of one kernel: what it computes, and by whose schedule it moves how much."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tvm import tirx

from backends.gpu import four_bits, matmul
from backends.gpu.attention import AttentionParts
from backends.gpu.attention import sizes_of as sizes_of_attention
from backends.gpu.conv2d import Convolution
from backends.relax.kernel import Kernel, Stage, decode, inline
from backends.relax.stage_window import StageWindow
from benchmarks.cuda_schedules import Kernels, Scheduled
from benchmarks.gpu_traffic import SECTOR, buffer_bytes

__all__ = ["HEAVY", "KernelRow", "described"]

HEAVY = ("matmul", "conv2d", "depthwise", "four_bits", "attention")
"""Kinds of kernels that the table shows one by one."""


@dataclass(frozen=True)
class KernelRow:
    """A kernel of a model.

    Attributes:
        kind: one of `HEAVY`, or "" for all others.
        shape: what it computes, in words of its sizes; "n" is known at run time.
        dtype: of its factors.
        calls: of a run.
        minimum: bytes, if the sectors of each input, weight and output passed once; without the padding of packed
            weights.
        ours, theirs: `Scheduled` as plain data; `None` where it was not looked at.
    """

    kind: str
    shape: str
    dtype: str
    calls: int
    minimum: int
    ours: dict[str, Any]
    theirs: dict[str, Any] | None

    @property
    def key(self) -> tuple[str, str, str]:
        """The same for kernels that differ in their tails only."""
        return self.kind, self.shape, self.dtype

    def ratio(self, what: str, whose: Mapping[str, Any] | None) -> float | None:
        """`memory_bytes` or `requested_bytes` to the minimum."""
        moved = whose and whose["moved"]
        return moved[what] / self.minimum if moved else None


def described(name: str, kernels: Kernels, ours: Scheduled, theirs: Scheduled | None) -> KernelRow:
    """The row of a kernel."""
    function = kernels.functions[name]
    decoded = decode(function)
    kernel = None if decoded is None else inline(decoded)
    kind, shape, dtype, padding = ("", name, "", 0.0) if kernel is None else _what(kernel, kernels.sizes)
    parameters = [p for p in function.params if isinstance(p.ty, tirx.BufferType)]
    try:
        sectors = sum(math.ceil(buffer_bytes(p, kernels.sizes) / SECTOR) for p in parameters)
        minimum = SECTOR * (sectors - int(padding / SECTOR))
    except KeyError:  # a length that only the run knows
        minimum = 0
    plain = None if theirs is None else asdict(theirs)
    return KernelRow(kind, shape or name, dtype, kernels.calls[name], minimum, asdict(ours), plain)


def kind_of(function: tirx.PrimFunc) -> str:
    """One of `HEAVY`, or ""."""
    decoded = decode(function)
    return "" if decoded is None else _kind(inline(decoded))


def _kind(kernel: Kernel) -> str:
    if AttentionParts.of(kernel) is not None:
        return "attention"
    return next((stage.kind for stage in kernel.stages if stage.kind in HEAVY), "")


def _what(kernel: Kernel, sizes: Mapping[str, int]) -> tuple[str, str, str, float]:
    """Kind, shape, type, and bytes by which packed weights are longer than they would have to be."""
    kind = _kind(kernel)
    if kind == "attention":
        parts = AttentionParts.of(kernel)
        found = None if parts is None else sizes_of_attention(parts)
        if parts is None or found is None:
            return kind, "", "", 0.0
        shape = f"{_n(found.heads)} heads, {_n(found.rows)} x {_n(found.keys)}, {found.size}"
        return kind, shape + (", causal" if found.share < 1 else ""), str(parts.key.source.dtype), 0.0
    stage = next((s for s in kernel.stages if s.kind == kind), None) if kind else None
    if stage is None:
        return "", "", "", 0.0
    return (kind, *_product(stage, kind))


def _product(stage: Stage, kind: str) -> tuple[str, str, float]:
    if kind == "conv2d":
        c = Convolution(stage)
        w, s = c.window, c.sizes()
        strides = f"/{w.sh}" if w.sh > 1 else ""
        groups = f", {c.groups} groups" if c.groups > 1 else ""
        image = " x ".join(_n(_known(d)) for d in c.data.shape[:3])
        shape = f"{image} x {c.channels * c.groups}, {w.kh} x {w.kw}{strides} to {c.out * c.groups}{groups}"
        return (
            shape,
            s.dtype,
            _padding(c.weights, c.out, int(c.weights.shape[4]) // c.rows_together, int(c.weights.shape[1])),
        )
    if kind == "depthwise":
        window, data = StageWindow.of(stage), stage.operand(4)
        image = " x ".join(_n(_known(d)) for d in data.shape)
        stride = f"/{window.sh}" if window.sh > 1 else ""
        return f"{image}, {window.kh} x {window.kw}{stride}", str(data.dtype), 0.0
    if kind == "four_bits":
        s = four_bits.sizes_of(stage)
        return f"{_n(s.rows)} x {_n(s.columns)} x {_n(s.depth)}", "int4", 0.0
    parts = matmul.take_apart(stage)
    if parts is None:
        return "", "", 0.0
    s = matmul.sizes_of(parts)
    batches = f"{_n(s.batches)} of " if s.batches != 1 else ""
    padding = 0.0
    if parts.width is not None and s.columns is not None:
        padding = _padding(parts.right.source, s.columns, parts.width, int(parts.right.source.shape[-3]))
    return f"{batches}{_n(s.rows)} x {_n(s.columns)} x {_n(s.depth)}", s.dtype, padding


def _padding(weights: tirx.Var, columns: int, width: int, panels: int) -> float:
    """Bytes of columns that are there only to fill the last panel."""
    if any(_known(dim) is None for dim in weights.shape):
        return 0.0
    return buffer_bytes(weights, {}) * (1 - min(1.0, columns / (width * panels)))


def _known(dim: Any) -> int | None:
    return int(dim.value) if isinstance(dim, tirx.IntImm) else None


def _n(size: int | None) -> str:
    return "n" if size is None else str(size)


def worst(rows: list[KernelRow], kinds: tuple[str, ...], whose: str, what: str = "memory_bytes") -> float | None:
    """The largest ratio to the minimum among kernels of these kinds."""
    own = [row for row in rows if row.kind in kinds and row.minimum]
    ratios = [row.ratio(what, row.ours if whose == "ours" else row.theirs) for row in own]
    found = [ratio for ratio in ratios if ratio is not None and math.isfinite(ratio)]
    return max(found, default=None)
