"""Values that are never negative, and never the zero with a sign."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from optimizer.ir.match import scalar
from optimizer.ir.query import FLOATS, constant, input_at, is_op

__all__ = ["is_positive_or_plus_zero"]

_ALWAYS = frozenset({"Abs", "Exp", "ReduceL1", "ReduceL2", "ReduceSumSquare", "Sigmoid", "Softmax", "Softplus"})
_KEEP = frozenset(
    {"Expand", "Gather", "Identity", "ReduceMean", "ReduceSum", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}
)
"""Operators that are so when their first input is. A maximum is not: over no elements it is minus infinity."""
_COMBINE = frozenset({"Add", "Div", "Mul", "Sum"})
_MAX_DEPTH = 6


def is_positive_or_plus_zero(value: ir.Value | None, depth: int = _MAX_DEPTH) -> bool:
    """Whether every element is NaN, or a number, infinity included, whose sign is plus."""
    tensor = constant(value)
    if tensor is not None:
        return tensor.dtype in FLOATS and not np.signbit(tensor.numpy().astype(np.float64)).any()
    node = None if value is None else value.producer()
    if node is None or not is_op(node, node.op_type) or depth == 0:
        return False
    if node.op_type in _ALWAYS:
        return True
    if node.op_type in _KEEP or node.op_type in ("Reciprocal", "Sqrt"):
        return is_positive_or_plus_zero(node.inputs[0], depth - 1)
    if node.op_type == "Mul" and node.inputs[0] is node.inputs[1]:
        return True
    if node.op_type == "Pow":
        return scalar(input_at(node, 1)) in (2, 4)
    return node.op_type in _COMBINE and all(is_positive_or_plus_zero(value, depth - 1) for value in node.inputs)
