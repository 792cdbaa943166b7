"""The rule for everything else: element-wise chains, reductions, normalisations, softmax, data movement.

Stages that share their leading axes run row by row, with the intermediate results of a row in small buffers of the
thread. Each stage is vectorised along the axis that its loads follow contiguously: the last spatial axis, or, for a
reduction over a contiguous axis, the reduction itself, with vectors of partial results.
"""

from __future__ import annotations

from tvm import tirx

from backends.cpu.nest import along_reduction, stage_nest, store_all
from backends.relax.kernel import Axis, Kernel, Stage
from backends.relax.loops import (
    BufferLoad,
    BufferStore,
    Expr,
    Stmt,
    TensorLoad,
    Var,
    allocate,
    i64,
    known,
    loads_of,
    local,
    loop,
    parallel,
    product,
    sequence,
    simplify,
    substitute,
    unflatten,
)
from optimizer.target import Cpu

_PARALLEL_WORK = 16384
"""Scalar operations below which starting the threads costs more than it saves."""

_CHUNKS_A_CORE = 4
"""Parts into which the rows are cut, for each core: enough that no thread waits long for the others."""


def lower(kernel: Kernel, cpu: Cpu) -> Stmt:
    """The loop nests of a kernel without heavy operators."""
    shared = shared_rows(kernel)
    if shared == 0:
        buffers = [s.buffer for s in kernel.stages if not kernel.is_output(s.buffer)]
        return allocate(buffers, sequence([_alone(s, cpu) for s in kernel.stages]))
    return _row_by_row(kernel, shared, cpu)


def _alone(stage: Stage, cpu: Cpu) -> Stmt:
    """One stage as a nest of its own: parallel over all but the last spatial axes."""
    spatial = stage.spatial
    inner = _inner_axes(stage, cpu)
    outer = spatial[: len(spatial) - inner]
    rows = product([a.extent for a in outer])

    def row(index: Expr) -> Stmt:
        point = (
            dict(zip((a.var for a in outer), unflatten(index, [a.extent for a in outer]), strict=True)) if outer else {}
        )
        return stage_nest(stage, spatial[len(outer) :], point, cpu, store_all(stage))

    if not outer:
        return row(i64(0))
    return sequence([parallel(rows, row, worthwhile=worthwhile([stage]))])


def _inner_axes(stage: Stage, cpu: Cpu) -> int:
    """How many of the last spatial axes one task computes: one, or none where the vector runs along the reduction."""
    spatial = stage.spatial
    if not spatial or along_reduction(stage) is not None:
        return 0
    last = known(spatial[-1].extent)
    wide = 2 if len(spatial) > 2 and last is not None and last < 4 * cpu.lanes else 1
    return min(wide, len(spatial))


def _row_by_row(kernel: Kernel, shared: int, cpu: Cpu) -> Stmt:
    """Rows in a few chunks, so that the buffers of a row are allocated once a chunk."""
    extents = [a.extent for a in kernel.stages[0].spatial[:shared]]
    rows = product(extents)
    size = known(rows)
    chunks = _CHUNKS_A_CORE * cpu.cores if size is None else min(_CHUNKS_A_CORE * cpu.cores, size)
    small = {
        s.buffer: local([a.extent for a in s.spatial[shared:]] or [i64(1)], str(s.buffer.dtype), s.buffer.name)
        for s in kernel.stages
        if not kernel.is_output(s.buffer)
    }

    def row(index: Expr) -> Stmt:
        coordinates = unflatten(index, extents)
        return sequence([_row_stage(stage, shared, coordinates, small, cpu) for stage in kernel.stages])

    def chunk(index: Expr) -> Stmt:
        begin = tirx.floordiv(index * rows, chunks)
        count = tirx.floordiv((index + 1) * rows, chunks) - begin
        return allocate(list(small.values()), sequence([loop(simplify(count), lambda r: row(begin + r), name="row")]))

    return sequence([parallel(chunks, chunk, worthwhile=worthwhile(kernel.stages))])


def _row_stage(stage: Stage, shared: int, coordinates: list[Expr], small: dict[Var, Var], cpu: Cpu) -> Stmt:
    point = {a.var: c for a, c in zip(stage.spatial[:shared], coordinates, strict=True)}

    def redirect(node: TensorLoad) -> Expr | None:
        target = None if node.source.same_as(stage.buffer) else small.get(node.source)
        return None if target is None else BufferLoad(target, list(node.indices[shared:]) or [i64(0)])

    def store(indices: list[Expr], value: Expr) -> Stmt:
        target = small.get(stage.buffer)
        if target is None:
            return BufferStore(stage.buffer, value, indices)
        return BufferStore(target, value, indices[shared:] or [i64(0)])

    moved = Stage(
        stage.name, stage.axes, stage.buffer, stage.init, substitute(stage.value, {}, redirect), stage.annotations
    )
    return stage_nest(moved, stage.spatial[shared:], point, cpu, store)


def shared_rows(kernel: Kernel) -> int:
    """How many leading axes all stages have in common, read and written at the same place; 0 for a single stage."""
    if len(kernel.stages) < 2:
        return 0
    first = kernel.stages[0].spatial
    shared = min(len(s.spatial) for s in kernel.stages)
    shared = min(shared, max(len(s.spatial) for s in kernel.stages) - 1) or shared
    own = {s.buffer for s in kernel.stages}
    while shared > 0:
        if all(_same_rows(stage, first, shared, own) for stage in kernel.stages):
            return shared
        shared -= 1
    return 0


def _same_rows(stage: Stage, first: list[Axis], shared: int, own: set[Var]) -> bool:
    lead = stage.spatial[:shared]
    if any(str(simplify(a.extent - b.extent)) not in ("T.int64(0)", "0") for a, b in zip(lead, first, strict=False)):
        return False
    for load in loads_of(stage.value):
        if load.source in own:
            for index, axis in zip(load.indices[:shared], lead, strict=False):
                if not (index.same_as(axis.var) or (known(index) == 0 and known(axis.extent) == 1)):
                    return False
    return True


def worthwhile(stages: tuple[Stage, ...] | list[Stage]) -> bool:
    """Whether the stages are enough work for several threads."""
    work = 0
    for stage in stages:
        size = known(product([a.extent for a in stage.axes])) if stage.axes else 1
        if size is None:
            return True
        work += size * 4
    return work >= _PARALLEL_WORK
