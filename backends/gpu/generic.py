"""The rule for everything else: element-wise chains, reductions, normalisations, softmax, data movement.

It also takes the heavy operators that no other rule takes, as plain loops in each thread. The stages of a kernel are
cut into as few launches as can be:

1. Stages over the same points, each read at its own point only: a thread for each point (`points`).
2. Stages that have rows in common, some of them reduced: a block for each row (`rows`).
3. What is left: each stage is a launch of its own, and its result lies in the device's memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from backends.gpu.launch import Launch
from backends.gpu.points import points
from backends.gpu.rows import combine_of, rows
from backends.gpu.strides import stride_of
from backends.relax.kernel import Axis, Kernel, Stage
from backends.relax.loops import Var, known, loads_of, product, simplify
from optimizer.gpus import Gpu

__all__ = ["lower"]

_SHORT = 32
"""Elements that a thread reduces alone, at most, where a tree could do it."""
_MANY = 8192
"""Results from which every thread can have one of its own."""


def lower(kernel: Kernel, gpu: Gpu) -> list[Launch]:
    """The launches of a kernel."""
    launches: list[Launch] = []
    stages = [s for s in kernel.stages if known(product([a.extent for a in s.spatial])) != 0]
    while stages:
        count = len(stages)
        while (launch := _together(stages[:count], _outputs(kernel, stages, count), gpu)) is None:
            count -= 1
        written = _outputs(kernel, stages, count)
        scratch = [b for b in written if not kernel.is_output(b)]
        launches.append(replace(launch, scratch=tuple(scratch)))
        stages = stages[count:]
    return launches


def _outputs(kernel: Kernel, stages: Sequence[Stage], count: int) -> list[Var]:
    """What the first stages make that is wanted outside of them."""
    later = {load.source for stage in stages[count:] for load in loads_of(stage.value)}
    return [s.buffer for s in stages[:count] if kernel.is_output(s.buffer) or s.buffer in later]


def _together(stages: Sequence[Stage], outputs: Sequence[Var], gpu: Gpu) -> Launch | None:
    """One launch for these stages, if there can be one."""
    at_points = len({len(s.spatial) for s in stages}) == 1 and _common(stages, len(stages[0].spatial))
    if at_points and not any(_better_in_tree(stage) for stage in stages):
        return points(stages, outputs, gpu)
    if any(stage.reduction for stage in stages):
        for shared in range(min(len(s.spatial) for s in stages), 0 if len(stages) > 1 else -1, -1):
            if _common(stages, shared) and (launch := rows(stages, shared, outputs, gpu)) is not None:
                return launch
    return points(stages, outputs, gpu) if at_points else None


def _better_in_tree(stage: Stage) -> bool:
    """Whether the threads of a block should share the reduction of one element."""
    if not stage.reduction or combine_of(stage) is None or (stage.kind and stage.kind != "reduce"):
        return False
    length = known(product([a.extent for a in stage.reduction]))
    if length is not None and length <= _SHORT:
        return False
    results = known(product([a.extent for a in stage.spatial]))
    loads = [ld for ld in loads_of(stage.value) if not ld.source.same_as(stage.buffer)]
    contiguous = any(stride_of(load, stage.reduction[-1].var) == 1 for load in loads)
    return contiguous or (results is not None and results < _MANY)


def _common(stages: Sequence[Stage], shared: int) -> bool:
    """Whether the stages have the first axes in common, and are read there at the same place."""
    first = stages[0].spatial[:shared]
    own = {s.buffer for s in stages}
    return all(_same_rows(stage, first, shared, own) for stage in stages)


def _same_rows(stage: Stage, first: Sequence[Axis], shared: int, own: set[Var]) -> bool:
    lead = stage.spatial[:shared]
    if any(known(simplify(a.extent - b.extent)) != 0 for a, b in zip(lead, first, strict=True)):
        return False
    for load in loads_of(stage.value):
        if load.source in own and not load.source.same_as(stage.buffer):
            for index, axis in zip(load.indices[:shared], lead, strict=True):
                if not (index.same_as(axis.var) or (known(index) == 0 and known(axis.extent) == 1)):
                    return False
    return True
