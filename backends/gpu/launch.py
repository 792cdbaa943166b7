"""What a GPU's schedule rule gives: the launches of a kernel, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import tvm
from tvm import tirx

from backends.gpu.narrow import without_names
from backends.relax.loops import Expr, Stmt, Var, i64, known, sequence
from backends.relax.values import Refused

__all__ = ["MOST_BLOCKS", "Ids", "Launch", "barrier", "scheduled"]

Ids = tuple[Expr, Expr, Expr]
"""The coordinates (x, y, z) of a block in the grid, or of a thread in its block; int64, from a device's int32."""

MOST_BLOCKS = (1 << 31) - 1
"""Along an axis of the grid: blocks are counted in 32 bits."""

_NAMES = (("blockIdx.x", "blockIdx.y", "blockIdx.z"), ("threadIdx.x", "threadIdx.y", "threadIdx.z"))


@dataclass(frozen=True)
class Launch:
    """A grid of blocks of threads that all run one body.

    Attributes:
        name: what it is called, beside the kernel's own name.
        grid: blocks along x, y, z; int64 expressions over the kernel's symbolic sizes. No block where one is zero.
        block: threads of a block along x, y, z.
        body: from the ids of the block and of the thread to what the thread does. What threads of a block share is
            allocated there with scope "shared", a thread's own with scope "local".
        scratch: buffers in the device's memory that it writes first; later launches of the kernel read them.
    """

    name: str
    grid: tuple[Expr, Expr, Expr]
    block: tuple[int, int, int]
    body: Callable[[Ids, Ids], Stmt]
    scratch: tuple[Var, ...] = ()


def barrier() -> Stmt:
    """All threads of a block wait for each other, and see what each has written to shared memory."""
    return tirx.Evaluate(tirx.call_intrin("void", "tirx.tvm_storage_sync", "shared"))


def scheduled(function: tirx.PrimFunc, launches: list[Launch]) -> tirx.PrimFunc:
    """The function with the launches for its body, in the form that TVM generates device code from.

    Raises:
        Refused: a launch has more blocks than a device counts.
    """
    scratch = [tirx.AllocBuffer(buffer) for launch in launches for buffer in launch.scratch]
    body = without_names(function, sequence([*scratch, *(_launched(launch) for launch in launches)]))
    done = tirx.PrimFunc(function.params, body, function.ret_type)
    for key, value in (function.attrs or {}).items():
        if key != "global_symbol":
            done = done.with_attr(key, value)
    return done.with_attr("tirx.is_scheduled", True).with_attr("tirx.noalias", True)


def _launched(launch: Launch) -> Stmt:
    """The body with its ids bound; along an extent of one the id is 0."""
    extents = [*launch.grid, *(i64(size) for size in launch.block)]
    most = max((size for extent in launch.grid if (size := known(extent)) is not None), default=0)
    if most > MOST_BLOCKS:
        raise Refused(f"it would start {most:,} blocks of threads, a device counts {MOST_BLOCKS:,}")
    names = [name for group in _NAMES for name in group]
    variables = [Var(name, "int32") for name in names]
    ids = [
        i64(0) if known(extent) == 1 else tirx.Cast("int64", var)
        for extent, var in zip(extents, variables, strict=True)
    ]
    body = launch.body((ids[0], ids[1], ids[2]), (ids[3], ids[4], ids[5]))
    for name, var, extent in reversed(list(zip(names, variables, extents, strict=True))):
        if known(extent) != 1 or name == "threadIdx.x":  # code is generated for a device where a thread is bound
            size = known(extent)
            count = tirx.Cast("int32", extent) if size is None else tirx.const(size, "int32")
            axis = tirx.IterVar(tvm.ir.Range(tirx.const(0, "int32"), count), var, tirx.IterVar.ThreadIndex, name)
            body = tirx.AttrStmt(axis, "thread_extent", count, body)
    return body
