"""What stages without heavy operators take: element-wise chains, reductions, data movement."""

from __future__ import annotations

import math
from collections.abc import Sequence

from backends.cpu.amounts import Cost, cost_of, element_bytes, scaled, total
from backends.cpu.nest import along_reduction, stride_of
from backends.relax.kernel import Axis, Kernel, Stage
from backends.relax.loops import TensorLoad, known, lanes_of, loads_of, product, uses
from backends.relax.size_value import Formula
from optimizer.target import Cpu

__all__ = ["parallel_rows", "spilled", "stage_cycles", "stage_flops", "tail_cycles"]

_ROW_CYCLES = 2.0
"""To begin the loop over a row; most of it overlaps with the row before."""
_VECTOR_CYCLES = 0.5
"""For the loop over vectors: its counter and its branch."""
_FOLD_CYCLES = 20.0
"""To combine the vectors of partial results of a reduction, and their lanes."""
_LINE_BYTES = 64
_WAYS = 12
"""Of a set of a cache: 8 to 16."""
_UNKNOWN_EXTENT = 256
_PARTIALS = 4
"""As in `backends.cpu.nest`."""


def stage_flops(stages: Sequence[Stage], cpu: Cpu) -> Formula:
    """Floating-point operations."""
    return total(*(scaled([a.extent for a in s.axes], cost_of(s.value, cpu.lanes).flops) for s in stages))


def tail_cycles(stage: Stage, cpu: Cpu) -> Formula:
    """Cycles of a stage that is done on the tiles of a heavy one: its arithmetic alone, its operands are at hand."""
    return scaled([a.extent for a in stage.axes], cost_of(stage.value, cpu.lanes).cycles(cpu.fma_pipes) / cpu.lanes)


def stage_cycles(stages: Sequence[Stage], cpu: Cpu) -> Formula:
    """Cycles of one core, if all data is in its first-level cache."""
    return total(*(_cycles(stage, cpu) for stage in stages))


def _cycles(stage: Stage, cpu: Cpu) -> Formula:
    along = along_reduction(stage)
    cost = cost_of(stage.value, cpu.lanes)
    vector = along or (stage.spatial[-1] if stage.spatial else None)
    if vector is None or (stage.reduction and along is None and known(stage.spatial[-1].extent) == 1):
        return scaled([a.extent for a in stage.axes], max(1.0, _latency(stage, cpu)) + cost.slow / cpu.lanes)
    others = [a.extent for a in stage.axes if a is not vector]
    vectors, rest = _vectors(vector, cpu.lanes)
    one = _vector_cycles(stage, vector, cost, cpu)
    if stage.reduction:
        chain = _latency(stage, cpu) / (_PARTIALS if along is not None else 1)
        one = max(one, chain)
    row = _ROW_CYCLES + (_FOLD_CYCLES if along is not None else 0.0)
    if known(vector.extent) is None:
        return total(scaled([*others, vector.extent], one / cpu.lanes), scaled(others, row + rest * one))
    return scaled(others, vectors * one + row)


def _latency(stage: Stage, cpu: Cpu) -> float:
    """Cycles until a sum can be added to again."""
    return float(cpu.fma_latency) if stage.reduction else 0.0


def _vectors(axis: Axis, lanes: int) -> tuple[int, float]:
    """Vectors that cover an axis, narrow ones counted like whole ones; and how many more a symbolic one has."""
    if known(axis.extent) is None:
        return 0, lanes / 2
    return sum(count for _, count, _ in lanes_of(axis.extent, lanes)), 0.0


def _vector_cycles(stage: Stage, axis: Axis, cost: Cost, cpu: Cpu) -> float:
    """Of one vector: arithmetic or loads and stores, whichever takes longer, and elements that are read one by one."""
    width = max([element_bytes(stage.buffer.dtype), 4]) / 4
    vectors, _ = _vectors(axis, cpu.lanes)
    lanes = cpu.lanes if not vectors else min(float(cpu.lanes), (known(axis.extent) or 0) / vectors)
    loads = scattered = misses = 0.0
    for load in loads_of(stage.value):
        if load.source.same_as(stage.buffer):
            continue
        if stride_of(load, axis.var) in (0, 1):
            loads += 1
        else:
            scattered += lanes
            misses += lanes * _miss_cycles(load, axis, cpu)
    stores = 0 if stage.reduction else 1
    moved = max((loads + scattered) / cpu.load_ports, stores)
    return _VECTOR_CYCLES + width * max(cost.cycles(cpu.fma_pipes) + scattered / 2, moved) + misses


def _miss_cycles(load: TensorLoad, axis: Axis, cpu: Cpu) -> float:
    """To fetch the line of an element of which no neighbour is read before the whole axis was passed.

    Strides of a power of two fall into few sets of a cache, so that it holds less.
    """
    extent = known(axis.extent) or _UNKNOWN_EXTENT
    stride = _lines_apart(load, axis)
    rates = {cpu.l1_bytes: 0.0, cpu.l2_bytes: cpu.l2_bytes_a_cycle, cpu.l3_bytes: cpu.l3_bytes_a_cycle}
    for size, rate in rates.items():
        sets = max(1, size // (_LINE_BYTES * _WAYS))
        held = size // _LINE_BYTES // math.gcd(stride, 1 << (sets.bit_length() - 1))
        if extent <= held:
            return _LINE_BYTES / rate if rate else 0.0
    return _LINE_BYTES / cpu.memory_bytes_a_cycle


def _lines_apart(load: TensorLoad, axis: Axis) -> int:
    """How many cache lines lie between neighbours along the axis; 1 where that is not a constant."""
    apart = 1
    for index, size in zip(reversed(list(load.indices)), reversed(list(load.source.shape)), strict=True):
        if uses(index, axis.var):
            return max(1, apart * element_bytes(load.source.dtype) // _LINE_BYTES)
        apart *= known(size) or 1
    return 1


def spilled(kernel: Kernel, stages: Sequence[Stage]) -> Formula:
    """Bytes of intermediate results that are written and read as whole tensors."""
    own = [s for s in stages if not kernel.is_output(s.buffer)]
    return total(*(scaled([a.extent for a in s.spatial], 2 * element_bytes(s.buffer.dtype)) for s in own))


def parallel_rows(stage: Stage) -> Formula:
    """Tasks of a stage that runs alone: all its spatial axes but the last."""
    size = known(product([a.extent for a in stage.axes]))
    if size is not None and size * 4 < 16384:
        return 1
    return scaled([a.extent for a in stage.spatial[:-1]], 1.0)
