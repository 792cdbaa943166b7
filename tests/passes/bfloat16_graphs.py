"""Graphs in which float32 becomes bfloat16."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from optimizer.testing import check_pass
from passes.convert_float import ConvertFloat
from passes.infer_shapes import InferShapes
from tests.passes.transform import read

__all__ = ["CONVERT", "NARROW", "W", "converted", "dtype", "elements"]

CONVERT = ConvertFloat()
NARROW = ir.DataType.BFLOAT16
W = "float[4,4] w = {1,2,3,4, 5,6,7,8, 1,2,3,4, 5,6,7,8}"


def converted(text: str, pass_: ConvertFloat = CONVERT) -> ir.Model:
    """The model, with its types written at each value, after the pass, which kept its contract."""
    model = read(text)
    InferShapes()(model)
    return check_pass(pass_, model)


def dtype(model: ir.Model, name: str) -> ir.DataType | None:
    """The type of a value, by its name."""
    values = [*model.graph.initializers.values(), *(value for node in model.graph for value in node.outputs)]
    (found,) = [value for value in values if value.name == name]
    return found.dtype


def elements(model: ir.Model, name: str) -> np.ndarray:
    """An initializer, as float32."""
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy().astype(np.float32)
