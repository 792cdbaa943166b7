"""Kernels with control flow of their own (sorting, scatter...): TVM's blocks as they are, which no rule writes anew."""

from __future__ import annotations

import tvm
from tvm import s_tir, tirx

__all__ = ["block_passes", "outer_parallel"]


def outer_parallel(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """A function whose blocks run their independent outer axes in parallel.

    Args:
        function: its body is a root block.
    """
    schedule = s_tir.Schedule(function)
    for block in schedule.get_child_blocks(schedule.get_sblock("root")):
        loops = schedule.get_loops(block)
        kinds = [int(v.iter_type) for v in schedule.get(block).iter_vars]
        spatial = [lp for lp, kind in zip(loops, kinds, strict=False) if kind == 0]
        if spatial and len(loops) == len(kinds):
            schedule.parallel(spatial[0])
    return schedule.mod["main"]


def block_passes() -> list[tvm.transform.Pass]:
    """The passes that turn blocks into loop nests."""
    t = s_tir.transform
    return [
        t.CanonicalizeLoop(),
        t.LowerInitBlock(),
        t.PlanAndUpdateBufferAllocationLocation(),
        t.ConvertBlocksToOpaque(),
        t.CompactBufferAllocation(),
        t.LowerMatchBuffer(),
        t.StmtSimplify(),
        t.LowerOpaqueBlock(),
    ]
