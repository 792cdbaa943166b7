"""Integer sums of products of quantized tensors with constants, zero points known or not, by the rules for bytes.

With activations a of which the zero point is za, and weights b = w + z, where w are bytes with a sign and z is what is
left of the zero point of b,

    sum (a - za) (w - z) = sum a w  -  za sum w  -  z (sum a - K za).

The first sum is the rules' own, the second is known when the model is compiled, and the third is one number for each
row or window, the same for all columns; where z is 0 it is not needed. K is the number of products. Padding is stored
as za, so that every window is whole.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from tvm import relax, te, tirx

from backends.relax.attributes import get_int
from backends.relax.byte_products import MOST_TERMS
from backends.relax.checks import require, require_at_least
from backends.relax.contraction import Panels, product
from backends.relax.emitter import Emitter
from backends.relax.filters import Filters
from backends.relax.ops.conv import as_stored, by_rule, with_height_one
from backends.relax.quantized import BYTES, OFFSET, RunTimeZero, static_rows, unsigned
from backends.relax.scalars import cast
from backends.relax.values import prim, static_int
from backends.relax.window import Window

__all__ = ["integer_convolution", "integer_product"]

_SUM = "int32"
_SPATIAL = (1, 2)
_ONE_AXIS = 3
"""Axes of weights [O, C, W]."""


def integer_product(
    ctx: Emitter, a: ir.Value | None, b: ir.Value | None, a_zero: ir.Value | None, b_zero: ir.Value | None
) -> relax.Var | None:
    """[..., M, K] x [K, N] as int32, for a constant B; `None` where B is none, or A has a zero point for each row."""
    if not _fits(ctx, a, b, a_zero) or a is None or b is None:
        return None
    shape = ctx.static_shape(b)
    left = _left_over(ctx, b, b_zero)
    if len(shape) != 2 or ctx.rank(a) < 2 or left is None or shape[0] > MOST_TERMS:
        return None
    depth, columns = shape
    options = _options(b)
    x = ctx.x(unsigned(ctx, a))
    panels = Panels.of(ctx, "uint8", static_rows(ctx.shape(a)[:-1]), columns, depth)
    packed = ctx.weight(b, "byte_panels", panels.shape, "int8", **panels.options, **options)
    total = product(ctx, x, packed, columns, panels)
    sums = ctx.weight(b, "byte_sums", [columns], _SUM, kept=1, factor=1, **options)

    def row_sum(data: te.Tensor) -> te.Tensor:
        k = te.reduce_axis((0, depth), "k")
        return te.compute(data.shape[:-1], lambda *at: te.sum(cast(data(*at, k), _SUM), axis=k), name="row_sum")

    rows = ctx.te(row_sum, x, primfunc_name_hint="row_sum") if left.any() else None
    return _without_zero_points(ctx, total, sums, rows, _zero(ctx, a, a_zero), left, depth)


def integer_convolution(
    ctx: Emitter,
    node: ir.Node,
    x: ir.Value | None,
    w: ir.Value | None,
    x_zero: ir.Value | None,
    w_zero: ir.Value | None,
) -> relax.Var | None:
    """[N, S, O] as int32 of an image [N, G*C, S] and constant weights [O, C, taps]; `None` as in `integer_product`."""
    if not _fits(ctx, x, w, x_zero) or x is None or w is None:
        return None
    weights = ctx.static_shape(w)
    left = _left_over(ctx, w, w_zero)
    terms = int(np.prod(weights[1:]))
    if len(weights) - 2 not in _SPATIAL or left is None or terms > MOST_TERMS:
        return None
    groups = get_int(node, "group", 1)
    if left.any() and groups != 1:
        return None
    window = Window.of(node, ctx.shape(x)[2:], weights[2:], ctx.derived)
    require(ctx, ctx.shape(x)[1], weights[1] * groups, "channels of the input and of the weight")
    require_at_least(ctx, 0, window.outputs, "the number of windows")
    data = ctx.channels_last(unsigned(ctx, x))
    if len(weights) == _ONE_AXIS:
        data, window = ctx.emit(relax.op.expand_dims(data, [1])), with_height_one(window)
    zero = _zero(ctx, x, x_zero)
    data, window = as_stored(ctx, data, window, weights, groups, zero)
    options = _options(w)
    total = by_rule(ctx, data, Filters(w, options), weights, groups, window)
    sums = ctx.weight(w, "byte_sums", [weights[0]], _SUM, kept=0, factor=1, **options)
    windows = _window_sums(ctx, data, window, weights[1]) if left.any() else None
    result = _without_zero_points(ctx, total, sums, windows, zero, left, terms)
    return ctx.emit(relax.op.squeeze(result, [1])) if len(weights) == _ONE_AXIS else result


def _fits(ctx: Emitter, a: ir.Value | None, b: ir.Value | None, a_zero: ir.Value | None) -> bool:
    """Whether B is a constant of bytes, and A bytes with one zero point."""
    if a is None or b is None or a.dtype not in BYTES or b.dtype not in BYTES or not ctx.is_weight(b):
        return False
    return a_zero is None or all(static_int(size) == 1 for size in ctx.shape(a_zero))


def _options(b: ir.Value) -> dict[str, int]:
    """How to pack it as bytes with a sign."""
    return {"offset": -OFFSET} if b.dtype == ir.DataType.UINT8 else {}


def _left_over(ctx: Emitter, b: ir.Value, zero: ir.Value | None) -> np.ndarray | None:
    """Z: the zero point of the bytes with a sign, one or one for each column; `None` where only the run knows."""
    if zero is None:
        return np.array([_options(b).get("offset", 0)], np.int32)
    known = ctx.constant(zero)
    if known is None or known.ndim > 1:
        return None
    left: np.ndarray = known.reshape(-1).astype(np.int32) + _options(b).get("offset", 0)
    return left


def _zero(ctx: Emitter, a: ir.Value, zero: ir.Value | None) -> int | RunTimeZero:
    """Za of the bytes without a sign."""
    shift = OFFSET if a.dtype == ir.DataType.INT8 else 0
    if zero is None:
        return shift
    known = ctx.constant(zero)
    return RunTimeZero(ctx.x(zero), shift) if known is None else int(known.reshape(-1)[0]) + shift


def _window_sums(ctx: Emitter, data: relax.Var, window: Window, channels: int) -> relax.Var:
    """[N, OH, OW]: the sum of what each window sees; first over the channels, then over the taps."""

    def over_channels(x: te.Tensor) -> te.Tensor:
        c = te.reduce_axis((0, channels), "c")  # not those that only fill up a group of four
        return te.compute(x.shape[:-1], lambda *at: te.sum(cast(x(*at, c), _SUM), axis=c), name="channel_sum")

    def over_taps(x: te.Tensor) -> te.Tensor:
        taps = [te.reduce_axis((0, size), name) for size, name in zip(window.kernel, "yx", strict=True)]

        def element(image: tirx.Expr, *place: tirx.Expr) -> tirx.Expr:
            at = [p * s + t * d for p, s, t, d in zip(place, window.strides, taps, window.dilations, strict=True)]
            return te.sum(x(image, *at), axis=taps)

        return te.compute((x.shape[0], *window.outputs), element, name="window_sum")

    sums = ctx.te(over_channels, data, primfunc_name_hint="channel_sum")
    return ctx.te(over_taps, sums, primfunc_name_hint="window_sum")


def _without_zero_points(
    ctx: Emitter,
    total: relax.Var,
    sums: relax.Expr,
    rows: relax.Expr | None,
    zero: int | RunTimeZero,
    left: np.ndarray,
    terms: int,
) -> relax.Var:
    """The formula at the top of this file, for sums of products [..., columns].

    Args:
        ctx: the emitter.
        total: the first sum.
        sums: the second one, [columns].
        rows: the third one, [...]; `None` where z is 0.
        zero: za.
        left: z, one number or one for each column.
        terms: K.
    """
    if zero == 0 and rows is None:
        return total
    operands = [total, sums]
    if rows is not None:
        operands += [rows, relax.const(left)]
    if isinstance(zero, RunTimeZero):
        operands.append(zero.expr)

    def build(acc: te.Tensor, sums_: te.Tensor, *more: te.Tensor) -> te.Tensor:
        def element(*at: tirx.Expr) -> tirx.Expr:
            za = zero.read(more[-1]) if isinstance(zero, RunTimeZero) else tirx.const(zero, _SUM)
            value = acc(*at) - za * sums_(at[-1])
            if rows is None:
                return value
            seen, z = more[0](*at[:-1]), more[1](at[-1] if left.size > 1 else prim(0))
            return value - z * (seen - za * tirx.const(terms, _SUM))

        return te.compute(acc.shape, element, name="zero_points")

    return ctx.te(build, *operands, primfunc_name_hint="zero_points")
