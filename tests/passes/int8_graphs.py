"""Small models for the tests of quantization, and what they lose."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

from optimizer.calibration import Samples
from optimizer.ir.walk import all_nodes
from optimizer.reference import run_reference
from passes.quantize_int8 import QuantizeInt8
from tests.passes.transform import read

RNG = np.random.default_rng(0)
X = RNG.standard_normal((5, 16)).astype(np.float32)
IMAGE = RNG.standard_normal((2, 3, 9, 9)).astype(np.float32)
WEIGHTS = {
    "w": RNG.standard_normal((16, 12)).astype(np.float32),
    "t": RNG.standard_normal((12, 16)).astype(np.float32),
    "v": RNG.standard_normal((12, 8)).astype(np.float32),
    "b": RNG.standard_normal(12).astype(np.float32),
    "k": RNG.standard_normal((16, 3, 3, 3)).astype(np.float32),
    "c": RNG.standard_normal(16).astype(np.float32),
}


def graph(text: str, opset: int = 23, **weights: np.ndarray) -> ir.Model:
    """A model from text, with those of `WEIGHTS` and `weights` that it names."""
    model = read(text, opset)
    used = {value.name for node in all_nodes(model) for value in node.inputs if value is not None}
    for name, array in {**WEIGHTS, **weights}.items():
        if name in used:
            value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
            value.type, value.shape = ir.TensorType(ir.DataType.from_numpy(array.dtype)), ir.Shape(array.shape)
            for node in all_nodes(model):
                for index, given_value in enumerate(node.inputs):
                    if given_value is not None and given_value.name == name:
                        node.replace_input_with(index, value)
            model.graph.register_initializer(value)
    return model


def static(model: ir.Model, *sets: Any, **options: Any) -> QuantizeInt8:
    return QuantizeInt8(samples=Samples.of(model.graph, [*sets] or [X]), **options)


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def error(model: ir.Model, result: ir.Model, *inputs: Any) -> float:
    (expected,), (found,) = run_reference(model, list(inputs)), run_reference(result, list(inputs))
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


BOUND = float(2 * 4 * 2 / 255 / np.sqrt(12))
"""What one layer may lose: two operands, each in 255 steps over numbers whose largest is four times their mean."""


def arrays(model: ir.Model, dtype: ir.DataType) -> list[np.ndarray]:
    tensors = [value.const_value for value in model.graph.initializers.values()]
    return [tensor.numpy() for tensor in tensors if tensor is not None and tensor.dtype == dtype]


def weight_of(model: ir.Model, name: str) -> str | None:
    weight = model.graph.node(name).inputs[1]
    return None if weight is None else weight.name


MATMUL = "g (float[N,16] x) => (float[N,12] y) { y = MatMul(x, w) }"
GEMM = "g (float[N,16] x) => (float[N,12] y) { y = Gemm(x, w, b) }"
TURNED = "g (float[N,16] x) => (float[N,12] y) { y = Gemm<transB = 1>(x, t, b) }"
CONV = "g (float[N,3,9,9] x) => (float[N,16,5,5] y) { h = Conv<pads = [1,1,1,1], strides = [2,2]>(x, k, c) y = Neg(h) }"
LAYERS = [(MATMUL, X), (GEMM, X), (TURNED, X), (CONV, IMAGE)]


def optimized_operators(model: ir.Model) -> list[str]:
    """What ONNX Runtime makes of the model."""
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.optimized_model_filepath = str(Path(folder) / "model.onnx")
        onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options, ["CPUExecutionProvider"])
        return [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
