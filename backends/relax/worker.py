"""The compile process.

It is started by `backends.relax.client`, lives as long as its parent, and can crash without taking the parent along.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from backends.relax.without_torch import torch_kept_out
from optimizer.child_process import serve
from optimizer.memory import collector_paused


def handle(request: dict[str, Any]) -> dict[str, Any]:
    """Compile one graph; see `backends.relax.client.compile_graph` for the fields."""
    with collector_paused():
        return _compile(request)


def _compile(request: dict[str, Any]) -> dict[str, Any]:
    import onnx
    import onnx_ir as ir

    from backends.cpu.choices import ChosenTiles
    from backends.cpu.lowering import lowering
    from backends.cpu.schedule import llvm_target, scheduler
    from backends.relax.build import Builder, RefusedNodes
    from backends.relax.plan import Work

    model = ir.from_proto(onnx.ModelProto.FromString(request["model"]))
    cpu = request["cpu"]
    weights = set(request["weights"])
    work: dict[str, Work] = {}
    tiles = ChosenTiles(cpu, request["choices"])
    builder = Builder(model, request["constants"], weights, scheduler(cpu, work), lowering(), tiles)
    library, linker = Path(request["library"]), request["linker"]
    try:
        plan = builder.build(llvm_target(cpu), library, linker, allow_fallback=request["allow_fallback"])
    except RefusedNodes as refused:
        return {"refused": refused.reasons}
    plan.work, plan.cpu = work, dataclasses.asdict(cpu)
    plan.decisions = [decision for decision in tiles.decisions.values() if len(decision.costs) > 1]
    return {"plan": plan}


def main() -> None:
    """Serve until the parent closes the pipe."""
    serve(handle, _import_compiler)


def _import_compiler() -> None:
    """Import all that a request needs, while the parent still reads its model."""
    with torch_kept_out():
        import tvm  # noqa: F401
        from tvm import relax  # noqa: F401

        from backends.cpu import choices, lowering, schedule  # noqa: F401
        from backends.relax import build, registry  # noqa: F401

        registry.emitters()
