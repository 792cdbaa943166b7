"""A tensor in the axis order in which it lies: ONNX's own, or with the channels last.

Data movement and reductions are written for ONNX's axes; where the operand lies with its channels last, they work on
that and give a result that lies the same way, so that no transposition is made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import onnx_ir as ir
from tvm import relax, te, tirx

from backends.relax.emitter import Emitter
from backends.relax.values import ChannelsLast, Result

T = TypeVar("T")


@dataclass(frozen=True)
class Laid:
    """A tensor and how it lies.

    Attributes:
        expr: the tensor.
        rank: the number of its axes.
        last: whether its channels are last.
    """

    expr: relax.Expr
    rank: int
    last: bool

    def place(self, axis: int) -> int:
        """Where one of ONNX's axes lies."""
        if not self.last or axis == 0:
            return axis
        return self.rank - 1 if axis == 1 else axis - 1

    def order(self, per_axis: Sequence[T]) -> list[T]:
        """What is given for ONNX's axes, as the axes lie."""
        ordered = list(per_axis)
        return [ordered[0], *ordered[2:], ordered[1]] if self.last else ordered

    def onnx(self, as_it_lies: Sequence[T]) -> list[T]:
        """What is given for the axes as they lie, for ONNX's axes."""
        ordered = list(as_it_lies)
        return [ordered[0], ordered[-1], *ordered[1:-1]] if self.last else ordered

    def result(self, expr: relax.Expr) -> Result:
        """An expression that lies as this tensor does."""
        return ChannelsLast(expr) if self.last else expr


def laid(ctx: Emitter, value: ir.Value | None) -> Laid:
    """A value as it lies."""
    last = ctx.prefers_channels_last(value) and ctx.rank(value) > 2
    return Laid(ctx.channels_last(value) if last else ctx.x(value), ctx.rank(value), last)


def gathered(
    ctx: Emitter,
    operand: Laid,
    sizes: Sequence[tirx.Expr],
    element: Callable[..., tirx.Expr],
    name: str,
    *more: object,
) -> Result:
    """A kernel that computes each element from any elements of the operand.

    Args:
        ctx: the emitter.
        operand: the tensor that is read.
        sizes: the result's sizes, in ONNX's order.
        element: `(read, index, sizes, *more)` to a scalar, where `read(*index)` gives an element of the operand; every
            index is in ONNX's order, and `sizes` are the operand's.
        name: what the kernel is called.
        more: further arguments of `element`: tensors, or (lists of) expressions over the symbolic sizes.
    """

    def build(x: te.Tensor, shape: list[tirx.Expr], *rest: object) -> te.Tensor:
        own = operand.onnx(list(x.shape))

        def read(*index: tirx.Expr) -> tirx.Expr:
            return x(*operand.order(index))

        return te.compute(
            operand.order(shape), lambda *index: element(read, operand.onnx(index), own, *rest), name=name
        )

    return operand.result(ctx.te(build, operand.expr, list(sizes), *more))
