"""Rows of a quantized table, as Gather reads them: the bytes of those rows alone are turned into floats."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
from tvm import relax, te, tirx

from backends.relax.attributes import get_int
from backends.relax.emitter import Emitter
from backends.relax.quantized import dequantizes, one_number
from backends.relax.scalars import cast
from backends.relax.values import prim, static_int

__all__ = ["byte_rows"]


def byte_rows(ctx: Emitter, value: ir.Value | None, places: Callable[[], relax.Var]) -> relax.Var | None:
    """The rows of a table that `places()` names, as float32; `None` if it is no dequantized matrix of bytes."""
    node = dequantizes(ctx, value)
    if node is None or node.inputs[0] is None or not ctx.is_weight(node.inputs[0]):
        return None
    source, scale, zero_input = (*node.inputs, None)[:3]
    zero = one_number(ctx, zero_input)
    if source is None or scale is None or zero is None or get_int(node, "block_size", 0) or ctx.rank(source) != 2:
        return None
    single = all(static_int(d) == 1 for d in ctx.shape(scale))
    axis = None if single else ctx.axis(get_int(node, "axis", 1), 2)

    def build(data: te.Tensor, scales: te.Tensor, at: te.Tensor) -> te.Tensor:
        def element(*index: tirx.Expr) -> tirx.Expr:
            row, column = prim(at(*index[:-1])), index[-1]
            place = [] if not scales.shape else [prim(0) if axis is None else row if axis == 0 else column]
            number = cast(data(row, column), "int32")
            return cast(number - tirx.const(zero, "int32") if zero else number, "float32") * scales(*place)

        return te.compute([*at.shape, data.shape[1]], element, name="byte_rows")

    return ctx.te(build, ctx.weight(source), ctx.weight(scale), places())
