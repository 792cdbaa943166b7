"""Attention of bytes: queries, keys and values as their QuantizeLinear left them.

    Attention(DequantizeLinear(q), DequantizeLinear(k), DequantizeLinear(v))

reads the bytes themselves where the target has a kernel for them. The products with keys are exact integer sums, as
`backends.relax.byte_products` has them: with zero points zq and zk, and zq in the middle of the bytes, where it is 0
for bytes with a sign,

    sum over d of (q - zq) (k - zk)  =  sum over d of (q - 128) k  -  zk sum over d of (q - 128).

The weights of the values, which are e**(score - the largest score) before they are divided by their sum, are rounded to
255 steps in the kernel, as the bfloat16 kernel rounds them to bfloat16; their sum is that of the rounded ones. That is
finer than rounding the quotients to 1/255: with 512 keys alike those would all be 0 or 1 of 255.
"""

from __future__ import annotations

import onnx_ir as ir

from backends.relax.attributes import get_float, get_int
from backends.relax.emitter import Emitter
from backends.relax.quantized import OFFSET, Activation, activation, dequantizes
from backends.relax.values import static_int

__all__ = ["FEWEST_QUERIES", "attended_bytes"]

FEWEST_QUERIES = 16
"""With fewer of them reading keys and values is all the work, and the float32 kernel for a few queries does that."""
_QUAD = 4


def attended_bytes(ctx: Emitter, node: ir.Node) -> tuple[Activation, Activation, Activation] | None:
    """The bytes that an Attention's queries, keys and values stand for.

    Args:
        ctx: the emitter.
        node: an Attention.

    Returns:
        `None` unless all three are bytes with one scale each, those of queries and values symmetric; the node has no
        cache and gives nothing but its result; the softmax is in float32, of scores without a cap; and the target has
        a kernel for as many queries of this size.
    """
    query, key, value = node.inputs[:3]
    if (
        any(x is not None for x in node.inputs[4:])
        or any(output.name for output in node.outputs[1:])
        or not ctx.tiles.attends("uint8")
    ):
        return None
    if get_int(node, "softmax_precision", 0) not in (0, ir.DataType.FLOAT) or get_float(node, "softcap", 0.0):
        return None
    if any(dequantizes(ctx, x) is None for x in (query, key, value)) or not _sizes_fit(ctx, node, query):
        return None
    q, k, v = (activation(ctx, x) for x in (query, key, value))
    if q is None or k is None or v is None or any(x.scale is None for x in (q, k, v)):
        return None
    return (q, k, v) if q.zero == v.zero == OFFSET else None


def _sizes_fit(ctx: Emitter, node: ir.Node, query: ir.Value | None) -> bool:
    """Whether rows are many, or how many is not known, and a head of queries is a number of quads."""
    shape = ctx.shape(query)
    rows, width = static_int(shape[-2]), static_int(shape[-1])
    if width is None or (rows is not None and rows < FEWEST_QUERIES):
        return False
    heads = get_int(node, "q_num_heads", 0) if len(shape) == 3 else 1
    return heads > 0 and width % (heads * _QUAD) == 0
