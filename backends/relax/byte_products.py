"""Products of quantized activations with quantized constants: integer sums, and one float32 scale for each column.

With x = sx (a - za) and w = sw b, where a are bytes without a sign and b bytes with one,

    sum over k of x w = sx sw (sum over k of a b  -  za sum over k of b),

of which the last sum is known when the model is compiled. What follows in the graph (bias, activation, residual, the
next QuantizeLinear) is fused behind the scaling as it is behind any product.
"""

from __future__ import annotations

import onnx_ir as ir
from tvm import relax, te, tirx

from backends.relax.contraction import Panels, product
from backends.relax.emitter import Emitter
from backends.relax.quantized import Activation, Weight, activation, static_rows, weight
from backends.relax.scalars import cast

__all__ = ["MOST_TERMS", "byte_product", "rescaled"]

MOST_TERMS = 65_536
"""Products of which the sum fits in int32 whatever the factors are: 255 * 128 each."""


def byte_product(
    ctx: Emitter, a: ir.Value | None, b: ir.Value | None, *, transposed: bool = False, alpha: float = 1.0
) -> relax.Var | None:
    """Alpha * A x B of dequantized bytes, B a constant matrix; `None` where that is not what they are."""
    right = weight(ctx, b)
    if right is None or len(shape := ctx.static_shape(right.value)) != 2:
        return None
    transposed ^= right.transposed
    columns, depth = shape if transposed else shape[::-1]
    column_axis = 0 if transposed else 1
    if depth > MOST_TERMS or right.axis not in (None, column_axis):
        return None
    left = activation(ctx, a)
    if left is None or ctx.rank(left.value) < 2:
        return None
    x = ctx.x(left.value)
    panels = Panels.of(ctx, "uint8", static_rows(ctx.shape(left.value)[:-1]), columns, depth)
    options = {**panels.options, **right.options, "transposed": transposed}
    packed = ctx.weight(right.value, "byte_panels", panels.shape, "int8", **options)
    total = product(ctx, x, packed, columns, panels)
    return rescaled(ctx, total, left, right, columns, column_axis, alpha)


def rescaled(
    ctx: Emitter, total: relax.Var, left: Activation, right: Weight, columns: int, axis: int, alpha: float = 1.0
) -> relax.Var:
    """The float32 that integer sums stand for.

    Args:
        ctx: the emitter.
        total: [..., columns], int32.
        left: what was multiplied.
        right: with what.
        columns: the size of the last axis.
        axis: of the weight, along which the columns lie.
        alpha: a further factor.
    """
    factor = alpha * (1.0 if left.scale is None else left.scale)
    scale = ctx.weight(right.scale, "times", dtype="float32", factor=factor)
    operands = [total, scale]
    if left.zero:
        sums = ctx.weight(right.value, "byte_sums", [columns], "int32", kept=axis, factor=left.zero, **right.options)
        operands.append(sums)
    if left.scales is not None:
        operands.append(ctx.x(left.scales))

    def build(acc: te.Tensor, scales: te.Tensor, *more: te.Tensor) -> te.Tensor:
        rest = list(more)
        sums = rest.pop(0) if left.zero else None
        rows = rest.pop(0) if left.scales is not None else None

        def element(*index: tirx.Expr) -> tirx.Expr:
            place = index[-1]
            whole = acc(*index) if sums is None else acc(*index) - sums(place)
            own = [] if not scales.shape else [place if right.axis is not None else tirx.const(0, "int64")]
            result = cast(whole, "float32") * scales(*own)
            return result if rows is None else result * rows(index[0])

        return te.compute(acc.shape, element, name="rescale")

    return ctx.te(build, *operands, primfunc_name_hint="rescale")
