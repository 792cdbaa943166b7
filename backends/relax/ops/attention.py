"""The standard `Attention` operator (opset 23 and later).

Shape letters: B batch, H query heads, K key and value heads, S query positions, P positions of the past,
T = P + new key positions, D head size, E value head size, M positions that the mask covers.

`plan_attention` brings every variant (3-D and 4-D inputs, grouped heads, a cache) to one `AttentionSpec`;
`emit_attention` expresses it as one kernel, which the backend runs without a matrix of scores, or where that does not
apply, as two matrix products around one kernel of row stages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import onnx_ir as ir
from tvm import relax, sym, te, tirx

from backends.relax.attention import (
    AttentionSpec,
    Heads,
    biased,
    capped,
    emit_one_pass,
    heads_first,
    in_one_pass,
    sizes_of,
)
from backends.relax.attributes import get_float, get_int
from backends.relax.byte_attention import attended_bytes
from backends.relax.checks import require, require_same_shape
from backends.relax.contraction import product
from backends.relax.emitter import Emitter
from backends.relax.forms import dtype_name, is_known
from backends.relax.known import same
from backends.relax.registry import emits
from backends.relax.scalars import cast, wider
from backends.relax.stages import reduce_rows, row_of, table
from backends.relax.values import Refused, Result, prim, static_int

_RAW, _CAPPED, _BIASED, _PROBABILITIES = range(4)
"""What `qk_matmul_output_mode` asks for."""


@emits("Attention")
def attention(ctx: Emitter, node: ir.Node) -> Sequence[Result | None]:
    """Scaled dot product attention; optionally the grown cache and the scores."""
    spec = plan_attention(ctx, node)
    y, scores = emit_attention(ctx, spec)
    wanted = [bool(output.name) for output in node.outputs]
    grown = [heads_first(ctx, x) if any(wanted[i : i + 1]) else None for i, x in ((1, spec.k), (2, spec.v))]
    return [y, *grown, scores][: len(node.outputs)]


@emits("FlexAttention", domain="ai.onnx.preview")
def flex_attention(ctx: Emitter, node: ir.Node) -> Result:
    """Attention without masks; subgraphs that change the scores are not expressed."""
    changes = [name for name in ("score_mod", "prob_mod") if name in node.attributes]
    if changes:
        raise Refused(f"a {changes[0]} subgraph")
    return emit_attention(ctx, plan_attention(ctx, node))[0]


def plan_attention(ctx: Emitter, node: ir.Node) -> AttentionSpec:
    """Bring a node's inputs and attributes to normal form.

    Raises:
        Refused: the head counts do not divide, or a size that must be known is not.
    """
    query, key, value, mask, past_key, past_value, valid = [*node.inputs, *[None] * 4][:7]
    packed = ctx.rank(query) == 3
    coded = attended_bytes(ctx, node)
    numbers = [get_int(node, name, 0) if packed else None for name in ("q_num_heads", "kv_num_heads", "kv_num_heads")]
    if coded is None:
        q, k, v = (_heads(ctx, x, count) for x, count in zip((query, key, value), numbers, strict=True))
    else:
        q, k, v = (
            replace(_heads(ctx, x.value, count), scale=x.scale or 1.0, zero=x.zero)
            for x, count in zip(coded, numbers, strict=True)
        )
    past = prim(0)
    if past_key is not None and past_value is not None:
        past = ctx.shape(past_key)[2]
        total = ctx.derived(past + sizes_of(k)[2])
        k, v = (
            Heads(ctx.te(_after, ctx.x(old), heads_first(ctx, new), total), rows_first=False)
            for old, new in ((past_key, k), (past_value, v))
        )
    _check_heads(q, k)
    _check_sizes(ctx, q, k, v, mask)
    if not ctx.dtype(query) == ctx.dtype(key) == ctx.dtype(value):
        raise Refused("query, key and value differ in type")
    head_size = static_int(sizes_of(q)[3])
    scale = get_float(node, "scale", 0.0)
    if scale == 0.0 and head_size is None:
        raise Refused("the head size is symbolic")
    precision = get_int(node, "softmax_precision", 0)
    wanted = len(node.outputs) > 3 and bool(node.outputs[3].name)
    return AttentionSpec(
        q=q,
        k=k,
        v=v,
        dtype=ctx.dtype(query),
        mask=None if mask is None else _mask(ctx, mask),
        valid=None if valid is None else ctx.x(valid),
        past=past,
        scale=(scale or 1.0 / math.sqrt(head_size or 1)) * q.scale * k.scale,
        softcap=get_float(node, "softcap", 0.0),
        causal=get_int(node, "is_causal", 0) == 1,
        left=get_int(node, "left_window_size", -1),
        right=get_int(node, "right_window_size", -1),
        softmax_dtype=dtype_name(ir.DataType(precision)) if precision else ctx.dtype(query),
        packed=packed,
        output=get_int(node, "qk_matmul_output_mode", 0) if wanted else None,
    )


def emit_attention(ctx: Emitter, spec: AttentionSpec) -> tuple[relax.Expr, relax.Expr | None]:
    """The attention of a spec, and the intermediate scores that it asks for."""
    if in_one_pass(ctx, spec):
        return emit_one_pass(ctx, spec), None
    batch, heads, rows, size = sizes_of(spec.q)
    _, key_heads, keys, value_size = sizes_of(spec.v)
    dtype = spec.q.dtype
    wide = wider(dtype)
    grouped_rows = ctx.derived(tirx.floordiv(heads, key_heads) * rows)
    q, k, v = (heads_first(ctx, x) for x in (spec.q, spec.k, spec.v))
    q = _reshaped(ctx, q, [batch, key_heads, grouped_rows, size])
    q, k, v = (x if wide == dtype else ctx.emit(relax.op.astype(x, wide)) for x in (q, k, v))
    products = product(ctx, q, ctx.emit(relax.op.permute_dims(k, [0, 1, 3, 2])), keys, None)
    scores = _reshaped(ctx, products, [batch, heads, rows, keys])
    operands = spec.operands
    probabilities = ctx.te(lambda s, past, *rest: _probabilities(spec, s, past, *rest), scores, spec.past, *operands)
    grouped = _reshaped(ctx, probabilities, [batch, key_heads, grouped_rows, keys])
    y = _reshaped(ctx, product(ctx, grouped, v, value_size, None), [batch, heads, rows, value_size])
    if spec.packed:
        y = _reshaped(ctx, ctx.emit(relax.op.permute_dims(y, [0, 2, 1, 3])), [batch, rows, heads * value_size])
    y = relax.op.astype(y, dtype) if wide != dtype else y
    if spec.output is None:
        return y, None
    if spec.output == _PROBABILITIES:
        return y, probabilities if wide == dtype else relax.op.astype(probabilities, dtype)
    stage = spec.output
    return y, ctx.te(lambda s, past, *rest: _intermediate(spec, stage, s, past, *rest), scores, spec.past, *operands)


def _probabilities(spec: AttentionSpec, scores: te.Tensor, past: tirx.Expr, *operands: te.Tensor) -> te.Tensor:
    """Softmax of the masked scores: [B, H, S, T]; a row that sees no key is zero."""
    dtype = wider(spec.q.dtype)
    wide = wider(spec.softmax_dtype)
    keys = {3}
    masked = te.compute(scores.shape, lambda *i: cast(biased(spec, scores, past, operands, i), wide), name="masked")
    largest = reduce_rows(scores.shape, keys, masked, te.max, "largest")
    nothing, zero = tirx.const(float("-inf"), wide), tirx.const(0, wide)
    finite = table(largest.shape, lambda *i: tirx.Select(tirx.EQ(largest(*i), nothing), zero, largest(*i)), "finite")
    powers = te.compute(scores.shape, lambda *i: tirx.exp(masked(*i) - finite(*row_of(i, keys))), name="powers")
    total = reduce_rows(scores.shape, keys, powers, te.sum, "total")
    share = table(
        total.shape,
        lambda *i: tirx.Select(tirx.EQ(total(*i), zero), zero, tirx.const(1, wide) / total(*i)),
        "share",
    )
    return te.compute(scores.shape, lambda *i: cast(powers(*i) * share(*row_of(i, keys)), dtype), name="probabilities")


def _intermediate(
    spec: AttentionSpec, stage: int, scores: te.Tensor, past: tirx.Expr, *operands: te.Tensor
) -> te.Tensor:
    def element(*i: tirx.Expr) -> tirx.Expr:
        if stage == _BIASED:
            return biased(spec, scores, past, operands, i)
        scaled = scores(*i) * tirx.const(spec.scale, scores.dtype)
        return capped(scaled, spec.softcap) if stage == _CAPPED else scaled

    dtype = spec.q.dtype
    return te.compute(scores.shape, lambda *i: cast(element(*i), dtype), name="scores")


def _after(old: te.Tensor, new: te.Tensor, total: tirx.Expr) -> te.Tensor:
    """The new positions behind the old ones, on the axis before the last."""
    *outer, past, size = old.shape

    def element(*i: tirx.Expr) -> tirx.Expr:
        *lead, t, d = i
        return tirx.if_then_else(t < past, old(*lead, t, d), new(*lead, t - past, d))

    return te.compute((*outer, total, size), element, name="cache")


def _heads(ctx: Emitter, value: ir.Value | None, heads: int | None) -> Heads:
    """[B, S, H * D] as B x H heads; [B, H, S, D], of which `heads` is `None`, as it is."""
    if heads is None:
        return Heads(ctx.x(value), rows_first=False)
    if heads < 1:
        raise Refused("three-dimensional inputs need q_num_heads and kv_num_heads")
    batch, rows, hidden = ctx.shape(value)
    width = static_int(hidden)
    if width is None or width % heads != 0:
        raise Refused(f"{hidden} hidden units do not divide into {heads} heads")
    split = relax.op.reshape(ctx.x(value), relax.ShapeExpr([batch, rows, prim(heads), prim(width // heads)]))
    return Heads(ctx.emit(split), rows_first=True)


def _mask(ctx: Emitter, value: ir.Value) -> relax.Var:
    value = _unstretched(ctx, value)
    missing = 4 - ctx.rank(value)
    if missing == 0:
        return ctx.x(value)
    return ctx.emit(relax.op.reshape(ctx.x(value), relax.ShapeExpr([prim(1)] * missing + ctx.shape(value))))


def _unstretched(ctx: Emitter, mask: ir.Value) -> ir.Value:
    """A mask before Expand repeated its rows, heads or batches: the kernel reads them again, and none are stored."""
    node = mask.producer()
    if node is None or node.op_type != "Expand" or node.domain not in ("", "ai.onnx"):
        return mask
    source = node.inputs[0]
    if source is None or not is_known(ctx, source) or ctx.rank(source) == 0:
        return mask
    return source if same(ctx, ctx.shape(source)[-1], ctx.shape(mask)[-1]) else mask


def _check_heads(q: Heads, k: Heads) -> None:
    heads, key_heads = static_int(sizes_of(q)[1]), static_int(sizes_of(k)[1])
    if heads is None or key_heads is None or heads % key_heads != 0:
        raise Refused(f"{heads} query heads over {key_heads} key heads")


def _check_sizes(ctx: Emitter, q: Heads, k: Heads, v: Heads, mask: ir.Value | None) -> None:
    batch, heads, rows, size = sizes_of(q)
    key_batch, key_heads, keys, key_size = sizes_of(k)
    require_same_shape(ctx, [key_batch, key_size], [batch, size], "batch and head sizes of query and key")
    require_same_shape(ctx, sizes_of(v)[:3], [key_batch, key_heads, keys], "sizes of key and value")
    if mask is not None:
        for own, other in zip(ctx.shape(mask)[-2::-1], (rows, heads, batch), strict=False):
            if static_int(own) != 1:
                require(ctx, own, other, "sizes of the mask and of what it masks")


def _reshaped(ctx: Emitter, x: relax.Var, shape: Sequence[tirx.Expr]) -> relax.Var:
    same = sym.Analyzer()
    own = [prim(d) for d in x.ty.shape.values]
    if len(own) == len(shape) and all(same.can_prove_equal(a, b) for a, b in zip(own, shape, strict=True)):
        return x
    return ctx.emit(relax.op.reshape(x, relax.ShapeExpr(list(shape))))
