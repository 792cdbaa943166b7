"""What every backend for a device does first: the plan, the text of the program, and the packed weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backends.base import Progress
from backends.gpu.executable import Saved
from backends.gpu.program import Program
from backends.relax.plan import ONNXRUNTIME
from optimizer.errors import TargetError
from optimizer.target import Target

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["generate"]


def generate(model: ir.Model, target: Target, *, fallback: str, progress: Progress | None) -> tuple[Saved, str]:
    """Compile a graph up to the text of the device's program; see `backends.base.Backend.compile`."""
    from onnx_ir.passes.common import NameFixPass

    from backends.relax.client import compile_for_device
    from backends.relax.fallback import partition_model
    from backends.relax.pack import pack

    if target.gpu is None:
        raise TargetError(f"target {target} has no device; use {target.kind!r} by `Target.parse`")
    say = progress or (lambda _: None)
    NameFixPass()(model)  # partitions refer to nodes by name
    say("generating code")
    plan, program, source = compile_for_device(model, target.gpu, allow_fallback=fallback == "onnxruntime")
    say("packing weights")
    weights = pack(plan, model.graph)
    partitions = {s.entry: partition_model(model, s) for s in plan.steps if s.engine == ONNXRUNTIME}
    return Saved(plan, program or Program({}), weights, partitions), source
