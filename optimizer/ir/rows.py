"""Operators that do the same to every row of a tensor, whatever the axes are along which its rows lie.

A row is what lies along the last axis. A tensor of shape `[..., C]` and the matrix `[R, C]` of its `R` rows are the
same elements in the same order.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from optimizer.ir.edit import Editor
from optimizer.ir.query import FLOATS, constant, input_at, int_attribute, ints_attribute, is_op, only_user
from optimizer.ir.shape_info import Dims

__all__ = ["RESHAPES", "is_product_of_rows", "product_in_sum", "row_operands", "rows_of"]

# fmt: off
_ELEMENTWISE = frozenset({
    "Abs", "Add", "Cast", "Ceil", "Clip", "Cos", "Div", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid",
    "HardSwish", "LeakyRelu", "Log", "Max", "Min", "Mish", "Mul", "Neg", "Pow", "Reciprocal", "Relu", "Round", "Selu",
    "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Sub", "Swish", "Tanh",
})
# fmt: on
_NORMALIZATIONS = frozenset({"LayerNormalization", "RMSNormalization"})
_SOFTMAX = frozenset({"LogSoftmax", "Softmax"})
RESHAPES = frozenset({"Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
"""Where they work on rows, they leave them as they are; a Transpose does when it only moves axes of size 1."""


def rows_of(editor: Editor, value: ir.Value | None) -> Dims | None:
    """The shape of a tensor of which every row can be told, and which a constant shape can bring back from a matrix.

    At most one of the sizes in front may be unknown, and none may be 0; the last one is known.
    """
    dims = editor.shapes.dims(value)
    if dims is None or len(dims) < 2 or not isinstance(dims[-1], int) or 0 in dims:
        return None
    return dims if sum(not isinstance(dim, int) for dim in dims) <= 1 else None


def row_operands(editor: Editor, opset: int, node: ir.Node) -> tuple[int, ...] | None:
    """The inputs whose rows the node works on one by one; `None` when it does anything else.

    Constants that are the same for every row are not among them.
    """
    if len(node.outputs) != 1 or not is_op(node, node.op_type):
        return None
    out = rows_of(editor, node.outputs[0])
    if out is None:
        return None
    if node.op_type in _ELEMENTWISE:
        return _elementwise(editor, node, out)
    first = rows_of(editor, input_at(node, 0))
    if first is None or constant(node.inputs[0]) is not None:
        return None
    if node.op_type in RESHAPES:
        return (0,) if first[-1] == out[-1] and _keeps_order(node, first) else None
    if node.op_type == "Gemm":
        return _gemm(editor, node, out)
    return (0,) if _works_along_rows(node, opset, len(first)) else None


def _keeps_order(node: ir.Node, dims: Dims) -> bool:
    if node.op_type != "Transpose":
        return True
    order = ints_attribute(node, "perm") or tuple(reversed(range(len(dims))))
    longer = [axis for axis in order if dims[axis] != 1]
    return longer == sorted(longer)


def _works_along_rows(node: ir.Node, opset: int, rank: int) -> bool:
    if node.op_type == "MatMul":
        return is_product_of_rows(node)
    if node.op_type in _SOFTMAX:
        # Before opset 13 it worked along all axes from this one on, which is the same for the last one.
        return int_attribute(node, "axis", -1 if opset >= 13 else 1) % rank == rank - 1
    if node.op_type not in _NORMALIZATIONS:
        return False
    vectors = [constant(value) for value in node.inputs[1:]]
    whole = all(tensor is not None and len(tensor.shape) == 1 for tensor in vectors)
    return whole and int_attribute(node, "axis", -1) % rank == rank - 1


def is_product_of_rows(node: ir.Node) -> bool:
    """Whether a MatMul multiplies every row by one constant matrix."""
    weight = constant(input_at(node, 1))
    return weight is not None and len(weight.shape) == 2


def product_in_sum(editor: Editor, node: ir.Node) -> ir.Node | None:
    """The product of rows that an Add adds something to, and that nothing else needs: a Gemm, were it a matrix."""
    if node.op_type != "Add" or editor.shapes.dtype(node.outputs[0]) not in FLOATS:
        return None
    for value in node.inputs:
        product = None if value is None else value.producer()
        if product is None or value is None or not is_op(product, "MatMul") or only_user(value) is not node:
            continue
        same = editor.shapes.dims(value) == editor.shapes.dims(node.outputs[0])
        if same and product.graph is node.graph and is_product_of_rows(product):
            return product
    return None


def _elementwise(editor: Editor, node: ir.Node, out: Dims) -> tuple[int, ...] | None:
    operands = []
    moving = False
    for index, value in enumerate(node.inputs):
        if value is None:
            continue
        tensor = constant(value)
        if tensor is not None and _is_one_row(tensor):
            continue
        if rows_of(editor, value) != out:
            return None
        operands.append(index)
        moving = moving or tensor is None
    return tuple(operands) if moving else None


def _is_one_row(tensor: ir.TensorProtocol) -> bool:
    return math.prod(tensor.shape.numpy()[:-1]) == 1


def _gemm(editor: Editor, node: ir.Node, out: Dims) -> tuple[int, ...] | None:
    if int_attribute(node, "transA", 0) or constant(input_at(node, 1)) is None:
        return None
    summand = input_at(node, 2)
    tensor = constant(summand)
    if summand is None or (tensor is not None and _is_one_row(tensor)):
        return (0,)
    return (0, 2) if editor.shapes.dims(summand) == out else None
