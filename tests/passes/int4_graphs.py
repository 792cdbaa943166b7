"""Graphs with weights to quantize, and what their quantized form computes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx
import onnx.reference
import onnx_ir as ir
import onnxruntime

from optimizer.calibration import Samples
from optimizer.pass_manager import PassManager
from passes.quantization.blocks import Floats
from passes.quantize_int4 import QuantizeInt4

__all__ = ["answers", "correlated", "model_of", "quantized", "reference_answers", "samples_of"]

Arrays = Mapping[str, npt.NDArray[np.generic]]


def model_of(text: str, weights: Arrays, opset: int = 23) -> ir.Model:
    """A model from the text of its graph, with initializers."""
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : {opset}]> {text}')
    for name, array in weights.items():
        value = next(v for node in model.graph.all_nodes() for v in node.inputs if v is not None and v.name == name)
        value.const_value = ir.tensor(array, name=name)
        value.type = ir.TensorType(value.const_value.dtype)
        value.shape = ir.Shape(array.shape)
        model.graph.register_initializer(value)
    return model


def quantized(model: ir.Model, pass_: QuantizeInt4) -> ir.Model:
    """A copy after the pass, which is valid ONNX."""
    result = model.clone()
    PassManager([pass_]).run(result)
    onnx.checker.check_model(ir.to_proto(result), full_check=True)
    return result


def answers(model: ir.Model, inputs: Arrays, *, optimized: bool = False) -> list[npt.NDArray[np.float32]]:
    """What ONNX Runtime computes."""
    options = onnxruntime.SessionOptions()
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    # Products of 4-bit weights in float32, where ONNX Runtime would round what they are multiplied with to 8 bits.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    return list(session.run(None, dict(inputs)))


def reference_answers(model: ir.Model, inputs: Arrays) -> list[npt.NDArray[np.float32]]:
    """What the reference implementation of ONNX computes."""
    return list(onnx.reference.ReferenceEvaluator(ir.to_proto(model)).run(None, dict(inputs)))


def correlated(rows: int, columns: int, seed: int = 0) -> Floats:
    """Rows of which the columns hang together, with a few that are much larger: as the inputs of a layer are."""
    rng = np.random.default_rng(seed)
    factors = rng.normal(size=(rows, max(columns // 4, 1))) @ rng.normal(size=(max(columns // 4, 1), columns))
    values = factors + 0.3 * rng.normal(size=(rows, columns))
    values[:, :: max(columns // 4, 1)] *= 8
    return np.asarray(values, np.float32)


def samples_of(model: ir.Model, *arrays: npt.NDArray[np.generic]) -> Samples:
    """Calibration data for a model of one input."""
    return Samples.of(model.graph, list(arrays))
