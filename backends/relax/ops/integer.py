"""Products of quantized tensors: MatMulInteger, ConvInteger, QLinearMatMul, QLinearConv. Sums are kept in int32.

Letters: M rows, K the reduced axis, N columns; N batch, G groups, C channels per group, O output channels, S spatial
sizes.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from tvm import relax, te, tirx

from backends.relax.attributes import get_int
from backends.relax.contraction import product
from backends.relax.emitter import Emitter
from backends.relax.integer_products import integer_convolution, integer_product
from backends.relax.narrow import is_narrow
from backends.relax.ops.quantize import quantized
from backends.relax.pointwise import kernel
from backends.relax.registry import emits
from backends.relax.scalars import cast
from backends.relax.values import ChannelsLast, Refused, Result, prim, static_int
from backends.relax.window import Window

_FLOAT = "float32"
_SUM = "int32"


@emits("MatMulInteger")
def matmul_integer(ctx: Emitter, node: ir.Node) -> Result:
    """(A - a zero point) x (B - b zero point)."""
    a, b, a_zero, b_zero = (*node.inputs, None, None)[:4]
    return _product(ctx, a, b, a_zero, b_zero)


@emits("QLinearMatMul")
def qlinear_matmul(ctx: Emitter, node: ir.Node) -> Result:
    """The product of two quantized matrices, quantized again."""
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = node.inputs[:8]
    total = _product(ctx, a, b, a_zero, b_zero)
    left, right = _as_rows(ctx, a_scale), ctx.x(b_scale)
    return _requantized(ctx, total, [left, right], y_scale, y_zero, None)


@emits("ConvInteger")
def conv_integer(ctx: Emitter, node: ir.Node) -> Result:
    """The convolution of (x - x zero point) with (w - w zero point)."""
    x, w, x_zero, w_zero = (*node.inputs, None, None)[:4]
    total = integer_convolution(ctx, node, x, w, x_zero, w_zero)
    if total is not None:
        return ChannelsLast(total)
    return _convolution(ctx, node, x, w, x_zero, w_zero)


@emits("QLinearConv")
def qlinear_conv(ctx: Emitter, node: ir.Node) -> Result:
    """The convolution of quantized tensors, with a bias, quantized again."""
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, bias = (*node.inputs, None)[:9]
    by_rule = integer_convolution(ctx, node, x, w, x_zero, w_zero)
    if by_rule is not None:
        own = None if bias is None else ctx.x(bias)
        return ChannelsLast(_requantized(ctx, by_rule, [ctx.x(x_scale), ctx.x(w_scale)], y_scale, y_zero, own))
    total = _convolution(ctx, node, x, w, x_zero, w_zero)
    rank = ctx.rank(x)
    scales = [ctx.x(x_scale), _per_channel(ctx, w_scale, rank)]
    return _requantized(ctx, total, scales, y_scale, y_zero, None if bias is None else _per_channel(ctx, bias, rank))


def _product(
    ctx: Emitter, a: ir.Value | None, b: ir.Value | None, a_zero: ir.Value | None, b_zero: ir.Value | None
) -> relax.Var:
    """[..., M, K] x [..., K, N] as int32."""
    for value in (a, b):
        if value is None or is_narrow(value.dtype):
            raise Refused("a matrix product of 8-bit floats")
    if ctx.rank(a) < 2 or ctx.rank(b) < 2:
        raise Refused("a product with a vector")
    by_bytes = integer_product(ctx, a, b, a_zero, b_zero)
    if by_bytes is not None:
        return by_bytes
    left = _shifted(ctx, ctx.x(a), None if a_zero is None else _as_rows(ctx, a_zero))
    right = _shifted(ctx, ctx.x(b), None if b_zero is None else ctx.x(b_zero))

    return product(ctx, left, right, right.ty.shape.values[-1], None)


def _convolution(
    ctx: Emitter,
    node: ir.Node,
    x: ir.Value | None,
    w: ir.Value | None,
    x_zero: ir.Value | None,
    w_zero: ir.Value | None,
) -> relax.Var:
    """[N, G*C, S] and [O, C, taps] to [N, O, S] as int32; what the padding adds is nothing."""
    groups = get_int(node, "group", 1)
    out_channels, channels, *taps = ctx.static_shape(w, "a kernel's shape")
    window = Window.of(node, ctx.shape(x)[2:], taps)
    image = _shifted(ctx, ctx.x(x), None if x_zero is None else ctx.x(x_zero))
    weight = _shifted(ctx, ctx.x(w), None if w_zero is None else _leading(ctx, w_zero, len(taps) + 2))
    per_group = out_channels // groups

    def build(data: te.Tensor, kernels: te.Tensor) -> te.Tensor:
        c = te.reduce_axis((0, channels), name="c")
        axes = [te.reduce_axis((0, k), name=f"k{i}") for i, k in enumerate(taps)]
        sizes = data.shape[2:]

        def element(batch: tirx.Expr, out: tirx.Expr, *position: tirx.Expr) -> tirx.Expr:
            places = [
                p * s + k * d - b
                for p, s, k, d, b in zip(position, window.strides, axes, window.dilations, window.before, strict=True)
            ]
            inside = tirx.all(*(q for p, d in zip(places, sizes, strict=True) for q in (p >= 0, p < d)))
            channel = tirx.floordiv(out, per_group) * channels + c
            read = tirx.if_then_else(inside, data(batch, channel, *places), tirx.const(0, _SUM))
            return te.sum(read * kernels(out, c, *axes), axis=[c, *axes])

        return te.compute([data.shape[0], prim(out_channels), *window.outputs], element, name="conv_integer")

    return ctx.te(build, image, weight)


def _shifted(ctx: Emitter, tensor: relax.Expr, zero: relax.Expr | None) -> relax.Var:
    """The tensor as int32, without its zero point."""
    if zero is None:
        return kernel(ctx, [tensor], lambda v: cast(v, _SUM), "shift", _SUM)
    zero = _scalar_if_single(ctx, zero)
    return kernel(ctx, [tensor, zero], lambda v, z: cast(v, _SUM) - cast(z, _SUM), "shift", _SUM)


def _requantized(
    ctx: Emitter,
    total: relax.Var,
    scales: Sequence[relax.Expr],
    y_scale: ir.Value | None,
    y_zero: ir.Value | None,
    bias: relax.Expr | None,
) -> relax.Var:
    """round(sum * a scale * b scale / y scale) + y zero point."""
    if y_scale is None or y_zero is None or y_zero.dtype is None:
        raise Refused("the output's scale or zero point is missing")
    target = y_zero.dtype
    dtype = str(ctx.x(y_zero).ty.dtype)

    def formula(
        sum_: tirx.Expr, a: tirx.Expr, b: tirx.Expr, y: tirx.Expr, zero: tirx.Expr, *added: tirx.Expr
    ) -> tirx.Expr:
        whole = sum_ + added[0] if added else sum_
        factor = cast(a, _FLOAT) * cast(b, _FLOAT) / cast(y, _FLOAT)
        return quantized(tirx.Cast(_FLOAT, whole) * factor, zero, target)

    operands = [total, *(_scalar_if_single(ctx, s) for s in (*scales, ctx.x(y_scale), ctx.x(y_zero)))]
    return kernel(ctx, [*operands, *([] if bias is None else [bias])], formula, "requantize", dtype)


def _scalar_if_single(ctx: Emitter, expr: relax.Expr) -> relax.Expr:
    """Without axes, if there is one element: then it broadcasts to any rank."""
    shape = expr.ty.shape.values
    single = len(shape) > 0 and all(static_int(d) == 1 for d in shape)
    return ctx.emit(relax.op.reshape(expr, relax.ShapeExpr([]))) if single else expr


def _as_rows(ctx: Emitter, parameter: ir.Value | None) -> relax.Expr:
    """A parameter of A: a vector of M becomes [M, 1]."""
    expr = ctx.x(parameter)
    single = all(static_int(d) == 1 for d in expr.ty.shape.values)
    return expr if single or expr.ty.ndim != 1 else ctx.emit(relax.op.expand_dims(expr, [1]))


def _leading(ctx: Emitter, value: ir.Value, rank: int) -> relax.Expr:
    """A vector along the first of `rank` axes."""
    expr = ctx.x(value)
    if expr.ty.ndim == 0:
        return expr
    return ctx.emit(relax.op.reshape(expr, relax.ShapeExpr([expr.ty.shape.values[0], *[1] * (rank - 1)])))


def _per_channel(ctx: Emitter, value: ir.Value | None, rank: int) -> relax.Expr:
    """A vector along the second of `rank` axes."""
    expr = ctx.x(value)
    if expr.ty.ndim == 0:
        return expr
    return ctx.emit(relax.op.reshape(expr, relax.ShapeExpr([expr.ty.shape.values[0], *[1] * (rank - 2)])))
