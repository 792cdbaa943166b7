"""TVM's own default schedules for GPUs (`tvm.s_tir.dlight`), and its passes up to where a device's code begins."""

from __future__ import annotations

import functools
import importlib
import inspect
from unittest import mock

import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.s_tir import dlight

__all__ = ["default_schedule"]

_FOUND: dict[int, list[tuple[tirx.PrimFunc, tirx.PrimFunc]]] = {}


def default_schedule(function: tirx.PrimFunc, target: tvm.target.Target) -> tirx.PrimFunc:
    """A kernel scheduled by the first of TVM's rules that takes it, and lowered up to where host and device are split.

    A kernel is lowered once for all architectures: the schedules depend on none of what a target says of itself but
    threads and shared memory, which are the same for all that the tables show.
    """
    alike = _FOUND.setdefault(tvm_ffi.structural_hash(function), [])
    for known, lowered in alike:
        if tvm_ffi.structural_equal(known, function):
            return lowered
    alike.append((function, _lowered(function, target)))
    return alike[-1][1]


@functools.cache
def _import_intrinsics() -> None:
    """What dlight imports when it first sees a product of 16 bits: half a minute as it is, here two seconds.

    For each of some hundred functions TVM asks for the stack, for which Python looks up the source of each frame among
    all modules. TVM needs the frames alone.
    """

    def frames(_context: int = 1) -> list[inspect.FrameInfo]:
        found, frame = [], inspect.currentframe()
        while frame is not None and (frame := frame.f_back) is not None:
            code = frame.f_code
            found.append(inspect.FrameInfo(frame, code.co_filename, frame.f_lineno, code.co_name, None, None))
        return found

    with mock.patch.object(inspect, "stack", frames):
        importlib.import_module("tvm.s_tir.tensor_intrin")


def _lowered(function: tirx.PrimFunc, target: tvm.target.Target) -> tirx.PrimFunc:
    _import_intrinsics()
    gpu, s, t = dlight.gpu, s_tir.transform, tirx.transform
    rules = (gpu.Matmul(), gpu.GEMV(), gpu.Reduction(), gpu.GeneralReduction(), gpu.Fallback())
    passes = [
        *(t.BindTarget(target), s.CanonicalizeLoop(), s.LowerCrossThreadReduction(), s.LowerInitBlock()),
        *(s.PlanAndUpdateBufferAllocationLocation(), s.ConvertBlocksToOpaque(), s.LiftThreadBinding()),
        *(s.ManifestSharedMemoryLocalStage(), s.CompactBufferAllocation(), s.LowerAutoCopy()),
        *(s.UnifyThreadBinding(), s.LowerMatchBuffer(), s.StmtSimplify(), s.InjectPermutedLayout()),
        *(s.AnnotateIrregularLoop(), s.InjectSoftwarePipeline(), s.TransformMmaBufferLayout(), s.LowerOpaqueBlock()),
        *(t.FlattenBuffer(), t.BF16ComputeLegalize(), t.NarrowDataType(32), s.LoopPartition(), t.VectorizeLoop(True)),
        *(s.InjectVirtualThread(), s.InjectDoubleBuffer(), t.StorageRewrite(), s.HoistIfThenElse(), t.UnrollLoop()),
        *(s.RenormalizeSplitPattern(), t.StmtSimplify(), t.RemoveNoOp(), s.RewriteUnsafeSelect()),
        *(t.FP8ComputeLegalize(), t.VerifyMemory(), t.AnnotateEntryFunc(), s.ThreadSync("shared")),
        *(s.ThreadSync("shared.dyn"), s.ThreadSync("warp"), s.InferFragment(), s.LowerThreadAllreduce()),
        s.MergeSharedMemoryAllocations(),
    ]
    with target:
        scheduled = dlight.ApplyDefaultSchedule(*rules)(tvm.IRModule({"kernel": function}))
        return tvm.transform.Sequential(passes)(scheduled)["kernel"]
