"""Small models for the tests of this folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL

Shape = Sequence[int | str | None]


def value(name: str, shape: Shape | None = None, dtype: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def node(op_type: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> onnx.NodeProto:
    name = attributes.pop("name", f"{op_type}_{outputs[0]}")
    return helper.make_node(op_type, inputs, outputs, name=name, **attributes)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: dict[str, np.ndarray] | None = None,
    *,
    opset: int = 23,
    domains: dict[str, int] | None = None,
    functions: Sequence[onnx.FunctionProto] = (),
) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    graph = helper.make_graph(nodes, "test", inputs, outputs, tensors)
    imports = [helper.make_opsetid("", opset)]
    imports += [helper.make_opsetid(domain, version) for domain, version in (domains or {}).items()]
    return helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=10 if opset > 15 else 8)


def perceptron(opset: int = 23, *, hidden: int = 64) -> onnx.ModelProto:
    """x: [batch, 32] -> y: [batch, 8], with weights above the size from which they are detached."""
    rng = np.random.default_rng(0)
    weights = {
        "w1": rng.standard_normal((32, hidden)).astype(np.float32),
        "b1": rng.standard_normal(hidden).astype(np.float32),
        "w2": rng.standard_normal((hidden, 8)).astype(np.float32),
    }
    nodes = [
        node("MatMul", ["x", "w1"], ["h"], name="first"),
        node("Add", ["h", "b1"], ["h_biased"], name="bias"),
        node("Relu", ["h_biased"], ["h_active"], name="activation"),
        node("MatMul", ["h_active", "w2"], ["y"], name="second"),
    ]
    return model(nodes, [value("x", ["batch", 32])], [value("y", ["batch", 8])], weights, opset=opset)


def perceptron_output(x: np.ndarray) -> np.ndarray:
    """What `perceptron` computes."""
    weights = {t.name: numpy_helper.to_array(t) for t in perceptron().graph.initializer}
    result: np.ndarray = np.maximum(x @ weights["w1"] + weights["b1"], 0) @ weights["w2"]
    return result
