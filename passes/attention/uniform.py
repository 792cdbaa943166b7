"""Values that have one element throughout, and values that are provably finite."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from optimizer.ir.query import array, constant, input_at, int_attribute, is_op
from optimizer.ir.shapes import Shapes

__all__ = ["bound", "scalar", "uniform"]

_SPREADS = ("Expand", "Reshape", "Unsqueeze", "Squeeze", "Transpose", "Identity", "Tile", "Flatten", "Slice")
"""Operators that only place elements of their first input."""
_DEPTH = 12
_LARGEST_CONSTANT = 1 << 20


def scalar(value: ir.Value | None) -> float | None:
    """The number that a constant of one element is."""
    tensor = constant(value)
    if tensor is None or tensor.size != 1 or not (tensor.dtype.is_floating_point() or tensor.dtype.is_integer()):
        return None
    return float(tensor.numpy().reshape(-1)[0])


def uniform(value: ir.Value | None, depth: int = _DEPTH) -> float | None:
    """The number that every element is, as far as can be told: `True` is 1."""
    if value is None or depth == 0:
        return None
    tensor = constant(value)
    if tensor is not None:
        return _only_element(tensor)
    node = value.producer()
    if node is None or is_op(node, *_SPREADS):
        return None if node is None else uniform(input_at(node, 0), depth - 1)
    if is_op(node, "ConstantOfShape"):
        filled = node.attributes.get("value")
        return 0.0 if filled is None else float(filled.as_tensor().numpy().reshape(-1)[0])
    if is_op(node, "Where"):
        return _chosen(node, depth)
    if is_op(node, "Cast") and int_attribute(node, "to", 0) in (ir.DataType.BOOL, ir.DataType.FLOAT):
        found = uniform(input_at(node, 0), depth - 1)
        return found if found in (0.0, 1.0) else None
    if is_op(node, "And"):
        both = [uniform(given, depth - 1) for given in node.inputs]
        return 0.0 if 0.0 in both else 1.0 if both == [1.0, 1.0] else None
    return None


def _only_element(tensor: ir.TensorProtocol) -> float | None:
    if tensor.size == 0 or tensor.size > _LARGEST_CONSTANT or tensor.dtype == ir.DataType.STRING:
        return None
    elements = tensor.numpy().reshape(-1)
    return float(elements[0]) if (elements == elements[0]).all() else None


def _chosen(node: ir.Node, depth: int) -> float | None:
    condition = uniform(input_at(node, 0), depth - 1)
    if condition is not None:
        return uniform(input_at(node, 1 if condition else 2), depth - 1)
    first, second = (uniform(input_at(node, index), depth - 1) for index in (1, 2))
    return first if first == second else None


def bound(shapes: Shapes, value: ir.Value | None, depth: int = _DEPTH) -> float:
    """A number that no element exceeds in size; infinity when none can be told, or when one may be infinite or NaN.

    Sums and products that leave float32 count as infinite.
    """
    limit = _bound(shapes, value, depth)
    return limit if limit < float(np.finfo(np.float32).max) * (1 + 1e-6) else math.inf


def _bound(shapes: Shapes, value: ir.Value | None, depth: int) -> float:
    if value is None or depth == 0:
        return math.inf
    if constant(value) is not None:
        return _largest(value)
    dtype = shapes.dtype(value)
    if dtype in _INTEGER_LIMITS:
        return _INTEGER_LIMITS[dtype]
    node = value.producer()
    if node is None:
        return math.inf
    below = [bound(shapes, given, depth - 1) for given in node.inputs[: _OPERANDS.get(node.op_type, 0)]]
    if is_op(node, *_SPREADS, "Neg", "Cast", "GatherND", "Gather", "Trilu"):
        return bound(shapes, input_at(node, 0), depth - 1)
    if is_op(node, "Where"):
        return max(below[1:])
    if is_op(node, "Concat"):
        return max(bound(shapes, given, depth - 1) for given in node.inputs)
    if is_op(node, "Add", "Sub"):
        return sum(below)
    if is_op(node, "Mul"):
        return math.prod(below) if math.inf not in below else math.inf
    return math.inf


_OPERANDS = {"Where": 3, "Add": 2, "Sub": 2, "Mul": 2}
_INTEGER_LIMITS = {
    ir.DataType.BOOL: 1.0,
    ir.DataType.INT8: 128.0,
    ir.DataType.UINT8: 255.0,
    ir.DataType.INT16: 2.0**15,
    ir.DataType.INT32: 2.0**31,
    ir.DataType.INT64: 2.0**63,
}


def _largest(value: ir.Value) -> float:
    elements = array(value)
    if elements is None or elements.dtype.kind not in "fiub" or elements.size > _LARGEST_CONSTANT:
        return math.inf
    if elements.size == 0:
        return 0.0
    largest = float(np.abs(elements.astype(np.float64)).max())
    return largest if math.isfinite(largest) else math.inf
