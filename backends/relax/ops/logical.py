"""Comparisons, boolean algebra and selection."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
from tvm import tirx

from backends.relax.emitter import Emitter
from backends.relax.pointwise import pointwise
from backends.relax.registry import emits
from backends.relax.scalars import scalar_type
from backends.relax.values import Result

_BINARY: dict[str, Callable[[tirx.Expr, tirx.Expr], tirx.Expr]] = {
    "And": tirx.all,
    "Equal": lambda a, b: _same_truth(a, b) if scalar_type(a) == "bool" else tirx.EQ(a, b),
    "Greater": tirx.GT,
    "GreaterOrEqual": tirx.GE,
    "Less": tirx.LT,
    "LessOrEqual": tirx.LE,
    "Or": tirx.any,
    "Xor": lambda a, b: tirx.Not(_same_truth(a, b)),
}


@emits(*_BINARY)
def binary(ctx: Emitter, node: ir.Node) -> Result:
    """A question about two operands."""
    return pointwise(ctx, node.inputs, _BINARY[node.op_type], node.op_type.lower(), "bool")


@emits("Not")
def negation(ctx: Emitter, node: ir.Node) -> Result:
    """The opposite."""
    return pointwise(ctx, node.inputs, tirx.Not, "not", "bool")


@emits("Where")
def where(ctx: Emitter, node: ir.Node) -> Result:
    """`x` where the condition holds, else y."""
    return pointwise(ctx, node.inputs, tirx.Select, "where", ctx.dtype(node.inputs[1]))


def _same_truth(a: tirx.Expr, b: tirx.Expr) -> tirx.Expr:
    """Equality of booleans, without a comparison of single bits (which LLVM refuses)."""
    return tirx.any(tirx.all(a, b), tirx.Not(tirx.any(a, b)))
