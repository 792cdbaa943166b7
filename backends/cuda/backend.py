"""The CUDA backend: ONNX through Relax to kernels in an NVIDIA GPU's own code, with weights packed beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from backends.base import BackendInfo, Progress
from backends.cuda.compiler import compiler
from backends.cuda.driver import Image
from backends.cuda.executable import load_executable, made
from backends.gpu.front import generate
from backends.relax.backend import RelaxBackend
from optimizer.errors import TargetError
from optimizer.executable import Array, Executable
from optimizer.nvidia import detect_gpu
from optimizer.target import Target

if TYPE_CHECKING:
    import onnx_ir as ir


class CudaBackend(RelaxBackend):
    """Compiles for NVIDIA GPUs from compute capability 8.0 on, through TVM's code generator and NVIDIA's compiler."""

    name = "cuda"
    precisions = ("float32", "bfloat16", "float16", "int8", "int4")

    def compile(
        self, model: ir.Model, target: Target, *, fallback: str, progress: Progress | None = None
    ) -> Executable:
        """See `backends.base.Backend.compile`. The device is looked for when the model first runs.

        Raises:
            TargetError: there is neither nvcc nor NVRTC.
        """
        nvidia = compiler()  # before any work is done that would be in vain
        saved, source = generate(model, target, fallback=fallback, progress=progress)
        architecture = target.detail
        if source:
            if progress is not None:
                progress(f"compiling with {nvidia.name}")
            code = nvidia.compile(source, architecture)
            resources = {name: asdict(each) for name, each in code.kernels.items()}
            image = Image(architecture, code.cubin, code.ptx.encode(), resources)
        else:
            image = Image(architecture, b"", b"")
        executable = made(saved, image)
        executable.prepare(1)  # what ONNX Runtime cannot load is an error of this call
        return executable

    def load(self, parts: Mapping[str, Path | Array], manifest: Mapping[str, object]) -> Executable:
        """See `backends.base.Backend.load`."""
        return load_executable(parts, manifest)

    def describe(self) -> BackendInfo:
        """See `backends.base.Backend.describe`."""
        from backends.relax.registry import operator_names

        try:
            with_what = f"compiled here by {compiler().name}"
        except TargetError as error:
            with_what = f"not compiled here: {error}"
        try:
            gpu = detect_gpu()
            here = "not run here: no NVIDIA GPU" if gpu is None else f"run here as {gpu.name}"
        except TargetError as error:
            here = f"not run here: {error}"
        return BackendInfo(
            name=self.name,
            summary="NVIDIA GPUs from sm_80 on, generated through TVM with analytic schedules",
            needs="apache-tvm and nvcc or NVRTC (tersor[cuda]) to compile; NVIDIA's driver to run",
            operators=len(operator_names()),
            precisions=self.precisions,
            proof=f"{with_what}; {here}; the rules by PoCL",
            operator_names=operator_names(),
        )
