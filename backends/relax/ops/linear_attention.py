"""Operators that carry a state along a sequence: LinearAttention and CausalConvWithState.

Shape letters: B batch, T steps, H query heads, K key and value heads, D key size, E value size; C channels, L length.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir
from tvm import relax, te, tirx

from backends.relax.attributes import get_float, get_int, get_str
from backends.relax.emitter import Emitter
from backends.relax.registry import emits
from backends.relax.scalars import cast, wider
from backends.relax.values import Refused, Result, prim, static_int

_MOST_STEPS = 256
"""A longer sequence would make more code than it is worth."""


@emits("LinearAttention")
def linear_attention(ctx: Emitter, node: ir.Node) -> Sequence[Result | None]:
    """Attention without softmax: a state of key-value products that decays, is corrected, grows, and is read."""
    query, key, value, past, decay, beta = [*node.inputs, *[None] * 3][:6]
    heads, key_heads = get_int(node, "q_num_heads", 0), get_int(node, "kv_num_heads", 0)
    if key_heads < 1 or heads % key_heads != 0:
        raise Refused(f"{heads} query heads over {key_heads} key heads")
    batch, steps_, width = ctx.shape(query)
    steps = static_int(steps_)
    if steps is None or not 0 < steps <= _MOST_STEPS:
        raise Refused(f"a sequence of {steps_} steps (1 to {_MOST_STEPS} are unrolled)")
    key_size, value_size = _head_size(width, heads), _head_size(ctx.shape(value)[2], key_heads)
    dtype = ctx.dtype(query)
    scale = get_float(node, "scale", 0.0) or 1.0 / math.sqrt(key_size)
    state = _first_state(ctx, past, [batch, prim(key_heads), prim(key_size), prim(value_size)], dtype)
    given = [v for v in (query, key, value, decay, beta) if v is not None]
    slices = [_split(ctx, v, steps) for v in given]
    outputs = []

    def advance(state_: te.Tensor, q: te.Tensor, k: te.Tensor, v: te.Tensor, *rest: te.Tensor) -> list[te.Tensor]:
        gate = rest[0] if decay is not None else None
        share = rest[-1] if beta is not None else None
        grown = _next_state(state_, k, v, gate, share)
        return [grown, _read(grown, q, heads, key_heads, scale, dtype)]

    for step in range(steps):
        pair = ctx.te(advance, state, *(parts[step] for parts in slices))
        state = ctx.emit(relax.TupleGetItem(pair, 0))
        outputs.append(ctx.emit(relax.TupleGetItem(pair, 1)))
    y = relax.op.concat(outputs, axis=1) if len(outputs) > 1 else outputs[0]
    return [y, relax.op.astype(state, dtype if past is None else ctx.dtype(past))]


@emits("CausalConvWithState")
def causal_conv_with_state(ctx: Emitter, node: ir.Node) -> Sequence[Result | None]:
    """A depthwise convolution [B, C, L] of what came before; the end of its input is the next call's past."""
    x, w, bias, past = [*node.inputs, None, None][:4]
    batch, channels, length = ctx.shape(x)
    width = ctx.static_shape(w, "the kernel")[2]
    dtype = ctx.dtype(x)
    swish = get_str(node, "activation", "none") in ("silu", "swish")
    before = [ctx.x(past)] if past is not None else [_zeros(ctx, [batch, channels, prim(width - 1)], dtype)]
    padded = ctx.emit(relax.op.concat([*before, ctx.x(x)], axis=2)) if width > 1 else ctx.x(x)

    def build(padded_: te.Tensor, w_: te.Tensor, *bias_: te.Tensor) -> te.Tensor:
        wide = wider(dtype)
        taps = te.reduce_axis((0, width), name="tap")

        def window(b: tirx.Expr, c: tirx.Expr, t: tirx.Expr) -> tirx.Expr:
            return te.sum(cast(padded_(b, c, t + taps), wide) * cast(w_(c, prim(0), taps), wide), axis=taps)

        total = te.compute((batch, channels, length), window, name="window")

        def element(b: tirx.Expr, c: tirx.Expr, t: tirx.Expr) -> tirx.Expr:
            value = total(b, c, t)
            value = value + cast(bias_[0](c), wide) if bias_ else value
            return cast(value * tirx.sigmoid(value) if swish else value, dtype)

        return te.compute(total.shape, element, name="causal_conv")

    y = ctx.te(build, padded, ctx.x(w), *([ctx.x(bias)] if bias is not None else []))

    def last(padded_: te.Tensor) -> te.Tensor:
        return te.compute((batch, channels, prim(width - 1)), lambda b, c, t: padded_(b, c, length + t), name="state")

    state = ctx.te(last, padded) if width > 1 else _zeros(ctx, [batch, channels, prim(0)], dtype)
    return [y, state]


def _next_state(
    state: te.Tensor, k: te.Tensor, v: te.Tensor, gate: te.Tensor | None, share: te.Tensor | None
) -> te.Tensor:
    """[B, K, D, E]: decayed by exp(gate), then grown by k (v - what the state has for k) share, or by k v."""
    batch, heads, key_size, value_size = state.shape
    wide = str(state.dtype)
    per_key = gate is not None and static_int(gate.shape[2]) != static_int(heads)

    def decayed(b: tirx.Expr, h: tirx.Expr, d: tirx.Expr, e: tirx.Expr) -> tirx.Expr:
        if gate is None:
            return state(b, h, d, e)
        return state(b, h, d, e) * tirx.exp(cast(gate(b, prim(0), h * key_size + d if per_key else h), wide))

    kept = te.compute(state.shape, decayed, name="kept")

    def key(b: tirx.Expr, h: tirx.Expr, d: tirx.Expr) -> tirx.Expr:
        return cast(k(b, prim(0), h * key_size + d), wide)

    def value(b: tirx.Expr, h: tirx.Expr, e: tirx.Expr) -> tirx.Expr:
        return cast(v(b, prim(0), h * value_size + e), wide)

    if share is None:
        added = te.compute((batch, heads, value_size), value, name="added")
    else:
        d_ = te.reduce_axis((0, key_size), name="d")
        found = te.compute(
            (batch, heads, value_size), lambda b, h, e: te.sum(kept(b, h, d_, e) * key(b, h, d_), axis=d_), name="found"
        )
        one_share = static_int(share.shape[2]) == 1

        def corrected(b: tirx.Expr, h: tirx.Expr, e: tirx.Expr) -> tirx.Expr:
            part = cast(share(b, prim(0), prim(0) if one_share else h), wide)
            return part * (value(b, h, e) - found(b, h, e))

        added = te.compute(found.shape, corrected, name="added")
    return te.compute(state.shape, lambda b, h, d, e: kept(b, h, d, e) + key(b, h, d) * added(b, h, e), name="grown")


def _read(state: te.Tensor, q: te.Tensor, heads: int, key_heads: int, scale: float, dtype: str) -> te.Tensor:
    """[B, 1, H * E]: what every query head finds in the state of its key head."""
    batch, _, key_size, value_size = state.shape
    wide = str(state.dtype)
    group = heads // key_heads
    d_ = te.reduce_axis((0, key_size), name="d")

    def found(b: tirx.Expr, c: tirx.Expr) -> tirx.Expr:
        h, e = tirx.floordiv(c, value_size), tirx.floormod(c, value_size)
        part = state(b, tirx.floordiv(h, prim(group)), d_, e)
        return te.sum(cast(q(b, prim(0), h * key_size + d_), wide) * part, axis=d_)

    total = te.compute((batch, heads * value_size), found, name="read")
    factor = tirx.const(scale, wide)
    return te.compute(
        (batch, prim(1), heads * value_size), lambda b, t, c: cast(total(b, c) * factor, dtype), name="output"
    )


def _head_size(width: tirx.Expr, heads: int) -> int:
    known = static_int(width)
    if known is None or heads < 1 or known % heads != 0:
        raise Refused(f"{width} hidden units do not divide into {heads} heads")
    return known // heads


def _first_state(ctx: Emitter, past: ir.Value | None, shape: list[tirx.Expr], dtype: str) -> relax.Var:
    wide = wider(dtype)
    if past is None:
        return _zeros(ctx, shape, wide)
    return ctx.x(past) if ctx.dtype(past) == wide else ctx.emit(relax.op.astype(ctx.x(past), wide))


def _split(ctx: Emitter, value: ir.Value, steps: int) -> list[relax.Expr]:
    if steps == 1:
        return [ctx.x(value)]
    parts = ctx.emit(relax.op.split(ctx.x(value), steps, axis=1))
    return [ctx.emit(relax.TupleGetItem(parts, k)) for k in range(steps)]


def _zeros(ctx: Emitter, shape: list[tirx.Expr], dtype: str) -> relax.Var:
    return ctx.emit(relax.op.zeros(relax.ShapeExpr(shape), dtype))
