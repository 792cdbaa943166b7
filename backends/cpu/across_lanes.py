"""Sums and maxima across the lanes of vectors, by shuffles."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm import tirx

from backends.cpu.polynomials import let
from backends.relax.loops import Expr

__all__ = ["row_sums", "spread"]


def row_sums(rows: Sequence[Expr], lanes: int) -> Expr:
    """The sum of each of `lanes` vectors, as one vector.

    In each step the sums of two vectors share one: the number of vectors and the elements summed up are both halved, so
    that all takes `lanes - 1` additions.

    Args:
        rows: `lanes` vectors, each cheap to read twice.
        lanes: A power of two.
    """
    half = len(rows) // 2
    if not half:
        return rows[0]

    def fold(done: list[Expr]) -> Expr:
        i = len(done)
        if i == half:
            return row_sums(done, lanes)
        return let(_folded(rows[i], rows[i + half], half, lanes), lambda v: fold([*done, v]))

    return fold([])


def _folded(a: Expr, b: Expr, half: int, lanes: int) -> Expr:
    """Of each segment of `2 * half` lanes: the halves of a's segment added, and then those of b's."""
    places = [lane // (2 * half) * 2 * half + lane % half + (lanes if lane & half else 0) for lane in range(lanes)]
    return _picked([a, b], places) + _picked([a, b], [place + half for place in places])


def spread(vector: Expr, lanes: int, combine: Callable[[Expr, Expr], Expr]) -> Expr:
    """What `combine`, associative and commutative, makes of all lanes (a power of two), in every lane."""
    distance = 1

    def step(v: Expr) -> Expr:
        nonlocal distance
        if distance == lanes:
            return v
        partner = _picked([v], [lane ^ distance for lane in range(lanes)])
        distance *= 2
        return let(combine(v, partner), step)

    return let(vector, step)


def _picked(vectors: list[Expr], places: list[int]) -> Expr:
    return tirx.Shuffle(vectors, [tirx.const(place, "int32") for place in places])
