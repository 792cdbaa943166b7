"""Indices and conditions of a loop nest in all of its iterations at once, as arrays."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import tirx

__all__ = ["Integers", "NotEnumerable", "values_of"]

Integers = npt.NDArray[np.int64]


class NotEnumerable(Exception):
    """A kernel does something that cannot be followed through all of its iterations."""


_ARITHMETIC: dict[Any, Callable[[Any, Any], Any]] = {
    tirx.Add: operator.add,
    tirx.Sub: operator.sub,
    tirx.Mul: operator.mul,
    tirx.FloorDiv: operator.floordiv,
    tirx.FloorMod: operator.mod,
    tirx.Min: np.minimum,
    tirx.Max: np.maximum,
    tirx.LT: operator.lt,
    tirx.LE: operator.le,
    tirx.GT: operator.gt,
    tirx.GE: operator.ge,
    tirx.EQ: operator.eq,
    tirx.NE: operator.ne,
    tirx.And: np.logical_and,
    tirx.Or: np.logical_or,
}


def values_of(expr: tirx.Expr, values: dict[tirx.Var, Integers]) -> Integers:
    """An index in all iterations.

    Raises:
        NotEnumerable: it is computed from something else than loop variables.
    """
    if isinstance(expr, tirx.IntImm):
        return np.asarray(int(expr.value), np.int64)
    if isinstance(expr, tirx.Var) and expr in values:
        return values[expr]
    if isinstance(expr, tirx.Ramp):
        return values_of(expr.base, values) + values_of(expr.stride, values) * np.arange(
            int(expr.lanes), dtype=np.int64
        )
    if isinstance(expr, tirx.Cast):
        return values_of(expr.value, values)
    if type(expr) in _ARITHMETIC:
        return np.asarray(_ARITHMETIC[type(expr)](values_of(expr.a, values), values_of(expr.b, values)))
    raise NotEnumerable(f"an index computed with a {type(expr).__name__}")
