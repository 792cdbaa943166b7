"""Which keys a block of queries can see, read off the expression that masks its scores."""

from __future__ import annotations

from tvm import tirx

from backends.relax.kernel import Stage
from backends.relax.loops import Expr, i64, known, loads_of, simplify, substitute, uses

__all__ = ["key_bounds"]


def key_bounds(masked: Stage, first: Expr, last: Expr, place: tuple[Expr, Expr]) -> tuple[Expr | None, Expr | None]:
    """The first key that one of the queries sees, and the one behind the last; `None` where nothing is known.

    Args:
        masked: The scores after masking, [B, H, S, T]; minus infinity where a condition does not hold.
        first: The first query of the block.
        last: The last one.
        place: Batch element and head of the block.
    """
    batch, head, query, key = (axis.var for axis in masked.spatial)
    point = dict(zip((batch, head), place, strict=True))
    low: list[Expr] = []
    high: list[Expr] = []
    for condition in _conditions(masked.value):
        for comparison in _conjuncts(condition):
            bound = _bound(comparison, query, key)
            if bound is None:
                continue
            kind, limit = bound
            if kind == "high":
                high.append(substitute(limit, {**point, query: last}) + 1)
            else:
                low.append(substitute(limit, {**point, query: first}))
    return _extreme(low, tirx.max), _extreme(high, tirx.min)


def _conditions(value: Expr) -> list[Expr]:
    """The condition of the outermost selection, if what is chosen otherwise is minus infinity."""
    if not isinstance(value, tirx.Select) or not isinstance(value.false_value, tirx.FloatImm):
        return []
    return [value.condition] if float(value.false_value.value) == float("-inf") else []


def _conjuncts(condition: Expr) -> list[Expr]:
    if isinstance(condition, tirx.And):
        return [*_conjuncts(condition.a), *_conjuncts(condition.b)]
    return [condition]


def _bound(comparison: Expr, query: tirx.Var, key: tirx.Var) -> tuple[str, Expr] | None:
    """`("high", f)` for `key <= f`, `("low", f)` for `key >= f`, where f is the query plus something constant."""
    if not isinstance(comparison, (tirx.LE, tirx.GE, tirx.LT, tirx.GT)):
        return None
    difference = simplify(comparison.b - comparison.a)  # `a <= b`: not negative
    if isinstance(comparison, (tirx.GE, tirx.GT)):
        difference = simplify(comparison.a - comparison.b)
    if isinstance(comparison, (tirx.LT, tirx.GT)):
        difference = simplify(difference - 1)
    if not uses(difference, key) or any(uses(ld, axis) for ld in loads_of(difference) for axis in (query, key)):
        return None
    slope = known(simplify(substitute(difference, {key: key + 1}) - difference))
    growth = known(simplify(substitute(difference, {query: query + 1}) - difference))
    rest = simplify(substitute(difference, {key: i64(0)}))
    if slope == -1 and growth in (0, 1):
        return "high", rest
    if slope == 1 and growth in (0, -1):
        return "low", simplify(i64(0) - rest)
    return None


def _extreme(limits: list[Expr], combine: object) -> Expr | None:
    result: Expr | None = None
    for limit in limits:
        result = limit if result is None else combine(result, limit)  # type: ignore[operator]
    return None if result is None else simplify(result)
