"""The standard `Attention` operator (opset 23 and later).

Shape letters: B batch, H query heads, K key and value heads, S query positions, P positions of the past,
T = P + new key positions, D head size, E value head size, M positions that the mask covers.

`plan_attention` brings every variant (3-D and 4-D inputs, grouped heads, a cache) to one `AttentionSpec`;
`emit_attention` expresses it as two matrix products around one kernel of row stages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir
from tvm import relax, sym, te, tirx

from backends.relax.attributes import get_float, get_int
from backends.relax.contraction import product
from backends.relax.emitter import Emitter
from backends.relax.forms import dtype_name
from backends.relax.registry import emits
from backends.relax.scalars import cast, wider
from backends.relax.stages import broadcast_index, reduce_rows, row_of, table
from backends.relax.values import Refused, Result, prim, static_int

_RAW, _CAPPED, _BIASED, _PROBABILITIES = range(4)
"""What `qk_matmul_output_mode` asks for."""


@dataclass(frozen=True)
class AttentionSpec:
    """One attention, its inputs in normal form.

    Attributes:
        q: [B, H, S, D].
        k: [B, K, T, D], the past in front.
        v: [B, K, T, E].
        mask: a bool ("attend") or additive mask, [B|1, H|1, S|1, M|1], or `None`. Positions from M on are not attended.
        valid: [B] int64, how many key positions count, or `None`.
        past: P; the row that sees key j at the diagonal is j - P.
        scale: factor of the products.
        softcap: 0, or where the products are bent to.
        causal: row i sees keys up to i + P (up to i + valid - S where `valid` is given).
        left: how many keys before the diagonal a row sees; -1 for all.
        right: how many keys after it; -1 for all.
        softmax_dtype: the type in which the softmax is computed.
        packed: whether the result is [B, S, H * E] rather than [B, H, S, E].
        output: which of the intermediate scores is wanted, or `None`.
    """

    q: relax.Var
    k: relax.Var
    v: relax.Var
    mask: relax.Var | None
    valid: relax.Var | None
    past: tirx.Expr
    scale: float
    softcap: float
    causal: bool
    left: int
    right: int
    softmax_dtype: str
    packed: bool
    output: int | None


@emits("Attention")
def attention(ctx: Emitter, node: ir.Node) -> Sequence[Result | None]:
    """Scaled dot product attention; optionally the grown cache and the scores."""
    spec = plan_attention(ctx, node)
    y, scores = emit_attention(ctx, spec)
    return [y, spec.k, spec.v, scores][: len(node.outputs)]


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
    q, k, v = (
        _heads(ctx, x, get_int(node, attribute, 0)) if packed else ctx.x(x)
        for x, attribute in ((query, "q_num_heads"), (key, "kv_num_heads"), (value, "kv_num_heads"))
    )
    past = prim(0)
    if past_key is not None and past_value is not None:
        past = ctx.shape(past_key)[2]
        total = ctx.derived(past + _sizes(k)[2])
        k, v = (ctx.te(_after, ctx.x(old), new, total) for old, new in ((past_key, k), (past_value, v)))
    _check_heads(q, k)
    if not ctx.dtype(query) == ctx.dtype(key) == ctx.dtype(value):
        raise Refused("query, key and value differ in type")
    head_size = static_int(_sizes(q)[3])
    scale = get_float(node, "scale", 0.0)
    if scale == 0.0 and head_size is None:
        raise Refused("the head size is symbolic")
    precision = get_int(node, "softmax_precision", 0)
    wanted = len(node.outputs) > 3 and bool(node.outputs[3].name)
    return AttentionSpec(
        q=q,
        k=k,
        v=v,
        mask=None if mask is None else _mask(ctx, mask),
        valid=None if valid is None else ctx.x(valid),
        past=past,
        scale=scale or 1.0 / math.sqrt(head_size or 1),
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
    batch, heads, rows, size = _sizes(spec.q)
    _, key_heads, keys, value_size = _sizes(spec.v)
    dtype = str(spec.q.ty.dtype)
    wide = wider(dtype)
    grouped_rows = ctx.derived(tirx.floordiv(heads, key_heads) * rows)
    q = _reshaped(ctx, spec.q, [batch, key_heads, grouped_rows, size])
    q, k, v = (x if wide == dtype else ctx.emit(relax.op.astype(x, wide)) for x in (q, spec.k, spec.v))
    products = product(ctx, q, ctx.emit(relax.op.permute_dims(k, [0, 1, 3, 2])), keys, None)
    scores = _reshaped(ctx, products, [batch, heads, rows, keys])
    operands = [x for x in (spec.mask, spec.valid) if x is not None]
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
    dtype = wider(str(spec.q.ty.dtype))
    wide = wider(spec.softmax_dtype)
    keys = {3}
    masked = te.compute(scores.shape, lambda *i: cast(_biased(spec, scores, past, operands, i), wide), name="masked")
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
            return _biased(spec, scores, past, operands, i)
        scaled = scores(*i) * tirx.const(spec.scale, scores.dtype)
        return _capped(scaled, spec.softcap) if stage == _CAPPED else scaled

    dtype = str(spec.q.ty.dtype)
    return te.compute(scores.shape, lambda *i: cast(element(*i), dtype), name="scores")


def _capped(score: tirx.Expr, softcap: float) -> tirx.Expr:
    if softcap == 0.0:
        return score
    cap = tirx.const(softcap, str(score.expr_ty()))
    return cap * tirx.tanh(score / cap)


def _biased(
    spec: AttentionSpec,
    scores: te.Tensor,
    past: tirx.Expr,
    operands: Sequence[te.Tensor],
    index: Sequence[tirx.Expr],
) -> tirx.Expr:
    """A score after scaling, bending and masking; minus infinity where the key is not seen."""
    b, _, row, key = index
    rest = iter(operands)
    mask = next(rest) if spec.mask is not None else None
    valid = next(rest) if spec.valid is not None else None
    score = _capped(scores(*index) * tirx.const(spec.scale, scores.dtype), spec.softcap)
    seen: list[tirx.Expr] = []
    if mask is not None:
        score, covered = _with_mask(score, mask, index, scores.shape[3])
        seen += covered
    diagonal = row + (valid(b) - scores.shape[2] if valid is not None else past)
    if spec.causal:
        seen.append(key <= diagonal)
    if spec.left >= 0:
        seen.append(key >= diagonal - spec.left)
    if spec.right >= 0:
        seen.append(key <= diagonal + spec.right)
    if valid is not None:
        seen.append(key < valid(b))
    return tirx.Select(tirx.all(*seen), score, tirx.const(float("-inf"), scores.dtype)) if seen else score


def _with_mask(
    score: tirx.Expr, mask: te.Tensor, index: Sequence[tirx.Expr], keys: tirx.Expr
) -> tuple[tirx.Expr, list[tirx.Expr]]:
    """The score with an additive mask, or the conditions that a boolean one sets."""
    covered = mask.shape[3]
    short = not sym.Analyzer().can_prove_equal(covered, keys)
    at = (*broadcast_index(mask.shape[:3], index[:3]), index[3])
    if mask.dtype == "bool":
        attend = mask(*at)
        return score, [tirx.if_then_else(index[3] < covered, attend, tirx.const(False, "bool")) if short else attend]
    bias = cast(mask(*at), str(score.expr_ty()))
    if not short:
        return score + bias, []
    nothing = tirx.const(float("-inf"), str(score.expr_ty()))
    return score + tirx.if_then_else(index[3] < covered, bias, nothing), []


def _after(old: te.Tensor, new: te.Tensor, total: tirx.Expr) -> te.Tensor:
    """The new positions behind the old ones, on the axis before the last."""
    *outer, past, size = old.shape

    def element(*i: tirx.Expr) -> tirx.Expr:
        *lead, t, d = i
        return tirx.if_then_else(t < past, old(*lead, t, d), new(*lead, t - past, d))

    return te.compute((*outer, total, size), element, name="cache")


def _heads(ctx: Emitter, value: ir.Value | None, heads: int) -> relax.Var:
    """[B, S, H * D] as [B, H, S, D]."""
    if heads < 1:
        raise Refused("three-dimensional inputs need q_num_heads and kv_num_heads")
    batch, rows, hidden = ctx.shape(value)
    width = static_int(hidden)
    if width is None or width % heads != 0:
        raise Refused(f"{hidden} hidden units do not divide into {heads} heads")
    split = relax.op.reshape(ctx.x(value), relax.ShapeExpr([batch, rows, prim(heads), prim(width // heads)]))
    return ctx.emit(relax.op.permute_dims(split, [0, 2, 1, 3]))


def _mask(ctx: Emitter, value: ir.Value) -> relax.Var:
    missing = 4 - ctx.rank(value)
    if missing == 0:
        return ctx.x(value)
    return ctx.emit(relax.op.reshape(ctx.x(value), relax.ShapeExpr([prim(1)] * missing + ctx.shape(value))))


def _check_heads(q: relax.Var, k: relax.Var) -> None:
    heads, key_heads = static_int(_sizes(q)[1]), static_int(_sizes(k)[1])
    if heads is None or key_heads is None or heads % key_heads != 0:
        raise Refused(f"{heads} query heads over {key_heads} key heads")


def _reshaped(ctx: Emitter, x: relax.Var, shape: Sequence[tirx.Expr]) -> relax.Var:
    same = sym.Analyzer()
    own = _sizes(x)
    if len(own) == len(shape) and all(same.can_prove_equal(a, b) for a, b in zip(own, shape, strict=True)):
        return x
    return ctx.emit(relax.op.reshape(x, relax.ShapeExpr(list(shape))))


def _sizes(x: relax.Var) -> list[tirx.Expr]:
    return [prim(d) for d in x.ty.shape.values]
