"""Tensors of bytes: what a QuantizeLinear and a DequantizeLinear say of them, and the form in which kernels take them.

Kernels multiply bytes without a sign (activations) by bytes with one (weights); see `backends.cpu.quads`. An int8
activation is therefore held as uint8, 128 higher, and so is its zero point: the QuantizeLinear that makes it gives
that form right away.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from tvm import relax, te, tirx

from backends.relax.attributes import get_int, get_ints
from backends.relax.emitter import Emitter
from backends.relax.forms import initializer_type, is_known
from backends.relax.layout import laid
from backends.relax.scalars import cast
from backends.relax.values import ChannelsLast, Deferred, Emitted, Result, static_int

__all__ = [
    "BYTES",
    "OFFSET",
    "Activation",
    "RunTimeZero",
    "Weight",
    "activation",
    "dequantizes",
    "one_number",
    "only_dequantized",
    "remember_unsigned",
    "restored",
    "signed",
    "static_rows",
    "unsigned",
    "weight",
]

OFFSET = 128
"""Between an int8 and the uint8 that holds it."""
BYTES = (ir.DataType.UINT8, ir.DataType.INT8)


@dataclass(frozen=True)
class Activation:
    """What a DequantizeLinear of bytes reads.

    Attributes:
        value: the bytes, as uint8.
        scale: of the whole tensor; `None` where `scales` says it.
        scales: one for each row: a vector along the first axis of a matrix.
        zero: the zero point of the uint8 form.
    """

    value: ir.Value
    scale: float | None
    scales: ir.Value | None
    zero: int


@dataclass(frozen=True)
class RunTimeZero:
    """A zero point that only the run knows.

    It is read where it is needed: a kernel of its own would be fused with the product behind it, whose rule wants to
    see the product first.

    Attributes:
        expr: a tensor of one byte.
        shift: what makes it that of the uint8 form.
    """

    expr: relax.Expr
    shift: int

    def read(self, tensor: te.Tensor) -> tirx.Expr:
        """The number, as int32, in an expression over `expr`."""
        number = cast(tensor(*[tirx.const(0, "int64")] * len(tensor.shape)), "int32")
        return number + tirx.const(self.shift, "int32") if self.shift else number


@dataclass(frozen=True)
class Weight:
    """A constant matrix or window of bytes with a sign, whose zero point is 0.

    Attributes:
        value: the initializer.
        scale: one number, or a vector along `axis`.
        axis: of the initializer; `None` for one number.
        transposed: whether a Transpose swaps the last two axes before the weight is used.
        offset: what has to be added to the stored elements.
    """

    value: ir.Value
    scale: ir.Value
    axis: int | None
    transposed: bool
    offset: int

    @property
    def options(self) -> dict[str, int]:
        """Keyword arguments of the functions of `packing` that take an offset."""
        return {"offset": self.offset} if self.offset else {}


def activation(ctx: Emitter, value: ir.Value | None) -> Activation | None:
    """The bytes behind a dequantized activation; `None` if it is none, or one with scales that no product can apply."""
    node = dequantizes(ctx, value)
    if node is None or node.inputs[0] is None or ctx.is_weight(node.inputs[0]):
        return None
    source, scale, zero_input = (*node.inputs, None)[:3]
    assert source is not None
    zero = one_number(ctx, zero_input)
    factor = ctx.constant(scale)
    if zero is None or scale is None or get_int(node, "block_size", 0):
        return None
    shifted = zero + (OFFSET if source.dtype == ir.DataType.INT8 else 0)
    if factor is not None and factor.size == 1:
        return Activation(unsigned(ctx, source), float(factor.reshape(())), None, shifted)
    if ctx.rank(source) != 2 or ctx.rank(scale) != 1 or ctx.axis(get_int(node, "axis", 1), 2) != 0:
        return None
    return Activation(unsigned(ctx, source), None, scale, shifted)


def weight(ctx: Emitter, value: ir.Value | None) -> Weight | None:
    """The bytes behind a dequantized constant; `None` if it is none, or has a zero point that is not its middle."""
    transposed = False
    producer = None if value is None else value.producer()
    if producer is not None and producer.op_type == "Transpose" and _swaps_the_last_two(producer):
        value, transposed = producer.inputs[0], True
    node = dequantizes(ctx, value)
    if node is None or node.inputs[0] is None or not ctx.is_weight(node.inputs[0]):
        return None
    source, scale, zero_input = (*node.inputs, None)[:3]
    if source is None or scale is None or get_int(node, "block_size", 0) or not ctx.is_weight(scale):
        return None
    zero = one_number(ctx, zero_input)
    offset = -OFFSET if source.dtype == ir.DataType.UINT8 else 0
    if zero is None or zero + offset:
        return None
    rank = len(initializer_type(source)[0])
    single = int(np.prod(initializer_type(scale)[0])) == 1
    axis = None if single else ctx.axis(get_int(node, "axis", 1), rank)
    return Weight(source, scale, axis, transposed, offset)


def unsigned(ctx: Emitter, value: ir.Value) -> ir.Value:
    """A tensor of bytes as one of uint8: itself, or 128 more than its int8."""
    if value.dtype == ir.DataType.UINT8:
        return value
    known = ctx.unsigned.get(value)
    if known is not None:
        return known
    return remember_unsigned(ctx, value, _moved(ctx, value, OFFSET, "uint8"))


def signed(ctx: Emitter, other: ir.Value) -> Result:
    """An int8 tensor from its uint8 form, when it is asked for."""
    return Deferred(other, "int8", lambda: _moved(ctx, other, -OFFSET, "int8"))


def _moved(ctx: Emitter, value: ir.Value, by: int, dtype: str) -> Result:
    operand = laid(ctx, value)

    def move(x: te.Tensor) -> te.Tensor:
        def element(*index: tirx.Expr) -> tirx.Expr:
            return cast(cast(x(*index), "int32") + tirx.const(by, "int32"), dtype)

        return te.compute(x.shape, element, name="moved")

    return operand.result(ctx.te(move, operand.expr))


def restored(ctx: Emitter, value: ir.Value, scale: float, zero: int) -> Result:
    """What uint8 stand for, when it is asked for."""

    def emit() -> Emitted:
        operand = laid(ctx, value)

        def build(x: te.Tensor) -> te.Tensor:
            def element(*index: tirx.Expr) -> tirx.Expr:
                number = cast(x(*index), "int32") - tirx.const(zero, "int32")
                return cast(number, "float32") * tirx.const(scale, "float32")

            return te.compute(x.shape, element, name="restored")

        expr = ctx.te(build, operand.expr, primfunc_name_hint="dequantizelinear")
        return ChannelsLast(expr) if operand.last else expr

    return Deferred(value, "float32", emit)


def remember_unsigned(ctx: Emitter, value: ir.Value, result: Result) -> ir.Value:
    """Make `result` known as the uint8 form of an int8 value."""
    other = ir.Value(name=f"{value.name}.unsigned", type=ir.TensorType(ir.DataType.UINT8), shape=value.shape)
    ctx.bind(other, result)
    ctx.unsigned[value] = other
    return other


def only_dequantized(value: ir.Value) -> bool:
    """Whether nothing but DequantizeLinear reads a value."""
    nodes = value.consumers()
    return bool(nodes) and not value.is_graph_output() and all(n.op_type == "DequantizeLinear" for n in nodes)


def dequantizes(ctx: Emitter, value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear of bytes that gives a value as float32, if what it reads can be asked for here."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "DequantizeLinear" or node.domain not in ("", "ai.onnx"):
        return None
    source, scale = node.inputs[:2]
    if source is None or scale is None or source.dtype not in BYTES or ctx.dtype(value) != "float32":
        return None
    inputs = [v for v in node.inputs if v is not None]
    return node if all(is_known(ctx, v) for v in inputs) and ctx.dtype(scale) == "float32" else None


def one_number(ctx: Emitter, zero: ir.Value | None) -> int | None:
    """A zero point that is the same for all elements and known now; 0 where there is none."""
    if zero is None:
        return 0
    array = ctx.constant(zero)
    if array is None or not array.size or (array != array.flat[0]).any():
        return None
    return int(array.flat[0])


def _swaps_the_last_two(node: ir.Node) -> bool:
    source = node.inputs[0]
    if source is None or source.shape is None:
        return False
    rank = len(source.shape)
    order = get_ints(node, "perm", list(range(rank))[::-1])
    return rank >= 2 and order == [*range(rank - 2), rank - 1, rank - 2]


def static_rows(sizes: list[tirx.Expr]) -> int | None:
    """The product of sizes, if all are known."""
    total = 1
    for size in sizes:
        known = static_int(size)
        if known is None:
            return None
        total *= known
    return total
