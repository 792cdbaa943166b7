"""What the compile process does for a processor that it does not do for other targets."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import onnx_ir as ir

from backends.cpu.choices import ChosenTiles
from backends.cpu.lowering import lowering
from backends.cpu.schedule import llvm_target, scheduler
from backends.gpu.program import Program
from backends.relax.build import Builder
from backends.relax.native import NativeCode
from backends.relax.plan import Plan, Work

__all__ = ["CpuCode"]


class CpuCode:
    """See `backends.relax.worker.Code`.

    Args:
        request: see `backends.relax.client.compile_graph`.
    """

    def __init__(self, request: dict[str, Any]) -> None:
        self.program: tuple[Program, str] | None = None
        self._request = request
        self._cpu = request["cpu"]
        self._work: dict[str, Work] = {}
        self._tiles = ChosenTiles(self._cpu, request["choices"])
        self.target = llvm_target(self._cpu)
        self.ending = NativeCode(self.target, lowering(), Path(request["library"]), request["linker"])

    def builder(self, model: ir.Model) -> Builder:
        """Compiles the graph."""
        constants, weights = self._request["constants"], set(self._request["weights"])
        return Builder(model, constants, weights, scheduler(self._cpu, self._work), self._tiles)

    def completed(self, plan: Plan) -> Plan:
        """The plan with what the tile model says of it."""
        plan.work, plan.cpu = self._work, dataclasses.asdict(self._cpu)
        plan.decisions = [decision for decision in self._tiles.decisions.values() if len(decision.costs) > 1]
        return plan
