"""From loop nests to what LLVM takes: TVM's passes that a scheduled kernel needs, and no others.

TVM's own list serves GPUs and unscheduled blocks, too; on the loop nests that the rules write it takes twice as long
and gives the same machine code. What LLVM does as well, such as common subexpressions and hoisted conditions, is left
to it.
"""

from __future__ import annotations

import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.tirx.compilation_pipeline import finalize_device_passes, finalize_host_passes, register_tir_pipeline

from backends.relax.blocks import block_passes

NAME = "tersor-cpu"

_INDEX_BITS = 32


def lowering() -> str:
    """Make the pipeline known to TVM; gives its name."""
    register_tir_pipeline(NAME, lambda: (_lower(), finalize_host_passes, finalize_device_passes))
    return NAME


def _lower() -> tvm.transform.Pass:
    blocks, nests = tvm.transform.Sequential(block_passes()), tvm.transform.Sequential(_of_nests())

    @tvm.transform.module_pass(opt_level=0, name="LowerForCpu")  # type: ignore[untyped-decorator]
    def lower(module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        with_blocks = {var: f for var, f in module.functions.items() if _has_blocks(f)}
        lowered = blocks(tvm.IRModule(with_blocks, attrs=module.attrs)) if with_blocks else tvm.IRModule({})
        module = module.clone()
        for var, function in lowered.functions.items():
            module.update_func(module.get_global_var(var.name_hint), function)
        return nests(module)

    return lower


def _has_blocks(function: tirx.PrimFunc) -> bool:
    found: list[s_tir.SBlockRealize] = []
    tvm_ffi.structural_walk(function.body, (s_tir.SBlockRealize, found.append))
    return bool(found)


def _of_nests() -> list[tvm.transform.Pass]:
    t = tirx.transform
    return [
        t.FlattenBuffer(),
        t.BF16ComputeLegalize(),
        t.NarrowDataType(_INDEX_BITS),
        t.VectorizeLoop(True),
        t.StorageRewrite(),
        t.UnrollLoop(),
        t.StmtSimplify(),
        s_tir.transform.RewriteUnsafeSelect(),
        t.FP8ComputeLegalize(),
        t.VerifyMemory(),
        t.AnnotateEntryFunc(),
        t.SplitHostDevice(),
        t.MakePackedAPI(),
        t.FP8StorageLegalize(),
        t.BF16StorageLegalize(),
    ]
