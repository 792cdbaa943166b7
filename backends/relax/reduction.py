"""How partial results of a reduction are combined."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from tvm import tirx

from backends.relax.kernel import Stage
from backends.relax.loops import Expr, TensorLoad

__all__ = ["Combine", "combiner"]

Combine: TypeAlias = Callable[[Expr, Expr], Expr]


def combiner(stage: Stage, value: Expr, extreme: Callable[[bool], Combine]) -> Combine | None:
    """The operator of a reduction; `None` if it is not one of the associative ones.

    Args:
        stage: the reduction.
        value: its value, or what took its place.
        extreme: gives the target's maximum (`True`) or minimum, in which a NaN stays one.
    """

    def is_own(expr: Expr) -> bool:
        return isinstance(expr, TensorLoad) and expr.source.same_as(stage.buffer)

    for kind in (tirx.Add, tirx.Max, tirx.Min, tirx.Mul):
        if isinstance(value, kind) and (is_own(value.a) or is_own(value.b)):
            return lambda a, b, kind=kind: kind(a, b)  # type: ignore[misc]
    if isinstance(value, tirx.Select) and is_own(value.true_value) and isinstance(value.condition, tirx.Or):
        compared = value.condition.a
        if isinstance(compared, tirx.GT | tirx.LT):
            return extreme(isinstance(compared, tirx.GT) == is_own(compared.a))
    return None
