"""The operands of a convolution: floats as they are, or the bytes behind what a DequantizeLinear gives.

Outside the image a quantized activation is its zero point. Where that is 0 a kernel leaves the padding out, as it does
of floats; any other zero point is stored around the image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir
from tvm import relax, te, tirx

from backends.relax.byte_products import MOST_TERMS
from backends.relax.contraction import FLOATS
from backends.relax.emitter import Emitter
from backends.relax.quantized import Activation, RunTimeZero, Weight, activation, weight
from backends.relax.scalars import cast
from backends.relax.values import prim, static_int
from backends.relax.window import Window

__all__ = ["Filters", "byte_factors", "stored_image"]

_FEW_CHANNELS = 8
"""Of floats, up to which the copy of an image costs less than to put its last elements together one by one."""


@dataclass(frozen=True)
class Filters:
    """The weights of a convolution.

    Attributes:
        value: [G*O, C, spatial...].
        bytewise: how to pack them as bytes with a sign (`Weight.options`); `None` for floats.
    """

    value: ir.Value
    bytewise: Mapping[str, int] | None = None

    def packed(self, ctx: Emitter, transform: str, shape: list[int], **options: Any) -> relax.Var:
        """As an argument of the compiled function; see `Emitter.weight`."""
        if self.bytewise is None:
            return ctx.weight(self.value, transform, shape, **options)
        dtype = "int32" if transform == "depthwise" else "int8"
        return ctx.weight(self.value, f"byte_{transform}", shape, dtype, **options, **self.bytewise)


def byte_factors(ctx: Emitter, x: ir.Value | None, w: ir.Value | None) -> tuple[Activation, Weight] | None:
    """The bytes behind the operands of a convolution; `None` where they are not dequantized bytes."""
    right = weight(ctx, w)
    if right is None or right.transposed or right.axis not in (None, 0):
        return None
    sizes = ctx.static_shape(right.value)
    terms = 1
    for size in sizes[1:]:
        terms *= size
    left = activation(ctx, x) if len(sizes) in (3, 4) and terms <= MOST_TERMS else None
    return None if left is None or left.scale is None else (left, right)


def stored_image(
    ctx: Emitter, data: relax.Var, window: Window, zero: int | RunTimeZero, *, together: int
) -> tuple[relax.Var, Window]:
    """The image with its padding stored, if kernels cannot leave it out; and the window over that image.

    Args:
        ctx: the emitter.
        data: [N, H, W, C].
        window: over H and W.
        zero: the zero point; of floats 0.
        together: how many channels are multiplied at a time; their number is then rounded up, of floats where there
            are few: a lane is a load then, and not put together from what there is.
    """
    channels, dtype = static_int(data.ty.shape.values[3]), str(data.ty.dtype)
    if channels is None or (dtype in FLOATS and channels > _FEW_CHANNELS):
        return data, window
    wanted = -(-channels // together) * together
    stored = (not isinstance(zero, int) or zero != 0) and not window.inside()
    if not stored and wanted == channels:
        return data, window
    moved = replace(window, before=(prim(0),) * 2, after=(prim(0),) * 2, sizes=window.padded()) if stored else window
    before, sizes = (window.before, moved.sizes) if stored else ((prim(0),) * 2, data.ty.shape.values[1:3])

    def build(x: te.Tensor, *zeros: te.Tensor) -> te.Tensor:
        def element(image: tirx.Expr, y: tirx.Expr, column: tirx.Expr, channel: tirx.Expr) -> tirx.Expr:
            outside = tirx.const(zero, dtype) if isinstance(zero, int) else cast(zero.read(zeros[0]), dtype)
            places = [(y - before[0], x.shape[1]), (column - before[1], x.shape[2])]
            inside = [c for p, size in places for c in (tirx.GE(p, prim(0)), tirx.LT(p, size))] if stored else []
            if wanted != channels:
                inside.append(tirx.LT(channel, prim(channels)))
            value = x[image, places[0][0], places[1][0], channel]
            return tirx.if_then_else(tirx.all(*inside), value, outside)

        return te.compute((x.shape[0], *sizes, prim(wanted)), element, name="padded")

    operands = [data] if isinstance(zero, int) else [data, zero.expr]
    return ctx.te(build, *operands, primfunc_name_hint="pad"), moved
