"""Compile a small model for OpenCL and hold its outputs against ONNX Runtime's."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from backends import get_backend
from optimizer.executable import Executable
from optimizer.target import Target
from tests.backends.running import Array, distance, oracle

__all__ = ["check", "compiled"]


def compiled(model: onnx.ModelProto, fallback: str = "error") -> Executable:
    """The model as the OpenCL backend compiles it, without any pass but shape inference."""
    graph = ShapeInferencePass()(ir.from_proto(model)).model
    return get_backend("opencl").compile(graph, Target.parse("opencl"), fallback=fallback)


def check(model: onnx.ModelProto, *calls: Sequence[Array], fallback: str = "error") -> Executable:
    """Compile once, run with each list of inputs, and demand agreement within 1e-5."""
    executable = compiled(model, fallback)
    for inputs in calls:
        for ours, theirs in zip(executable.run(list(inputs), 1), oracle(model, inputs), strict=True):
            assert distance(ours, theirs) <= 1e-5
    return executable
