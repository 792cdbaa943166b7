"""RotaryEmbedding: rotate pairs of a head's elements by an angle that depends on the position.

The angles are given by their cosines and sines, one for each pair of elements; what is not rotated is copied. Shape
letters: B batch, S positions.
"""

from __future__ import annotations

import onnx_ir as ir
from tvm import relax, te, tirx

from backends.relax.attributes import get_int
from backends.relax.checks import require
from backends.relax.emitter import Emitter
from backends.relax.indices import checked_places
from backends.relax.registry import emits
from backends.relax.scalars import cast, wider
from backends.relax.values import Refused, Result, prim, static_int


@emits("RotaryEmbedding")
def rotary_embedding(ctx: Emitter, node: ir.Node) -> Result:
    """Rotate the first elements of each head; pairs are neighbours (interleaved) or halves apart."""
    x, cos, sin = node.inputs[:3]
    positions = node.inputs[3] if len(node.inputs) > 3 else None
    packed = ctx.rank(x) == 3
    heads, head_size = _head_split(ctx, x, get_int(node, "num_heads", 0))
    rotated = get_int(node, "rotary_embedding_dim", 0) or head_size
    interleaved = get_int(node, "interleaved", 0) == 1

    for table in (cos, sin):
        require(ctx, ctx.shape(table)[-1], rotated // 2, "the table's columns and the pairs that are rotated")

    def build(x_: te.Tensor, cos_: te.Tensor, sin_: te.Tensor, *positions_BS: te.Tensor) -> te.Tensor:
        def element(*index: tirx.Expr) -> tirx.Expr:
            b, s, d = (index[0], index[1], index[3]) if packed else (index[0], index[2], index[3])
            pair, partner, sign = _pair(d, rotated, interleaved=interleaved)
            angle = (prim(positions_BS[0](b, s)), pair) if positions_BS else (b, s, pair)
            return _rotated(x_, index, partner, sign, cos_(*angle), sin_(*angle))

        def whole(*index: tirx.Expr) -> tirx.Expr:
            if rotated == head_size:
                return element(*index)
            return tirx.if_then_else(index[3] < rotated, element(*index), x_(*index))

        return te.compute(x_.shape, whole, name="rotary")

    data = ctx.x(x)
    if packed:
        batch, length = ctx.shape(x)[:2]
        data = ctx.emit(relax.op.reshape(data, relax.ShapeExpr([batch, length, prim(heads), prim(head_size)])))
    operands = [ctx.x(cos), ctx.x(sin)]
    if positions is not None:
        operands.append(checked_places(ctx, positions, [ctx.shape(cos)[0]], from_end=False))
    y = ctx.te(build, data, *operands)
    return relax.op.reshape(y, relax.ShapeExpr(ctx.shape(x))) if packed else y


def _head_split(ctx: Emitter, x: ir.Value | None, heads: int) -> tuple[int, int]:
    shape = ctx.shape(x)
    last = static_int(shape[-1])
    if last is None:
        raise Refused("the head size is symbolic")
    if len(shape) == 4:
        return static_int(shape[1]) or 0, last
    if heads < 1 or last % heads != 0:
        raise Refused(f"{last} hidden units do not divide into {heads} heads")
    return heads, last // heads


def _pair(d: tirx.Expr, rotated: int, *, interleaved: bool) -> tuple[tirx.Expr, tirx.Expr, tirx.Expr]:
    """Of the element d of a head: the pair's number, the other element of the pair, whether d is its first."""
    half = rotated // 2
    if interleaved:
        first = tirx.EQ(tirx.floormod(d, prim(2)), prim(0))
        return tirx.floordiv(d, prim(2)), tirx.Select(first, d + 1, d - 1), first
    first = d < half
    return tirx.Select(first, d, d - half), tirx.Select(first, d + half, d - half), first


def _rotated(
    x: te.Tensor, index: tuple[tirx.Expr, ...], partner: tirx.Expr, first: tirx.Expr, cos: tirx.Expr, sin: tirx.Expr
) -> tirx.Expr:
    wide = wider(x.dtype)
    own, other = cast(x(*index), wide), cast(x(*index[:3], partner), wide)
    turned = own * cast(cos, wide)
    shift = other * cast(sin, wide)
    return cast(tirx.Select(first, turned - shift, turned + shift), x.dtype)
