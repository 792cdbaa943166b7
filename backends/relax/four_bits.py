"""Weights of 4 bits: how a graph says what they are. They stay in 4 bits; kernels unpack them in registers.

    DequantizeLinear(codes, scale, zero point) -> MatMul or Gemm
    Reshape(Mul(Reshape(Gather(codebook, Cast(codes))), scale)) -> MatMul or Gemm

Codes are int4 or uint4, [K, N] or [N, K], with a scale (and zero point) for each block of K, for each column, or one
for all. In the second form (NF4) they are indices of 16 numbers, and the scales may be computed. The nodes that unpack
such a weight are emitted only if somebody reads their result as a tensor (`Emitter.deferred`), so that no wide copy of
it is made. What the graph rounds on the way from a code to a factor, to float16 say, is not rounded here: the factor is
(code - zero point) * scale in float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from backends.relax.attributes import get_int, get_ints
from backends.relax.nibbles import GROUP

if TYPE_CHECKING:
    from backends.relax.emitter import Emitter

__all__ = ["FourBits", "unpacks"]

_CODES = (ir.DataType.INT4, ir.DataType.UINT4)
_SCALES = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_ON_THE_WAY = ("DequantizeLinear", "Cast", "Gather", "Reshape", "Mul", "Transpose")
_MIDDLE = 8


@dataclass(frozen=True)
class FourBits:
    """A matrix of 4-bit codes.

    Attributes:
        codes: the initializer.
        scale: another; or a computed value with as many elements, [B, N] or [N, B] but for axes of size 1.
        zero: another, or `None`.
        codebook: the initializer with the 16 numbers that the codes stand for; `None` if they stand for themselves.
        transposed: whether it lies as [N, K].
        depth: K.
        columns: N.
        block: how many neighbours along K share a scale; K where all do.
        computed: whether the scale is a computed value.
        turned: whether the scale, without its axes of size 1, lies as [N, B].
    """

    codes: ir.Value
    scale: ir.Value
    zero: ir.Value | None
    codebook: ir.Value | None
    transposed: bool
    depth: int
    columns: int
    block: int
    computed: bool = False
    turned: bool = False

    @classmethod
    def of(cls, ctx: Emitter, value: ir.Value | None, *, transposed: bool = False) -> FourBits | None:
        """The matrix that a value is (or its transpose, if `transposed`); `None` if it is not one of 4 bits.

        Args:
            ctx: the emitter.
            value: [K, N], or [N, K] if `transposed`.
            transposed: see there.
        """
        value, transposed = _before(value, transposed)
        return _dequantized(ctx, value, transposed) or _looked_up(ctx, value, transposed)

    @property
    def signed(self) -> bool:
        """Whether codes are int4."""
        return self.codes.dtype == ir.DataType.INT4

    @property
    def offset(self) -> int:
        """The packed code that stands for zero, unless there are zero points."""
        return _MIDDLE if self.signed and self.zero is None else 0

    @property
    def blocks(self) -> int:
        """How many scales a column has."""
        return -(-self.depth // self.block)


def unpacks(ctx: Emitter, node: ir.Node) -> bool:
    """Whether a node makes a wide tensor of 4-bit codes that its readers may do without, or is on the way to them."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in _ON_THE_WAY or not node.inputs:
        return False
    result, source = node.outputs[0], node.inputs[0]
    if result.dtype is None or result.shape is None or not result.shape.is_static():
        return False
    if any(v in ctx.deferred for v in node.inputs if v is not None):
        return True
    if source is None or not ctx.is_weight(source) or node.op_type not in ("DequantizeLinear", "Cast"):
        return False
    for_codes = source.dtype in _SCALES and all(n.op_type == "DequantizeLinear" for n in result.consumers())
    return source.dtype in _CODES or (node.op_type == "Cast" and for_codes)


def _dequantized(ctx: Emitter, value: ir.Value | None, transposed: bool) -> FourBits | None:
    """`DequantizeLinear(codes, scale, zero)`; a scale that is stored in 16 bits may be cast to float32."""
    node = _made_by(value, "DequantizeLinear")
    if node is None:
        return None
    codes, scale, zero = (*node.inputs, None)[:3]
    cast = _made_by(scale, "Cast")
    scale = scale if cast is None else cast.inputs[0]
    if codes is None or scale is None or not all(ctx.is_weight(v) for v in (codes, scale, zero or codes)):
        return None
    if codes.dtype not in _CODES or scale.dtype not in _SCALES or (zero is not None and zero.dtype != codes.dtype):
        return None
    shape, shared = _sizes(codes), _sizes(scale)
    if len(shape) != 2 or (zero is not None and _sizes(zero) != shared):
        return None
    columns, depth = shape if transposed else shape[::-1]
    block = _block(node, shape, shared, along=1 if transposed else 0)
    return (
        None
        if block is None
        else FourBits(codes, scale, zero, None, transposed, depth, columns, block, turned=transposed)
    )


def _looked_up(ctx: Emitter, value: ir.Value | None, transposed: bool) -> FourBits | None:
    """`Reshape(Mul(Reshape(Gather(codebook, Cast(codes))), scale))`: [K, N] in blocks is [K/block, block, N].

    Without blocks, both `Reshape` may be missing, and the scale is one for each column.
    """
    product_node = _made_by(_before_reshape(value), "Mul")
    if value is None or product_node is None:
        return None
    for numbers, scale in (product_node.inputs, product_node.inputs[::-1]):
        gather = _made_by(_before_reshape(numbers), "Gather")
        indices = None if gather is None else _made_by(gather.inputs[1], "Cast")
        if gather is None or indices is None or numbers is None or scale is None or get_int(gather, "axis", 0):
            continue
        codebook, codes = gather.inputs[0], indices.inputs[0]
        if codebook is None or codes is None or not (ctx.is_weight(codebook) and ctx.is_weight(codes)):
            continue
        if codes.dtype != ir.DataType.UINT4 or codebook.dtype != ir.DataType.FLOAT or _sizes(codebook) != (16,):
            continue
        shape = _sizes(codes)
        if len(shape) != 2 or _sizes(value) != shape or None in (numbers.shape, scale.shape):
            continue
        columns, depth = shape if transposed else shape[::-1]
        block = _split(_sizes(numbers), _sizes(scale), columns, depth, transposed=transposed)
        if block is not None and scale.dtype == ir.DataType.FLOAT:
            source, turned = _before(_before_reshape(scale), transposed)
            lie = (columns, depth // block) if turned else (depth // block, columns)
            if ctx.is_weight(scale) or source is None or source.dtype != ir.DataType.FLOAT or _sizes(source) != lie:
                source, turned = scale, transposed
            computed = not ctx.is_weight(source)
            return FourBits(codes, source, None, codebook, transposed, depth, columns, block, computed, turned)
    return None


def _split(
    numbers: tuple[int, ...], scale: tuple[int, ...], columns: int, depth: int, *, transposed: bool
) -> int | None:
    """The block of a matrix that is cut into blocks by its shape; `None` where scales lie otherwise."""
    if len(numbers) == 2:
        alike = ((columns, 1),) if transposed else ((1, columns), (columns,))
        return depth if scale in alike else None
    block = numbers[-1] if transposed else numbers[1]
    blocks = depth // max(block, 1)
    if transposed:
        fits = numbers == (columns, blocks, block) and scale == (columns, blocks, 1)
    else:
        fits = numbers == (blocks, block, columns) and scale == (blocks, 1, columns)
    return block if fits and (block % GROUP == 0 or blocks == 1) else None


def _before(value: ir.Value | None, transposed: bool) -> tuple[ir.Value | None, bool]:
    """What a value is made from by transposing it, and by casting it to float32."""
    node = None if value is None else value.producer()
    if node is None or node.domain not in ("", "ai.onnx"):
        return value, transposed
    if node.op_type == "Transpose" and get_ints(node, "perm", [1, 0]) == [1, 0]:
        return _before(node.inputs[0], not transposed)
    if node.op_type == "Cast" and get_int(node, "to", 0) == ir.DataType.FLOAT:
        return _before(node.inputs[0], transposed)
    return value, transposed


def _made_by(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The node of that operator that gives a value."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op_type and node.domain in ("", "ai.onnx") else None


def _before_reshape(value: ir.Value | None) -> ir.Value | None:
    node = _made_by(value, "Reshape")
    return value if node is None else node.inputs[0]


def _sizes(value: ir.Value) -> tuple[int, ...]:
    """The shape; -1 for what is not known of it."""
    return () if value.shape is None else tuple(d if isinstance(d, int) else -1 for d in value.shape)


def _block(node: ir.Node, shape: tuple[int, ...], shared: tuple[int, ...], *, along: int) -> int | None:
    """How many neighbours of the axis `along` share a scale; `None` where the scales lie otherwise."""
    depth, columns = shape[along], shape[1 - along]
    axis, block = get_int(node, "axis", 1) % 2, get_int(node, "block_size", 0)
    if block:
        blocks = -(-depth // block)
        lie = (columns, blocks) if along else (blocks, columns)
        fits = axis == along and shared == lie and (block % GROUP == 0 or blocks == 1)
        return min(block, depth) if fits else None
    return depth if math.prod(shared) == 1 or (axis != along and shared == (columns,)) else None
