"""Compile a small model for OpenCL and hold its outputs against ONNX Runtime's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from backends import get_backend
from optimizer.executable import Executable
from optimizer.target import Target
from tests.backends.running import Array, distance, oracle, parse

__all__ = ["NET", "RANDOM", "check", "compiled", "rows"]

RANDOM = np.random.default_rng(0)
NET = parse(
    """g (float[n,16] x) => (float[n,8] y, float[k,4] z)
    { h = Gemm(x, w, b) r = Relu(h) y = Softmax(r) z = Reshape(r, s) }""",
    {
        "w": RANDOM.normal(size=(16, 8)).astype(np.float32),
        "b": RANDOM.normal(size=8).astype(np.float32),
        "s": np.array([-1, 4]),
    },
)
"""A product with a tail, of any number of rows, and a view of it."""


def rows(count: int) -> Array:
    """What `NET` takes."""
    return RANDOM.normal(size=(count, 16)).astype(np.float32)


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
