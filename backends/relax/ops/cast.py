"""Cast, CastLike and BitCast."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from tvm import tirx

from backends.relax.attributes import get_int, get_str
from backends.relax.emitter import Emitter
from backends.relax.forms import dtype_name
from backends.relax.known import forward, known, symbolic
from backends.relax.narrow import is_narrow, narrowed, widened
from backends.relax.pointwise import pointwise
from backends.relax.registry import emits
from backends.relax.scalars import cast, is_float, scalar_type, zero_like
from backends.relax.values import Refused, Result, static_int


@emits("Cast")
def cast_to(ctx: Emitter, node: ir.Node) -> Result:
    """The same numbers in the type `to`."""
    return convert(ctx, node, ir.DataType(get_int(node, "to", 0)))


@emits("CastLike")
def cast_like(ctx: Emitter, node: ir.Node) -> Result:
    """The same numbers in the type of the second input."""
    like = node.inputs[1]
    if like is None or like.dtype is None:
        raise Refused("the type to cast to is not known")
    return convert(ctx, node, like.dtype)


@emits("BitCast")
def bit_cast(ctx: Emitter, node: ir.Node) -> Result:
    """The same bits in another type of the same width."""
    x = node.inputs[0]
    source, target = _type(x), ir.DataType(get_int(node, "to", 0))
    if source == target or (is_narrow(source) and is_narrow(target)):
        return forward(ctx, x)
    dtype = dtype_name(target)
    if source == ir.DataType.BOOL:
        return pointwise(ctx, [x], lambda v: cast(tirx.Cast("uint8", v), dtype), "bit_cast", dtype)
    if target == ir.DataType.BOOL:
        return pointwise(ctx, [x], lambda v: tirx.NE(v, zero_like(v)), "bit_cast", dtype)
    return pointwise(ctx, [x], lambda v: tirx.reinterpret(dtype, v), "bit_cast", dtype, widen=False)


def convert(ctx: Emitter, node: ir.Node, target: ir.DataType) -> Result:
    """The first input of a node in another type."""
    x = node.inputs[0]
    source = _type(x)
    if ir.DataType.STRING in (source, target):
        raise Refused("strings are not numbers to this backend")
    if source == target:
        return forward(ctx, x)
    constant = _known_as(ctx, x, target)
    if constant is not None:
        return constant
    saturate, round_mode = get_int(node, "saturate", 1) == 1, get_str(node, "round_mode", "up")

    def formula(value: tirx.Expr) -> tirx.Expr:
        number = widened(value, source) if is_narrow(source) else value
        if is_narrow(target):
            return narrowed(number, target, saturate=saturate, round_mode=round_mode)
        return converted(number, dtype_name(target))

    return pointwise(ctx, [x], formula, "cast", dtype_name(target))


def converted(x: tirx.Expr, dtype: str) -> tirx.Expr:
    """A scalar in another type; what is not zero is true, and a float becomes a narrow integer by way of a wide one."""
    if dtype == "bool":
        if scalar_type(x) == "bool":
            return x
        differs = tirx.NE(x, zero_like(x))  # of floats only where both are numbers
        return tirx.any(differs, tirx.isnan(x)) if is_float(x) else differs
    if is_float(x) and dtype in ("int8", "uint8", "int16", "uint16"):
        return tirx.Cast(dtype, tirx.Cast("int32", x))
    return cast(x, dtype)


def _known_as(ctx: Emitter, x: ir.Value | None, target: ir.DataType) -> Result | None:
    """Known integers in the new type: followed on if that is int32 or int64, folded where no size is symbolic."""
    array = known(ctx, x)
    if array is None or is_narrow(target) or is_narrow(_type(x)):
        return None
    if target in (ir.DataType.INT32, ir.DataType.INT64):
        return symbolic(np.vectorize(lambda e: cast(e, "int64"), otypes=[object])(array), dtype_name(target))
    numbers = [static_int(e) for e in array.reshape(-1)]
    if any(n is None for n in numbers):
        return None
    return np.array(numbers, np.int64).reshape(array.shape).astype(target.numpy())


def _type(value: ir.Value | None) -> ir.DataType:
    if value is None or value.dtype is None:
        raise Refused("the type of its input is not known")
    return value.dtype
