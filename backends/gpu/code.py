"""What the compile process does for a GPU that it does not do for other targets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
import tvm
from tvm import tirx

from backends.cuda.source import cuda_code
from backends.gpu.device import DeviceCode, device_code, opencl_target
from backends.gpu.instructions import program_of
from backends.gpu.program import Program
from backends.gpu.schedule import scheduler
from backends.gpu.tile_model import Estimate
from backends.gpu.tiles import GpuTiles
from backends.relax.build import BeyondTarget, Builder
from backends.relax.memory import Workspace
from backends.relax.plan import Plan

__all__ = ["GpuCode"]


class GpuCode:
    """See `backends.relax.worker.Code`.

    Args:
        request: see `backends.relax.client.compile_for_device`.
    """

    def __init__(self, request: dict[str, Any]) -> None:
        self._request = request
        self._gpu = request["gpu"]
        self._refused: dict[str, str] = {}
        # Operators are written down as for a processor: TVM's own for GPUs bind threads, which is the rules' part here.
        self.target = tvm.target.Target("llvm")
        self._estimates: dict[str, Estimate] = {}
        self.program: tuple[Program, str] | None = None

    def builder(self, model: ir.Model) -> Builder:
        """Compiles the graph."""
        self._refused.clear()
        self._estimates.clear()
        constants, weights = self._request["constants"], set(self._request["weights"])
        schedule = scheduler(self._gpu, self._refused, self._estimates)
        return Builder(model, constants, weights, schedule, GpuTiles(self._gpu))

    def ending(self, module: tvm.IRModule) -> dict[str, list[Workspace]]:
        """Generate the program; kernels of a device take nothing for themselves."""
        if self._refused:
            raise BeyondTarget(dict(self._refused))
        program, source = program_of(module, self._generate)
        program.estimated_seconds = self._estimated(program)
        self.program = program, source
        return {}

    def _estimated(self, program: Program) -> float | None:
        """Of a run of all kernels; `None` if the sizes of one are not known."""
        instructions = [each for routine in program.routines.values() for each in routine.instructions]
        if any(not isinstance(extent, int) for each in instructions for extent in each.grid):
            return None
        calls: dict[str, int] = {}
        for (kernel, _), count in Counter((each.kernel, each.entry) for each in instructions).items():
            calls[kernel] = max(calls.get(kernel, 0), count)  # a call may start several functions
        start: float = self._gpu.launch_seconds  # all that is known of a procedure, such as a check of indices
        known = {kernel: estimate.seconds for kernel, estimate in self._estimates.items()}
        return sum(count * known.get(kernel, start) for kernel, count in calls.items())

    def _generate(self, kernels: Mapping[str, tirx.PrimFunc]) -> DeviceCode:
        if self._gpu.kind == "cuda":
            return cuda_code(kernels, self._gpu)
        return device_code(kernels, opencl_target(self._gpu.threads, self._gpu.shared_bytes))

    def completed(self, plan: Plan) -> Plan:
        """The plan as it is."""
        return plan
