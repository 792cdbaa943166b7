"""The OpenCL backend: ONNX through Relax to a program's text, with weights packed beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from backends.base import BackendInfo, Progress
from backends.gpu.front import generate
from backends.opencl.executable import load_executable, made
from backends.relax.backend import RelaxBackend
from optimizer.errors import TargetError
from optimizer.executable import Array, Executable
from optimizer.target import Target

if TYPE_CHECKING:
    import onnx_ir as ir


class OpenClBackend(RelaxBackend):
    """Compiles for any device with OpenCL 1.2, through TVM's code generator."""

    name = "opencl"
    precisions = ("float32", "float16", "int8", "int4")

    def compile(
        self, model: ir.Model, target: Target, *, fallback: str, progress: Progress | None = None
    ) -> Executable:
        """See `backends.base.Backend.compile`. The device is looked for when the model first runs."""
        saved, source = generate(model, target, fallback=fallback, progress=progress)
        executable = made(saved, source, target.detail)
        executable.prepare(1)  # what ONNX Runtime cannot load is an error of this call
        return executable

    def load(self, parts: Mapping[str, Path | Array], manifest: Mapping[str, object]) -> Executable:
        """See `backends.base.Backend.load`."""
        return load_executable(parts, manifest)

    def describe(self) -> BackendInfo:
        """See `backends.base.Backend.describe`."""
        from backends.opencl.device import devices
        from backends.relax.registry import operator_names

        try:
            here = "run here on " + ", ".join(str(device.name).strip() for device in devices())
        except TargetError as error:
            here = f"not run here: {error}"
        return BackendInfo(
            name=self.name,
            summary="OpenCL programs for any GPU, generated through TVM with analytic schedules",
            needs="apache-tvm to compile; pyopencl and an OpenCL driver to run",
            operators=len(operator_names()),
            precisions=self.precisions,
            proof=f"{here}; compared with ONNX Runtime",
            operator_names=operator_names(),
        )
