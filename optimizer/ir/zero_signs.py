"""Where it matters whether a zero is `0.0` or `-0.0`.

The two are equal, and most operators give results that are equal for both. It matters where a result differs
otherwise (a reciprocal), and at the outputs of the model, which are to be the same bits. It ends where a `0.0` or
another number is added: `-0.0 + 0.0` is `0.0`.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from optimizer.ir.query import array, input_at, int_attribute, is_op
from optimizer.ir.walk import nested_graphs

__all__ = ["ZeroSigns"]

# fmt: off
_PASS_ON = frozenset({
    "Abs", "Add", "AveragePool", "BatchNormalization", "Ceil", "Concat", "Conv", "ConvTranspose", "Cos",
    "DepthToSpace", "Elu", "Erf", "Expand", "Flatten", "Floor", "Gelu", "Gemm", "GlobalAveragePool", "HardSigmoid",
    "HardSwish", "Identity", "LayerNormalization", "LeakyRelu", "LogSoftmax", "MatMul", "Mean", "Mul", "Neg", "Pad",
    "RMSNormalization", "ReduceMean", "ReduceSum", "Relu", "Reshape", "RotaryEmbedding", "Round", "Sin", "Slice",
    "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Swish", "Tanh", "Tile", "Transpose", "Unsqueeze",
    "Where",
})
"""Zeros of another sign among their inputs can only make zeros of another sign in their results."""
_END = frozenset({
    "Equal", "Exp", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Shape", "Sigmoid", "Size", "Softmax",
    "Softplus",
})
# fmt: on
"""Their results are the same for both zeros."""
_ATTENTION_VALUES = (2, 5)
_VARIANCE = 4


class ZeroSigns:
    """Knows of every value of a model whether the sign of its zeros matters.

    Args:
        model: Its nodes are in topological order.
    """

    def __init__(self, model: ir.Model) -> None:
        self._matters: set[ir.Value] = set()
        for graph in nested_graphs(model.graph):
            self._matters.update(graph.outputs)
        for node in reversed(model.graph):
            self._node(node)
        for function in model.functions.values():
            self._matters.update(value for node in function for value in node.inputs if value is not None)
            self._matters.update(function.outputs)

    def matters(self, value: ir.Value) -> bool:
        """Whether something could come out otherwise, but for the sign of zeros that do not matter in turn."""
        return value in self._matters

    def _node(self, node: ir.Node) -> None:
        for graph in [nested for attribute in node.attributes.values() for nested in _graphs(attribute)]:
            for inner in (item for nested in nested_graphs(graph) for item in nested):
                self._matters.update(value for value in inner.inputs if value is not None)
        wanted = any(output in self._matters for output in node.outputs)
        for index, value in enumerate(node.inputs):
            if value is not None and not self._ends(node, index, wanted):
                self._matters.add(value)

    @staticmethod
    def _ends(node: ir.Node, index: int, wanted: bool) -> bool:
        if not is_op(node, node.op_type):
            return False
        if node.op_type in _END:
            return True
        if node.op_type == "Attention":
            # Queries, keys and masks end in a softmax, unless the keys are given back.
            only = len([output for output in node.outputs if output.name]) == 1
            return not wanted or (only and index not in _ATTENTION_VALUES)
        if node.op_type == "Cast":
            return not wanted or not ir.DataType(int_attribute(node, "to", 0)).is_floating_point()
        if node.op_type == "Gather":
            return not wanted
        if node.op_type not in _PASS_ON or (node.op_type == "BatchNormalization" and index == _VARIANCE):
            return False
        return not wanted or _adds(node)


def _adds(node: ir.Node) -> bool:
    """Whether the last thing that the operator does is to add a constant that is no `-0.0`."""
    if node.op_type == "Add":
        return any(_is_no_minus_zero(value) for value in node.inputs)
    if node.op_type == "LayerNormalization":
        return _is_no_minus_zero(input_at(node, 2)) and len([output for output in node.outputs if output.name]) == 1
    return False


def _is_no_minus_zero(value: ir.Value | None) -> bool:
    elements = array(value)
    if elements is None or elements.size == 0 or elements.dtype.kind in "OSU":
        return False
    plain = elements.astype(np.float64)
    return not (np.signbit(plain) & (plain == 0)).any()


def _graphs(attribute: ir.Attr) -> list[ir.Graph]:
    if attribute.is_ref():
        return []
    if attribute.type == ir.AttributeType.GRAPH:
        return [attribute.as_graph()]
    return list(attribute.as_graphs()) if attribute.type == ir.AttributeType.GRAPHS else []
