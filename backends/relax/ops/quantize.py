"""QuantizeLinear, DequantizeLinear and DynamicQuantizeLinear: for the whole tensor, an axis, or blocks of one.

Narrow types (4- and 2-bit integers, 8- to 4-bit floats) are carried as bytes; see `backends.relax.narrow`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir
from tvm import relax, te, tirx

from backends.relax.attributes import get_int
from backends.relax.byte_functions import byte_function
from backends.relax.emitter import Emitter
from backends.relax.forms import dtype_name
from backends.relax.layout import gathered, laid
from backends.relax.narrow import FLOATS, INTEGERS, is_narrow, narrowed, widened
from backends.relax.ops.elementwise import largest, smallest
from backends.relax.ops.reduction import Reduction, combined, highest
from backends.relax.pointwise import kernel
from backends.relax.quantized import BYTES, OFFSET, one_number, only_dequantized, remember_unsigned, signed
from backends.relax.registry import emits
from backends.relax.scalars import cast, lowest
from backends.relax.values import Deferred, Refused, Result, prim, static_int

Index = Sequence[tirx.Expr]
_COMPUTED = "float32"


@dataclass(frozen=True)
class Parameter:
    """A scale or a zero point.

    Attributes:
        dtype: its ONNX type.
        number: its value, if it is one constant.
        tensor: its elements otherwise.
        axis: the axis that a vector of them runs along, or that blocks cut.
        block: the number of elements that share one; 0 unless blocked.
    """

    dtype: ir.DataType
    number: tirx.Expr | None
    tensor: relax.Expr | None
    axis: int
    block: int

    @classmethod
    def of(cls, ctx: Emitter, value: ir.Value, axis: int = 0, block: int = 0) -> Parameter:
        """A parameter of a node, for an axis counted from the front."""
        if value.dtype is None:
            raise Refused("the type of a scale or zero point is not known")
        constant = ctx.constant(value)
        if constant is not None and constant.size == 1:
            number = tirx.const(constant.reshape(()).item(), str(constant.dtype))
            return cls(value.dtype, number, None, axis, block)
        return cls(value.dtype, None, ctx.x(value), axis, block)

    @property
    def constant(self) -> int | None:
        """The value of one that is a whole number known now."""
        return static_int(self.number) if self.number is not None else None

    @property
    def arguments(self) -> list[relax.Expr]:
        """What a kernel that reads it takes."""
        return [] if self.tensor is None else [self.tensor]

    def at(self, index: Index, tensors: list[te.Tensor]) -> tirx.Expr:
        """The one for an element, as a number; takes its tensor off the list."""
        if self.tensor is None:
            return self._number(self.number)
        tensor = tensors.pop(0)
        sizes = [static_int(d) for d in tensor.shape]
        if all(d == 1 for d in sizes) and len(sizes) <= 1:
            return self._number(tensor(*([prim(0)] * len(sizes))))
        if len(sizes) == 1 and not self.block:
            return self._number(tensor(index[self.axis]))
        blocked = (tirx.floordiv(p, self.block) if i == self.axis and self.block else p for i, p in enumerate(index))
        return self._number(tensor(*blocked))

    def _number(self, element: tirx.Expr | None) -> tirx.Expr:
        return widened(element, self.dtype) if is_narrow(self.dtype) else element


@emits("QuantizeLinear")
def quantize_linear(ctx: Emitter, node: ir.Node) -> Result:
    """round(x / scale) + zero point, cut to the range of the type."""
    table = byte_function(ctx, node)
    if table is not None:
        return table
    x, scale_input, zero_input = (*node.inputs, None)[:3]
    target = _quantized_type(node, zero_input)
    scale, zero = _parameters(ctx, node, scale_input, zero_input)
    saturate = get_int(node, "saturate", 1) == 1
    if target == ir.DataType.INT8 and only_dequantized(node.outputs[0]) and (zero is None or zero.constant is not None):
        middle = OFFSET + (0 if zero is None else zero.constant or 0)
        raised = replace(zero or scale, dtype=ir.DataType.INT32, number=tirx.const(middle, "int32"), tensor=None)
        result = _quantized(ctx, x, scale, raised, ir.DataType.UINT8, saturate)
        return signed(ctx, remember_unsigned(ctx, node.outputs[0], result))
    return _quantized(ctx, x, scale, zero, target, saturate)


def _quantized(
    ctx: Emitter, x: ir.Value | None, scale: Parameter, zero: Parameter | None, target: ir.DataType, saturate: bool
) -> Result:
    def element(read: Callable[..., tirx.Expr], index: Index, own: Index, *rest: te.Tensor) -> tirx.Expr:
        tensors = list(rest)
        quotient = cast(read(*index), _COMPUTED) / cast(scale.at(index, tensors), _COMPUTED)
        offset = None if zero is None else zero.at(index, tensors)
        return quantized(quotient, offset, target, saturate=saturate)

    more = [*scale.arguments, *(zero.arguments if zero is not None else [])]
    return gathered(ctx, laid(ctx, x), ctx.shape(x), element, "quantize", *more)


@emits("DequantizeLinear")
def dequantize_linear(ctx: Emitter, node: ir.Node) -> Result:
    """(x - zero point) * scale. Of bytes it is put off: an integer product reads them as they are."""
    x, scale = node.inputs[:2]
    source = _type(x)
    if scale is None or scale.dtype is None:
        raise Refused("the type of the scale is not known")
    _require_vector(ctx, node, scale)
    target = ir.DataType(get_int(node, "output_dtype", 0) or scale.dtype)
    if x is None or source not in BYTES:
        return _dequantized(ctx, node, x, 0, target)
    held, offset = (ctx.unsigned[x], OFFSET) if x in ctx.unsigned else (x, 0)
    return Deferred(held, dtype_name(target), lambda: _dequantized(ctx, node, held, offset, target))


def _dequantized(ctx: Emitter, node: ir.Node, x: ir.Value | None, offset: int, target: ir.DataType) -> Result:
    """`offset` is what has been added to the elements of `x` (see `backends.relax.quantized`)."""
    source = _type(x)
    scale, zero = _parameters(ctx, node, *(*node.inputs, None)[1:3])

    def element(read: Callable[..., tirx.Expr], index: Index, own: Index, *rest: te.Tensor) -> tirx.Expr:
        tensors = list(rest)
        value = read(*index)
        number = widened(value, source) if is_narrow(source) else cast(value, "int32")
        factor = cast(scale.at(index, tensors), _COMPUTED)
        if offset:
            number = number - tirx.const(offset, "int32")
        if zero is not None:
            number = number - cast(zero.at(index, tensors), str(number.expr_ty()))
        return cast(cast(number, _COMPUTED) * factor, dtype_name(target))

    more = [*scale.arguments, *(zero.arguments if zero is not None else [])]
    return gathered(ctx, laid(ctx, x), ctx.shape(x), element, "dequantize", *more)


@emits("DynamicQuantizeLinear")
def dynamic_quantize_linear(ctx: Emitter, node: ir.Node) -> list[Result]:
    """uint8 with a scale and a zero point made from the range of x, which is widened to hold 0."""
    x = ctx.x(node.inputs[0])
    top, bottom = (ctx.te(_extremum(pick, neutral), x) for pick, neutral in ((largest, lowest), (smallest, highest)))

    def zero() -> tirx.Expr:
        return tirx.const(0, _COMPUTED)

    def scale_of(high: tirx.Expr, low: tirx.Expr) -> tirx.Expr:
        span = tirx.max(high, zero()) - tirx.min(low, zero())
        return tirx.Select(tirx.EQ(span, zero()), tirx.const(1, _COMPUTED), span / tirx.const(255, _COMPUTED))

    def zero_point_of(low: tirx.Expr, scale: tirx.Expr) -> tirx.Expr:
        place = tirx.max(tirx.min(-tirx.min(low, zero()) / scale, tirx.const(255, _COMPUTED)), zero())
        return tirx.Cast("uint8", tirx.nearbyint(place))

    scale = kernel(ctx, [top, bottom], scale_of, "scale", _COMPUTED)
    point = kernel(ctx, [bottom, scale], zero_point_of, "zero_point", "uint8")

    def quantize(value: tirx.Expr, by: tirx.Expr, offset: tirx.Expr) -> tirx.Expr:
        return quantized(value / by, offset, ir.DataType.UINT8)

    return [kernel(ctx, [x, scale, point], quantize, "quantize", "uint8"), scale, point]


def quantized(quotient: tirx.Expr, zero: tirx.Expr | None, target: ir.DataType, *, saturate: bool = True) -> tirx.Expr:
    """A float32 rounded and moved by the zero point, in the target type."""
    if target in FLOATS:
        moved = quotient if zero is None else quotient + cast(zero, _COMPUTED)
        return narrowed(moved, target, saturate=saturate)
    low, high = _range(target)
    rounded = tirx.nearbyint(quotient)
    moved = rounded if zero is None else rounded + cast(zero, _COMPUTED)
    bounded = tirx.max(tirx.min(moved, tirx.const(high, _COMPUTED)), tirx.const(low, _COMPUTED))
    whole = tirx.Cast("int32", bounded)
    return narrowed(whole, target) if target in INTEGERS else tirx.Cast(dtype_name(target), whole)


def _range(dtype: ir.DataType) -> tuple[int, int]:
    if dtype in INTEGERS:
        bits, signed = INTEGERS[dtype]
    else:
        name = dtype_name(dtype)
        bits, signed = int(name.lstrip("uint")), not name.startswith("u")
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def _quantized_type(node: ir.Node, zero: ir.Value | None) -> ir.DataType:
    if zero is not None and zero.dtype is not None:
        return zero.dtype
    return ir.DataType(get_int(node, "output_dtype", 0) or ir.DataType.UINT8)


def _type(value: ir.Value | None) -> ir.DataType:
    if value is None or value.dtype is None:
        raise Refused("the type of its input is not known")
    return value.dtype


def _parameters(
    ctx: Emitter, node: ir.Node, scale: ir.Value | None, zero: ir.Value | None
) -> tuple[Parameter, Parameter | None]:
    if scale is None:
        raise Refused("the scale is missing")
    rank = ctx.rank(node.inputs[0])
    block = get_int(node, "block_size", 0)
    per_tensor = rank == 0 or ctx.rank(scale) == 0 or all(static_int(d) == 1 for d in ctx.shape(scale))
    axis = 0 if per_tensor and not block else ctx.axis(get_int(node, "axis", 1), rank)
    _require_vector(ctx, node, scale)
    return Parameter.of(ctx, scale, axis, block), None if zero is None else _zero_point(ctx, zero, axis, block)


def _zero_point(ctx: Emitter, zero: ir.Value, axis: int, block: int) -> Parameter:
    """One number where all are the same: kernels then round in fewer operations (`backends.cpu.byte_rounding`)."""
    same = one_number(ctx, zero)
    if same is None or zero.dtype not in BYTES:
        return Parameter.of(ctx, zero, axis, block)
    return Parameter(zero.dtype, tirx.const(same, dtype_name(zero.dtype)), None, axis, block)


def _require_vector(ctx: Emitter, node: ir.Node, scale: ir.Value) -> None:
    if ctx.rank(scale) > 1 and not get_int(node, "block_size", 0):
        raise Refused(f"a scale of rank {ctx.rank(scale)} without block_size")


def _extremum(
    pick: Callable[[tirx.Expr, tirx.Expr], tirx.Expr], neutral: Callable[[str], tirx.Expr]
) -> Callable[[te.Tensor], te.Tensor]:
    """A kernel for the largest or smallest element of a whole tensor."""

    def build(tensor: te.Tensor) -> te.Tensor:
        places = list(range(len(tensor.shape)))
        kept = combined(tensor, places, Reduction(pick, neutral), str(tensor.dtype), "extremum")
        return te.compute((), lambda: kept(*([prim(0)] * len(places))), name="extremum_scalar")

    return build
