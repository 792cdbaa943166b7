"""Where elements lie: coordinates of positions, and how far apart neighbours are."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx

from backends.relax.loops import Expr, TensorLoad, Var, i64, known, simplify, substitute, uses

__all__ = ["coordinates", "stride_of"]


def coordinates(position: Expr, extents: Sequence[Expr]) -> list[Expr]:
    """The coordinates of a row-major position; neither is negative, so that a plain division does."""
    result: list[Expr] = []
    for place, extent in enumerate(reversed(extents)):
        if place == len(extents) - 1:
            result.append(position)
        elif known(extent) == 1:
            result.append(i64(0))
        elif known(extent) is not None:
            result.append(tirx.floormod(position, i64(extent)))
            position = tirx.floordiv(position, i64(extent))
        else:
            result.append(tirx.truncmod(position, extent))
            position = tirx.truncdiv(position, extent)
    return result[::-1]


def stride_of(load: TensorLoad, var: Var) -> int | None:
    """How far apart two neighbours along `var` lie, in elements; `None` if that is not a small constant."""
    if not any(uses(index, var) for index in load.indices):
        return 0
    if any(uses(index, var) for index in load.indices[:-1]):
        return None
    return known(simplify(substitute(load.indices[-1], {var: var + 1}) - load.indices[-1]))
