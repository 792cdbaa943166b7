"""Products with weights of 4 bits, and tables of them, as tensor expressions that the schedule rule knows.

An activation that the graph has quantized to int8, without a zero point, is multiplied as it is: with one scale, one
for each row of a matrix, or one for each block of the last axis.

    QuantizeLinear -> DequantizeLinear -> MatMul or Gemm with such weights
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from tvm import relax, te, tirx

from backends.relax.attributes import get_int
from backends.relax.checks import require, retyped
from backends.relax.emitter import Emitter
from backends.relax.four_bits import FourBits
from backends.relax.nibbles import GROUP
from backends.relax.tensor_call import TAIL
from backends.relax.values import prim, static_int

__all__ = ["KERNEL", "Bytes", "product", "rows"]

KERNEL = "four_bits"
_WIDE = "float32"


@dataclass(frozen=True)
class Bytes:
    """An activation [..., K] in int8.

    Attributes:
        value: the bytes.
        scale: one number, [M] for a matrix [M, K], or [..., ceil(K/block)].
        block: how many neighbours along K share a scale; 0 where a whole row does.
    """

    value: ir.Value
    scale: ir.Value
    block: int

    @classmethod
    def of(cls, ctx: Emitter, value: ir.Value | None) -> Bytes | None:
        """The bytes that a value is made from; `None` if it is not made so."""
        node = None if value is None else value.producer()
        if node is None or node.op_type != "DequantizeLinear" or node.domain not in ("", "ai.onnx"):
            return None
        source, scale, zero = (*node.inputs, None)[:3]
        zeros = None if zero is None else ctx.constant(zero)
        if source is None or scale is None or (zero is not None and (zeros is None or zeros.any())):
            return None
        if source.dtype != ir.DataType.INT8 or scale.dtype != ir.DataType.FLOAT or ctx.is_weight(source):
            return None
        rank, shared = ctx.rank(source), ctx.rank(scale)
        axis, block = get_int(node, "axis", 1) % max(rank, 1), get_int(node, "block_size", 0)
        single = all(static_int(d) == 1 for d in ctx.shape(scale)) and shared <= 1
        by_row = rank == 2 and shared == 1 and axis == 0
        by_block = shared == rank and axis == rank - 1 and block and block % GROUP == 0
        if rank < 2 or static_int(ctx.shape(source)[-1]) is None or not (single or by_row or by_block):
            return None
        return cls(source, scale, block if by_block else 0)


def product(ctx: Emitter, left: relax.Var, weight: FourBits, quantized: Bytes | None = None) -> relax.Var:
    """[..., K] times the matrix.

    Args:
        ctx: the emitter.
        left: the other factor; its bytes, if it is quantized.
        weight: the matrix.
        quantized: how.
    """
    if left.ty.ndim == 1:
        row = ctx.emit(relax.op.expand_dims(left, [0]))
        return ctx.emit(relax.op.squeeze(product(ctx, row, weight), [-2]))
    what = "columns of the left and rows of the right factor"
    *lead, depth = (prim(d) for d in left.ty.shape.values)
    if static_int(depth) is None:
        left = retyped(ctx, left, [*lead, prim(weight.depth)], what)
    else:
        require(ctx, depth, weight.depth, what)
    operands = _operands(ctx, weight)
    if quantized is not None:
        operands["left"] = ctx.x(quantized.scale)
    names, tensors = list(operands), list(operands.values())
    block = None if quantized is None else quantized.block
    return ctx.te(_expression, left, names, tensors, weight, block, primfunc_name_hint="matmul")


def rows(ctx: Emitter, table: FourBits, indices: relax.Var, dtype: str) -> relax.Var:
    """The rows of a table that indices name; of a matrix that lies as [N, K], the table's rows are the columns.

    A table that is a factor of a product, too, is laid out once for both.

    Args:
        ctx: the emitter.
        table: [R, K].
        indices: any shape; from 0 to R - 1.
        dtype: of the result.
    """
    operands = _operands(ctx, table)
    names = list(operands)

    def build(at: te.Tensor, tensors: list[te.Tensor]) -> te.Tensor:
        given = dict(zip(names, tensors, strict=True))

        def element(*index: tirx.Expr) -> tirx.Expr:
            *where, k = index
            return tirx.Cast(dtype, _number(given, table, k, prim(at(*where))))

        return te.compute((*at.shape, prim(table.depth)), element, name="rows")

    return ctx.te(build, indices, list(operands.values()), primfunc_name_hint="gather")


def _operands(ctx: Emitter, weight: FourBits) -> dict[str, relax.Var]:
    """The words, the scales, the zero points and the codebook, as the kernel takes them."""
    width = ctx.tiles.four_bit_width(weight.columns)
    panels = -(-weight.columns // width)
    signed: dict[str, Any] = {"signed": weight.signed}
    lie: dict[str, Any] = {"width": width, "transposed": weight.transposed}
    along = {**lie, "transposed": weight.turned, "blocks": weight.blocks, "columns": weight.columns}
    shape = [panels, weight.blocks, width]
    words = [panels, -(-weight.depth // GROUP), width]
    operands = {"words": ctx.weight(weight.codes, "nibble_panels", words, "int32", **lie, **signed)}
    if weight.computed:
        operands["scale"] = ctx.te(_laid_out, ctx.x(weight.scale), weight, shape, primfunc_name_hint="scales")
    else:
        operands["scale"] = ctx.weight(weight.scale, "block_panels", shape, **along)
    if weight.zero is not None:
        operands["zero"] = ctx.weight(weight.zero, "zero_panels", shape, "uint8", **along, **signed)
    if weight.codebook is not None:
        operands["codebook"] = ctx.weight(weight.codebook)
    return operands


def _laid_out(scale: te.Tensor, weight: FourBits, shape: list[int]) -> te.Tensor:
    """Computed scales in panels, padded with zeros."""

    def element(panel: tirx.Expr, block: tirx.Expr, place: tirx.Expr) -> tirx.Expr:
        column = panel * shape[-1] + place
        places = [(block, weight.blocks), (column, weight.columns)]
        own = iter([i for i, size in places[:: -1 if weight.turned else 1] if size > 1])
        at = [prim(0) if static_int(d) == 1 else next(own) for d in scale.shape]
        if weight.columns == shape[0] * shape[-1]:
            return scale(*at)
        return tirx.if_then_else(column < weight.columns, scale(*at), tirx.const(0, str(scale.dtype)))

    return te.compute([prim(d) for d in shape], element, name="scales")


def _expression(
    x: te.Tensor, names: list[str], tensors: list[te.Tensor], weight: FourBits, block: int | None
) -> te.Tensor:
    """The product.

    Args:
        x: [..., K].
        names: of the tensors of `_operands`, and `left` for the scales of a quantized `x`.
        tensors: these.
        weight: the matrix.
        block: that of the quantized `x`; `None` if it is not.
    """
    k = te.reduce_axis((0, weight.depth), "k")
    given = dict(zip(names, tensors, strict=True))
    dtype = str(x.dtype) if block is None else _WIDE

    def left(*lead: tirx.Expr) -> tirx.Expr:
        value = x[(*lead, k)]
        if block is None:
            return value
        scale = given["left"]
        single = len(scale.shape) <= 1 and all(static_int(d) == 1 for d in scale.shape)
        at = [prim(0)] * len(scale.shape) if single else [*lead, tirx.floordiv(k, block)] if block else lead[:1]
        return tirx.Cast(_WIDE, value) * scale(*at)

    def element(*index: tirx.Expr) -> tirx.Expr:
        *lead, column = index
        return te.sum(left(*lead) * tirx.Cast(dtype, _number(given, weight, k, column)), axis=k)

    attrs = {"tersor.kernel": KERNEL, "tersor.block": weight.block, "tersor.offset": weight.offset, TAIL: 1}
    attrs["tersor.left_block"] = -1 if block is None else block
    return te.compute((*x.shape[:-1], prim(weight.columns)), element, name="matmul", attrs=attrs)


def _number(given: dict[str, te.Tensor], weight: FourBits, k: tirx.Expr, column: tirx.Expr) -> tirx.Expr:
    """An element of the matrix, as float32."""
    width = given["words"].shape[-1]
    panel, place = tirx.floordiv(column, width), tirx.floormod(column, width)
    row, block = tirx.floormod(k, GROUP), tirx.floordiv(k, weight.block)
    at = tirx.Cast("int32", tirx.floormod(row, 4) * 8 + tirx.floordiv(row, 4) * 4)
    code = tirx.bitwise_and(tirx.shift_right(given["words"][panel, tirx.floordiv(k, GROUP), place], at), _int(15))
    if weight.codebook is not None:
        number = given["codebook"][prim(code)]
    else:
        zero = given.get("zero")
        offset = _int(weight.offset) if zero is None else tirx.Cast("int32", zero[panel, block, place])
        number = tirx.Cast(_WIDE, code - offset)
    return number * tirx.Cast(_WIDE, given["scale"][panel, block, place])


def _int(value: int) -> tirx.Expr:
    return tirx.const(value, "int32")
