"""Scores of one row become weights, keys along the vectors. See `backends.cpu.few_queries`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvm import tirx

from backends.cpu.across_lanes import spread
from backends.cpu.polynomials import exp_of_nonpositive, expand
from backends.cpu.register_tile import span, wide
from backends.relax.loops import (
    BufferLoad,
    BufferStore,
    Expr,
    Stmt,
    TensorLoad,
    allocate,
    i64,
    local,
    loop,
    over_vectors,
    sequence,
    simplify,
    substitute,
    vectorized,
)

if TYPE_CHECKING:
    from backends.cpu.few_queries import FewQueries

__all__ = ["weigh_row"]


def weigh_row(owner: FewQueries, index: tuple[Expr, Expr, Expr], r: Expr, keys: tuple[Expr, Expr]) -> Stmt:
    """Scale and mask a block of scores, and take exponentials; `owner.factor` becomes what earlier sums are scaled by.

    Args:
        owner: Of the buffers.
        index: Batch element, head and query.
        r: The row of the buffers.
        keys: The first of the block, and how many.
    """
    lanes, first = owner.lanes, r * owner.block
    start, count = keys
    nothing = tirx.const(float("-inf"), "float32")
    vectors = simplify(tirx.floordiv(count + (lanes - 1), i64(lanes)))
    highest, shift = (local([lanes], "float32", name) for name in ("highest", "shift"))
    own, everything = [span(r * lanes, lanes)], [span(0, lanes)]
    now = BufferLoad(highest, everything)

    def mask(key: Expr) -> Stmt:
        score = _masked(owner, (*index, start + key), first + key)
        return BufferStore(owner.weights, score, [first + key])

    def note(v: Expr) -> Stmt:
        scores = BufferLoad(owner.weights, [span(first + v * lanes, lanes)])
        return BufferStore(highest, tirx.max(now, scores), everything)

    def change(lane: Expr) -> Stmt:
        power = exp_of_nonpositive(BufferLoad(owner.largest, [r * lanes + lane]) - BufferLoad(shift, [lane]))
        return BufferStore(owner.factor, power, [r * lanes + lane])

    def weigh(v: Expr) -> Stmt:
        def one(lane: Expr) -> Stmt:
            at = [first + v * lanes + lane]
            weight = exp_of_nonpositive(BufferLoad(owner.weights, at) - BufferLoad(shift, [lane]))
            return BufferStore(owner.weights, weight, at)

        total = BufferLoad(owner.total, own) + BufferLoad(owner.weights, [span(first + v * lanes, lanes)])
        return sequence([vectorized(lanes, one), BufferStore(owner.total, total, own)])

    finite = tirx.Select(tirx.EQ(now, wide(nothing, lanes)), wide(tirx.const(0, "float32"), lanes), now)
    body = [
        over_vectors(count, lanes, lambda s, n: sequence([vectorized(n, lambda lane: mask(s + lane))])),
        loop(
            simplify(vectors * lanes - count),
            lambda i: BufferStore(owner.weights, nothing, [first + count + i]),
            name="padding",
        ),
        BufferStore(highest, BufferLoad(owner.largest, own), everything),
        loop(vectors, note, name="vector"),
        BufferStore(highest, spread(now, lanes, tirx.max), everything),
        BufferStore(shift, finite, everything),
        vectorized(lanes, change),
        BufferStore(owner.largest, now, own),
        BufferStore(owner.total, BufferLoad(owner.total, own) * BufferLoad(owner.factor, own), own),
        loop(vectors, weigh, name="vector"),
    ]
    return allocate([highest, shift], sequence(body))


def _masked(owner: FewQueries, index: tuple[Expr, Expr, Expr, Expr], place: Expr) -> Expr:
    """A score after scale and masks."""
    at = dict(zip((a.var for a in owner.parts.masked.spatial), index, strict=True))

    def own(node: TensorLoad) -> Expr | None:
        return BufferLoad(owner.weights, [place]) if node.source.same_as(owner.parts.scores.buffer) else None

    return expand(substitute(owner.parts.masked.value, at, own))
