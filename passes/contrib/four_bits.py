"""A product with a weight of 4 bits as ONNX Runtime's MatMulNBits."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from optimizer.ir.edit import Editor, Scope
from optimizer.ir.query import array, constant, float_attribute, input_at, int_attribute, is_op
from optimizer.onnx_limits import CONTRIB

__all__ = ["matmul_n_bits"]

_SMALLEST = 16


def matmul_n_bits(editor: Editor, scope: Scope, node: ir.Node) -> None:
    """Replace `MatMul(x, DequantizeLinear(w, scale, zero_point))`, or such a `Gemm`.

    The codes become unsigned, two in a byte, [N, blocks, block / 2] with the rows of a column one after the other; the
    zero points of a column are packed likewise. It is told to multiply in float32 (`accuracy_level` 1), as the graph
    does.
    """
    dequantize = node.inputs[1].producer() if node.inputs[1] is not None else None
    if dequantize is None or not is_op(dequantize, "DequantizeLinear"):
        return
    codes, scales, zero_points = (constant(input_at(dequantize, i)) for i in range(3))
    block = int_attribute(dequantize, "block_size", 0)
    if codes is None or scales is None or codes.dtype not in (ir.DataType.INT4, ir.DataType.UINT4):
        return
    if input_at(dequantize, 2) is not None and zero_points is None:
        return
    power = block >= _SMALLEST and block & (block - 1) == 0
    turned = bool(int_attribute(node, "transB", 0))
    if len(codes.shape) != 2 or not power or int_attribute(dequantize, "axis", 1) != int(turned):
        return
    if scales.dtype != ir.DataType.FLOAT or not _only_adds(editor, node):
        return
    offset = 8 if codes.dtype == ir.DataType.INT4 else 0
    unsigned = _unsigned(codes, offset, turned)
    depth, columns = unsigned.shape
    blocks = -(-depth // block)
    padded = np.zeros((blocks * block, columns), np.uint8)
    padded[:depth] = unsigned
    packed = _pairs(padded.T).reshape(columns, blocks, block // 2)
    zeros = (
        np.full((blocks, columns), offset, np.uint8) if zero_points is None else _unsigned(zero_points, offset, turned)
    )
    values = array(input_at(dequantize, 1))
    assert values is not None, "it is constant"
    name = dequantize.inputs[0].name if dequantize.inputs[0] is not None else None
    inputs: list[ir.Value | None] = [
        node.inputs[0],
        editor.constant(scope, node, f"{name}_packed", packed),
        editor.constant(scope, node, f"{name}_scales", np.ascontiguousarray(values if turned else values.T)),
        editor.constant(scope, node, f"{name}_zero_points", _pairs(zeros.T)),
    ]
    if (bias := input_at(node, 2)) is not None:
        inputs += [None, bias]
    attributes = {"K": depth, "N": columns, "bits": 4, "block_size": block, "accuracy_level": 1}
    editor.substitute(node, ir.node("MatMulNBits", inputs, attributes, domain=CONTRIB), [dequantize])
    editor.remove_if_unused(dequantize)


def _only_adds(editor: Editor, node: ir.Node) -> bool:
    """Whether a product does nothing else but to add a vector of as many elements as it has columns."""
    if float_attribute(node, "alpha", 1.0) != 1 or int_attribute(node, "transA", 0):
        return False
    bias, result = input_at(node, 2), editor.shapes.dims(node.outputs[0])
    if bias is None:
        return True
    return float_attribute(node, "beta", 1.0) == 1 and result is not None and editor.shapes.dims(bias) == result[-1:]


def _unsigned(tensor: ir.TensorProtocol, offset: int, turned: bool) -> np.ndarray:
    """As a matrix [K, N]."""
    codes = (tensor.numpy().astype(np.int8) + offset).astype(np.uint8)
    return codes.T if turned else codes


def _pairs(codes: np.ndarray) -> np.ndarray:
    """Two of a row in a byte, the first in the lower half."""
    even = np.pad(codes, ((0, 0), (0, codes.shape[1] % 2)))
    return np.ascontiguousarray(even[:, ::2] | (even[:, 1::2] << 4))
