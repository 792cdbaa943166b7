"""Comparisons, boolean algebra and selection.

A negation works on the byte of a truth value: TVM would turn it into the opposite comparison, and with a NaN both are
false.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
from tvm import tirx

from backends.relax.emitter import Emitter
from backends.relax.pointwise import pointwise
from backends.relax.registry import emits
from backends.relax.scalars import is_float, scalar_type
from backends.relax.values import Result

_BINARY: dict[str, Callable[[tirx.Expr, tirx.Expr], tirx.Expr]] = {
    "And": tirx.all,
    "Equal": lambda a, b: _holds(tirx.EQ, *(_byte(v) if scalar_type(v) == "bool" else v for v in (a, b))),
    "Greater": tirx.GT,
    "GreaterOrEqual": lambda a, b: _holds(tirx.GE, a, b),
    "Less": tirx.LT,
    "LessOrEqual": lambda a, b: _holds(tirx.LE, a, b),
    "Or": tirx.any,
    "Xor": lambda a, b: tirx.NE(_byte(a), _byte(b)),
}


@emits(*_BINARY)
def binary(ctx: Emitter, node: ir.Node) -> Result:
    """A question about two operands."""
    return pointwise(ctx, node.inputs, _BINARY[node.op_type], node.op_type.lower(), "bool")


@emits("Not")
def negation(ctx: Emitter, node: ir.Node) -> Result:
    """The opposite."""
    return pointwise(ctx, node.inputs, lambda x: tirx.EQ(_byte(x), tirx.const(0, "uint8")), "not", "bool")


@emits("Where")
def where(ctx: Emitter, node: ir.Node) -> Result:
    """`x` where the condition holds, else y."""
    return pointwise(ctx, node.inputs, tirx.Select, "where", ctx.dtype(node.inputs[1]))


def _holds(compare: Callable[..., tirx.Expr], a: tirx.Expr, b: tirx.Expr) -> tirx.Expr:
    """A comparison that holds of equal numbers; TVM takes it for true where both sides read alike, NaN or not."""
    return tirx.Select(tirx.isnan(a), tirx.const(False, "bool"), compare(a, b)) if is_float(a) else compare(a, b)


def _byte(x: tirx.Expr) -> tirx.Expr:
    return tirx.Cast("uint8", x)
