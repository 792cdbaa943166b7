"""Compile a small model with the CPU backend and hold its outputs against ONNX Runtime's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx_ir.passes.common import ShapeInferencePass

from backends import get_backend
from optimizer.executable import Executable
from optimizer.target import Target

Array = npt.NDArray[Any]


def parse(body: str, weights: Mapping[str, Array] | None = None, opset: int = 23) -> onnx.ModelProto:
    """A model from the text of its graph, with the weights as initializers."""
    model = onnx.parser.parse_model(f'<ir_version: 11, opset_import: ["" : {opset}]> {body}')
    for name, array in (weights or {}).items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


def compiled(model: onnx.ModelProto, target: str = "cpu", fallback: str = "error") -> Executable:
    """The model as the CPU backend compiles it, without any pass but shape inference."""
    graph = ShapeInferencePass()(ir.from_proto(model)).model
    return get_backend("cpu").compile(graph, Target.parse(target), fallback=fallback)


def oracle(model: onnx.ModelProto, inputs: Sequence[Array]) -> list[Array]:
    """What ONNX Runtime computes, without its own optimizations."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(zip((i.name for i in session.get_inputs()), inputs, strict=True))))


def distance(ours: Array, theirs: Array) -> float:
    """Relative distance in the Euclidean norm; infinite if shapes or types differ."""
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return float("inf")
    norm = float(np.linalg.norm(theirs.astype(np.float64)))
    return float(np.linalg.norm(ours.astype(np.float64) - theirs.astype(np.float64))) / (norm or 1.0)


def conv_relu(dtype: str, shape: str, stride: int, pads: Sequence[int], dilation: int = 1, group: int = 1) -> str:
    """The text of a graph: a convolution of `x` with weights `w` and bias `b`, and a Relu."""
    return f"""g ({dtype}[{shape}] x) => ({dtype}[n,c,oh,ow] y) {{
        t = Conv<strides=[{stride},{stride}], pads=[{",".join(map(str, pads))}],
                 dilations=[{dilation},{dilation}], group={group}>(x, w, b)
        y = Relu(t) }}"""


def check(model: onnx.ModelProto, inputs: Sequence[Array], target: str = "cpu", threads: int = 2) -> Executable:
    """Compile, run, and demand agreement within 1e-5."""
    executable = compiled(model, target)
    for ours, theirs in zip(executable.run(list(inputs), threads), oracle(model, inputs), strict=True):
        assert distance(ours, theirs) <= 1e-5
    return executable
