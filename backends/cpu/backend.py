"""The CPU backend: ONNX through Relax to a native module, with weights packed beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from backends.base import BackendInfo, Progress
from backends.cpu.linker import cross_linker
from backends.relax.backend import RelaxBackend
from backends.relax.executable import RelaxExecutable, load_executable
from backends.relax.pack import pack
from backends.relax.plan import ONNXRUNTIME
from optimizer.errors import TargetError
from optimizer.executable import Array, Executable
from optimizer.machine import machine_needed, why_unusable
from optimizer.scratch import folder_kept_on_success
from optimizer.target import Target

if TYPE_CHECKING:
    import onnx_ir as ir

_LARGE_MODEL = 1 << 24
"""Elements in the weights from which the compile process is ended before they are packed: it holds 300 MB."""


class CpuBackend(RelaxBackend):
    """Compiles for x86 and Arm CPUs through TVM."""

    name = "cpu"
    precisions = ("float32", "bfloat16", "int8", "int4")

    def compile(
        self, model: ir.Model, target: Target, *, fallback: str, progress: Progress | None = None
    ) -> Executable:
        """See `backends.base.Backend.compile`. What only compiling needs is imported here: loading does without it."""
        from onnx_ir.passes.common import NameFixPass

        from backends.relax.client import PROCESS, compile_graph
        from backends.relax.fallback import partition_model

        if target.cpu is None:
            raise TargetError(f"target {target} has no processor; use 'cpu' or 'cpu:NAME'")
        linker = cross_linker(target.cpu)
        unusable = why_unusable(machine_needed(str(target)))
        say = progress or (lambda _: None)
        with folder_kept_on_success() as folder:
            NameFixPass()(model)  # partitions refer to nodes by name
            library = folder / "kernels.so"
            say("generating code")
            fallbacks, choices = fallback == "onnxruntime", target.choices
            plan = compile_graph(model, target.cpu, library, linker=linker, allow_fallback=fallbacks, choices=choices)
            say("packing weights")
            if sum(int(np.prod(w.shape, dtype=np.int64)) for w in plan.weights) >= _LARGE_MODEL:
                PROCESS.release()
            weights = pack(plan, model.graph)
            partitions = {s.entry: partition_model(model, s) for s in plan.steps if s.engine == ONNXRUNTIME}
            compiled = library if library.exists() else None
            executable = RelaxExecutable(self.name, compiled, plan, weights, partitions, folder, unusable)
            executable.prepare(target.cpu.cores)  # what ONNX Runtime cannot load is an error of this call
            return executable

    def load(self, parts: Mapping[str, Path | Array], manifest: Mapping[str, object]) -> Executable:
        """See `backends.base.Backend.load`."""
        return load_executable(self.name, parts, manifest)

    def describe(self) -> BackendInfo:
        """See `backends.base.Backend.describe`."""
        from backends.relax.registry import operator_names

        return BackendInfo(
            name=self.name,
            summary="native code for x86-64 and Arm CPUs, compiled through TVM with analytic schedules",
            needs="apache-tvm, a C compiler to link with",
            operators=len(operator_names()),
            precisions=self.precisions,
            proof="run here and compared with ONNX Runtime",
            operator_names=operator_names(),
        )
