"""How many bytes a scheduled kernel moves on a GPU, counted from its code: what warps ask for, and what memory sees.

Two numbers. *Requested*: sectors of 32 bytes that warps ask for, no cache counted, as a profiler shows them behind the
first-level cache when nothing hits there. *Memory*: sectors that pass between the second-level cache and the device's
memory, when blocks run in their order, a wave at a time, and the cache keeps what was used last in 75% of its bytes:
the rest is for what else passes. What several blocks of a wave read comes once. The cache is empty at first. Written
sectors count once, and again if they were dropped in between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
from tvm import tirx

from backends.gpu.tile_model import L2_BYTES_A_CYCLE, fma_lanes, occupancy
from benchmarks.gpu_accesses import Access, Grid, accesses, grids
from benchmarks.gpu_values import element_bytes
from optimizer.gpus import Gpu

__all__ = ["Traffic", "flat", "seconds_of", "traffic"]

Array = npt.NDArray[Any]

SECTOR = 32
"""Bytes that a cache line is filled by."""
L2_SHARE = 0.75
"""Of the second-level cache that keeps what blocks share."""
_WARP = 32
_ELEMENTS = 1 << 22
"""Places that are looked at together, about: the code is gone through once for all of them."""
_MOST = 1 << 26
"""Places of a launch that are replayed. Of a larger one whose tensors all stay in the cache, each passes once; else its
first waves stand for all."""
_SORTED = 1 << 19
"""Places whose sectors are counted warp by warp, about; of the blocks of a larger launch, a sample."""


@dataclass(frozen=True)
class Traffic:
    """Of all launches of a kernel.

    Attributes:
        launches: how many.
        blocks: of the launch that asks for most.
        requested_bytes: see above.
        memory_bytes: see above.
        unknown: whether a place depends on data: then every access counts, and none shares a sector.
    """

    launches: int
    blocks: int
    requested_bytes: float
    memory_bytes: float
    unknown: bool


def flat(function: tirx.PrimFunc, target: tvm.target.Target) -> tirx.PrimFunc:
    """A kernel of our rules (see `backends.gpu.launch.scheduled`) with flat buffers and vector accesses."""
    t = tirx.transform
    passes = [t.BindTarget(target), t.FlattenBuffer(), t.VectorizeLoop(True), t.StmtSimplify()]
    return tvm.transform.Sequential(passes)(tvm.IRModule({"kernel": function}))["kernel"]


def traffic(
    function: tirx.PrimFunc, resources: Sequence[Mapping[str, int]], gpu: Gpu, sizes: Mapping[str, int]
) -> Traffic:
    """Count what a kernel moves.

    Args:
        function: scheduled, with flat buffers.
        resources: registers and shared memory of each launch, as the compiler says.
        gpu: the device.
        sizes: of its symbolic sizes, by name.

    Raises:
        NotImplementedError: the length of a loop depends on data.
    """
    found = [grid for grid in grids(function, sizes) if grid.blocks]
    cache = _Cache(int(L2_SHARE * gpu.l2_bytes / SECTOR))
    buffers = sum(buffer_bytes(p, sizes) for p in function.params if isinstance(p.ty, tirx.BufferType))
    stays = buffers <= L2_SHARE * gpu.l2_bytes
    requested, most, blocks, unknown = 0.0, -1.0, 1, False
    for number, grid in enumerate(found):
        taken = resources[min(number, len(resources) - 1)]
        resident = max(1, occupancy(gpu, grid.threads, taken["shared_bytes"], taken["registers"]))
        own, open_ = _launch(grid, sizes, gpu.multiprocessors * resident, cache, buffers if stays else None)
        requested, unknown = requested + own, unknown or open_
        if own > most:
            most, blocks = own, grid.blocks
    return Traffic(len(found), blocks, requested, SECTOR * cache.missed, unknown)


def _launch(
    grid: Grid, sizes: Mapping[str, int], wave: int, cache: _Cache, kept_bytes: int | None
) -> tuple[float, bool]:
    """Bytes that the blocks of a launch request, and whether a place is unknown; the cache sees what they touch.

    `kept_bytes`: of all tensors, if the cache keeps them.
    """
    first = list(accesses(grid, np.zeros(1, np.int64), sizes))
    each = max(1, sum(int(np.prod(np.broadcast_shapes(_shape(a), a.mask.shape))) for a in first))
    sample = _sample(grid.blocks, max(2, _SORTED // each))
    batch = max(1, _ELEMENTS // each)
    requested = sum(
        _sectors(access) * access.times
        for start in range(0, len(sample), batch)
        for access in accesses(grid, sample[start : start + batch], sizes)
    )
    unknown = any(a.first is None for a in first)
    most = max(wave, _MOST // each // wave * wave)
    if most < grid.blocks and kept_bytes is not None:
        cache.missed += kept_bytes / SECTOR
        return SECTOR * requested * grid.blocks / len(sample), unknown
    before = cache.missed
    for begin in range(0, min(grid.blocks, most), wave):
        for start in range(begin, min(begin + wave, grid.blocks), batch):
            stop = min(start + batch, begin + wave, grid.blocks)
            for access in accesses(grid, np.arange(start, stop), sizes):
                cache.touch(access)
        cache.end_wave()
    cache.missed = before + (cache.missed - before) * max(1.0, grid.blocks / most)
    return SECTOR * requested * grid.blocks / len(sample), unknown


def _shape(access: Access) -> tuple[int, ...]:
    return () if access.first is None else access.first.shape


def _sample(count: int, most: int) -> Array:
    """All blocks, or some of every part of the grid."""
    if count <= most:
        return np.arange(count)
    edges = np.linspace(0, count, most + 1).astype(np.int64)
    return np.random.default_rng(0).integers(edges[:-1], edges[1:])


def _sectors(access: Access) -> float:
    """That the warps ask for: different ones in each instruction of a warp."""
    whole = -(-access.bytes // SECTOR)
    if access.first is None:
        return float(access.mask.sum()) * whole
    shape = np.broadcast_shapes(access.first.shape, access.mask.shape)
    places = np.broadcast_to(access.first * access.element // SECTOR, shape)
    by_warp = np.where(access.mask, places, -1).reshape(-1, _WARP)
    by_warp = np.sort(by_warp, axis=1)
    new = (by_warp[:, 1:] != by_warp[:, :-1]).sum() + (by_warp[:, 0] >= 0).sum()
    return float(new) * whole


class _Cache:
    """What memory sees behind a cache of so many sectors that drops what was used longest ago, wave by wave."""

    def __init__(self, sectors: int) -> None:
        self.sectors = sectors
        self.missed = 0.0
        self._wave = 0
        self._last: dict[Any, Array] = {}
        self._touched: dict[Any, Array] = {}

    def touch(self, access: Access) -> None:
        """An access of the wave that runs."""
        if access.first is None:  # every one goes to memory
            self.missed += float(access.mask.sum()) * access.times * -(-access.bytes // SECTOR)
            return
        shape = np.broadcast_shapes(access.first.shape, access.mask.shape)
        places = np.broadcast_to(access.first * access.element // SECTOR, shape)[np.broadcast_to(access.mask, shape)]
        if not places.size:
            return
        touched = self._touched.get(access.buffer)
        end = int(places.max()) + 1
        if touched is None or touched.size < end:
            grown = np.zeros(max(end, 0 if touched is None else 2 * touched.size), bool)
            if touched is not None:
                grown[: touched.size] = touched
            touched = self._touched[access.buffer] = grown
        touched[places] = True

    def end_wave(self) -> None:
        """Count what was not there."""
        own = {buffer: np.flatnonzero(touched) for buffer, touched in self._touched.items()}
        size = sum(len(places) for places in own.values())
        ages = np.zeros(self._wave + 1, np.int64)  # how many sectors were used last in each wave
        for last in self._last.values():
            ages += np.bincount(last[last >= 0], minlength=self._wave + 1)
        newer = np.concatenate([np.cumsum(ages[::-1])[::-1][1:], [0]])  # in later ones
        for buffer, places in own.items():
            last = self._last.get(buffer, np.full(0, -1, np.int64))
            if len(last) < len(self._touched[buffer]):
                last = np.concatenate([last, np.full(len(self._touched[buffer]) - len(last), -1, np.int64)])
            before = last[places]
            there = (before >= 0) & (newer[before] + size <= self.sectors)
            self.missed += float((~there).sum())
            last[places] = self._wave
            self._last[buffer] = last
            self._touched[buffer][:] = False
        self._wave += 1


def seconds_of(found: Traffic, flops: float, dtype: str, gpu: Gpu) -> float:
    """An estimate for any schedule, ours or not: its launches, and the longest of memory, cache and arithmetic.

    Args:
        found: its traffic.
        flops: its operations.
        dtype: whose peak it can reach: that of tensor cores where it uses them.
        gpu: the device.
    """
    clock = gpu.flops["float32"] / (2 * fma_lanes(gpu) * gpu.multiprocessors)
    waves = -(-found.blocks // gpu.multiprocessors)
    busy = found.blocks / (waves * gpu.multiprocessors)
    return found.launches * gpu.launch_seconds + max(
        found.memory_bytes / gpu.memory_bytes_a_second,
        found.requested_bytes / (L2_BYTES_A_CYCLE * gpu.multiprocessors * clock),
        flops / (busy * gpu.flops[dtype]),
    )


def buffer_bytes(buffer: tirx.Var, sizes: Mapping[str, int]) -> int:
    """Of a parameter, with its symbolic sizes."""
    total = element_bytes(str(buffer.dtype))
    for dim in buffer.shape:
        total *= int(dim.value) if isinstance(dim, tirx.IntImm) else int(_evaluated(dim, sizes))
    return total


def _evaluated(dim: Any, sizes: Mapping[str, int]) -> int:
    from backends.relax.size_formula import formula
    from backends.relax.size_value import evaluate

    return int(evaluate(formula(dim), dict(sizes)))
