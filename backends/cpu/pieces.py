"""Cut an axis where the conditions on it change: a concatenation or a padding becomes a few loops without conditions.

A vector cannot follow both sides of an `if_then_else`; within a piece each condition on the axis is decided.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import tvm_ffi
from tvm import ir, sym, tirx
from tvm.ir import Call

from backends.relax.kernel import Axis, Stage
from backends.relax.loops import Expr, i64, known, simplify, substitute, uses

_MOST = 16
"""An axis that would need more pieces stays whole."""


def pieces(stage: Stage, axis: Axis) -> Iterator[tuple[int, int | Expr, Stage]]:
    """Start and length of each piece of the axis, and the stage as it is in that piece."""
    extent = known(axis.extent)
    bounds = [] if extent is None or stage.reduction else sorted(_bounds(stage.value, axis, extent))
    if extent is None or not bounds or len(bounds) > _MOST:
        yield 0, axis.extent, stage
        return
    for start, end in zip([0, *bounds], [*bounds, extent], strict=True):
        yield start, end - start, replace(stage, value=_decided(stage.value, axis, start, end))


def _bounds(value: Expr, axis: Axis, extent: int) -> set[int]:
    """The places inside the axis at which a comparison with a constant changes."""
    compared: list[Expr] = []
    for condition in _conditions(value):
        for kind in (tirx.LT, tirx.LE, tirx.GT, tirx.GE):
            tvm_ffi.structural_walk(condition, (kind, compared.append))
    places = (_change(comparison, axis) for comparison in compared)
    return {place for place in places if place is not None and 0 < place < extent}


def _conditions(value: Expr) -> list[Expr]:
    found: list[Expr] = []

    def note(call: Call) -> None:
        if str(getattr(call.op, "name", "")).endswith("if_then_else"):
            found.append(call.args[0])

    tvm_ffi.structural_walk(value, (Call, note))
    return found


def _change(comparison: Expr, axis: Axis) -> int | None:
    """The first place at which a comparison is not what it is before; `None` if it is no bound on the axis."""
    difference = comparison.a - comparison.b
    if not uses(difference, axis.var):
        return None
    at_zero = known(simplify(substitute(difference, {axis.var: i64(0)})))
    slope = known(simplify(substitute(difference, {axis.var: axis.var + 1}) - difference))
    if at_zero is None or slope not in (1, -1):
        return None
    includes_zero = isinstance(comparison, tirx.LE | tirx.GT)
    return -at_zero + includes_zero if slope == 1 else at_zero + (not includes_zero)


def _decided(value: Expr, axis: Axis, start: int, end: int) -> Expr:
    """The value with every condition decided that is the same all over the piece."""
    analyzer = sym.Analyzer()
    analyzer.bind(axis.var, ir.Range(i64(start), i64(end)))

    def decide(call: Call) -> Expr:
        if not str(getattr(call.op, "name", "")).endswith("if_then_else"):
            return call
        condition = known(analyzer.simplify(call.args[0]))
        return call if condition is None else call.args[1 if condition else 2]

    return tvm_ffi.structural_map(value, (Call, decide))
