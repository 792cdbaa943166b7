"""Shapes of outputs, symbolically, operator by operator.

A rule is here when it can say more about symbolic sizes than ONNX's own inference, or is needed so often that a call
into it would cost too much. Everything else is left to ONNX (`optimizer.ir.onnx_inference`).
"""

from __future__ import annotations

import onnx_ir as ir

from optimizer.ir.layout_rules import LAYOUT_RULES
from optimizer.ir.query import int_attribute, ints_attribute, string_attribute
from optimizer.ir.shape_info import Dims, Info, NodeView, Rule, axes_of, broadcast, normal_axis, tensor
from optimizer.ir.symbolic import Dim, floor_div

__all__ = ["SHAPE_RULES"]

_SAME = """
    Abs Acos Acosh Asin Asinh Atan Atanh BatchNormalization BitwiseNot Ceil Celu Clip Cos Cosh CumSum Elu Erf
    Exp Floor Gelu GroupNormalization HardSigmoid HardSwish Hardmax Identity InstanceNormalization LRN
    LayerNormalization LeakyRelu Log LogSoftmax LpNormalization MeanVarianceNormalization Mish Neg Not
    RMSNormalization Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softmax Softplus Softsign Sqrt
    Swish Tan Tanh ThresholdedRelu Trilu
"""
_SAME_BUT_BOOL = "IsInf IsNaN"
_BROADCAST = "Add BitShift BitwiseAnd BitwiseOr BitwiseXor Div Max Mean Min Mod Mul PRelu Pow Sub Sum"
_BROADCAST_TO_BOOL = "And Equal Greater GreaterOrEqual Less LessOrEqual Or Xor"
_REDUCTIONS = """
    ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare
"""


def _same(view: NodeView) -> Info | None:
    if len(view.node.outputs) > 1 or view.dims(0) is None:
        return None
    return view.info(0)._replace(data=None)


def _same_but_bool(view: NodeView) -> Info:
    return tensor(ir.DataType.BOOL, view.dims(0))


def _cast(view: NodeView) -> Info:
    return tensor(ir.DataType(int_attribute(view.node, "to", 0)), view.dims(0))


def _cast_like(view: NodeView) -> Info:
    return tensor(view.dtype(1), view.dims(0))


def _dropout(view: NodeView) -> list[Info]:
    return [tensor(view.dtype(0), view.dims(0)), tensor(ir.DataType.BOOL, view.dims(0))]


def _elementwise(view: NodeView) -> Info | None:
    dims = broadcast(view, [info.dims if info else None for info in view.inputs])
    return None if dims is None else tensor(view.dtype(0), dims)


def _compare(view: NodeView) -> Info:
    return tensor(ir.DataType.BOOL, broadcast(view, [view.dims(0), view.dims(1)]))


def _where(view: NodeView) -> Info:
    return tensor(view.dtype(1), broadcast(view, [view.dims(0), view.dims(1), view.dims(2)]))


def _matmul(view: NodeView) -> Info | None:
    left, right = view.dims(0), view.dims(1)
    if left is None or right is None or len(left) < 2 or len(right) < 2:
        return None
    batch = broadcast(view, [left[:-2], right[:-2]])
    return None if batch is None else tensor(view.dtype(0), (*batch, left[-2], right[-1]))


def _gemm(view: NodeView) -> Info | None:
    left, right = view.dims(0), view.dims(1)
    if left is None or right is None or len(left) != 2 or len(right) != 2:
        return None
    rows = left[int_attribute(view.node, "transA", 0)]
    columns = right[1 - int_attribute(view.node, "transB", 0)]
    return tensor(view.dtype(0), (rows, columns))


def _reduce(view: NodeView) -> Info | None:
    dims, axes = view.dims(0), axes_of(view)
    if dims is None:
        return None
    keep = int_attribute(view.node, "keepdims", 1)
    if axes is None:
        return tensor(view.dtype(0), view.unknown_dims(len(dims))) if keep else None
    if not axes and int_attribute(view.node, "noop_with_empty_axes", 0):
        return tensor(view.dtype(0), dims)
    reduced = {normal_axis(axis, len(dims)) for axis in axes or range(len(dims))}
    return tensor(view.dtype(0), _without_axes(dims, reduced, keep))


def _arg_reduce(view: NodeView) -> Info | None:
    dims = view.dims(0)
    if dims is None:
        return None
    axis = normal_axis(int_attribute(view.node, "axis", 0), len(dims))
    return tensor(ir.DataType.INT64, _without_axes(dims, {axis}, int_attribute(view.node, "keepdims", 1)))


def _without_axes(dims: Dims, reduced: set[int | None], keep: int) -> list[Dim]:
    if keep:
        return [1 if axis in reduced else dim for axis, dim in enumerate(dims)]
    return [dim for axis, dim in enumerate(dims) if axis not in reduced]


def _conv(view: NodeView) -> Info | None:
    weights = view.dims(1)
    if weights is None:
        return None
    kernel = ints_attribute(view.node, "kernel_shape") or weights[2:]
    return _window(view, weights[0], kernel)


def _pool(view: NodeView) -> Info | None:
    dims = view.dims(0)
    if dims is None or len(view.node.outputs) > 1 or int_attribute(view.node, "ceil_mode", 0):
        return None
    return _window(view, dims[1], ints_attribute(view.node, "kernel_shape") or ())


def _window(view: NodeView, channels: Dim, kernel: Dims) -> Info | None:
    """The shape of what slides a window of size `kernel` over `[batch, channels, *spatial]`."""
    dims = view.dims(0)
    if dims is None or len(dims) != len(kernel) + 2:
        return None
    rank = len(kernel)
    strides = ints_attribute(view.node, "strides") or (1,) * rank
    dilations = ints_attribute(view.node, "dilations") or (1,) * rank
    pads = ints_attribute(view.node, "pads") or (0,) * (2 * rank)
    auto = string_attribute(view.node, "auto_pad", "NOTSET")
    spatial: list[Dim] = []
    for i, size in enumerate(dims[2:]):
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            spatial.append(floor_div(size + (strides[i] - 1), strides[i]))
            continue
        padding = pads[i] + pads[i + rank] if auto == "NOTSET" else 0
        extent = (kernel[i] - 1) * dilations[i] + 1
        spatial.append(floor_div(size + padding - extent + strides[i], strides[i]))
    return tensor(view.dtype(0), (dims[0], channels, *spatial))


def _global_pool(view: NodeView) -> Info | None:
    dims = view.dims(0)
    return None if dims is None else tensor(view.dtype(0), (*dims[:2], *[1] * (len(dims) - 2)))


def _quantize(view: NodeView) -> Info | None:
    dtype = ir.DataType(int_attribute(view.node, "output_dtype", 0))
    if view.has(2):
        dtype = view.dtype(2) or dtype
    return tensor(dtype or ir.DataType.UINT8, view.dims(0))


def _dequantize(view: NodeView) -> Info:
    dtype = ir.DataType(int_attribute(view.node, "output_dtype", 0))
    return tensor(dtype or view.dtype(1), view.dims(0))


def _rules(names: str, rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


SHAPE_RULES: dict[str, Rule] = {
    **LAYOUT_RULES,
    **_rules(_SAME, _same),
    **_rules(_SAME_BUT_BOOL, _same_but_bool),
    **_rules(_BROADCAST, _elementwise),
    **_rules(_BROADCAST_TO_BOOL, _compare),
    **_rules(_REDUCTIONS, _reduce),
    **_rules("ArgMax ArgMin", _arg_reduce),
    **_rules("AveragePool LpPool MaxPool", _pool),
    **_rules("GlobalAveragePool GlobalLpPool GlobalMaxPool", _global_pool),
    "Cast": _cast,
    "CastLike": _cast_like,
    "Conv": _conv,
    "DequantizeLinear": _dequantize,
    "Dropout": _dropout,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "QuantizeLinear": _quantize,
    "Where": _where,
}
"""Rule by operator. A rule gives one `Info` for the first output, or a list of them."""
