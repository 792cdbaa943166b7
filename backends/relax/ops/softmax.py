"""Softmax, LogSoftmax, Hardmax along one axis, as one kernel of row stages."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
from tvm import relax, te, tirx

from backends.relax.attributes import get_int
from backends.relax.emitter import Emitter
from backends.relax.registry import emits
from backends.relax.scalars import cast, wider
from backends.relax.stages import reduce_rows, row_of, table
from backends.relax.values import ChannelsLast, Result


@emits("Softmax")
def softmax(ctx: Emitter, node: ir.Node) -> Result:
    """exp(x - max) over its sum."""
    return _along_axis(ctx, node, softmax_rows)


@emits("LogSoftmax")
def log_softmax(ctx: Emitter, node: ir.Node) -> Result:
    """The logarithm of Softmax, without leaving the logarithmic scale."""
    return _along_axis(ctx, node, log_softmax_rows)


@emits("Hardmax")
def hardmax(ctx: Emitter, node: ir.Node) -> Result:
    """1 at the first of the largest elements, else 0."""

    def emit(x: relax.Expr, axis: int) -> relax.Expr:
        place = ctx.emit(relax.op.argmax(x, axis, keepdims=True))
        return ctx.te(_one_hot, x, place, axis)

    return _oriented(ctx, node, emit)


def softmax_rows(x: te.Tensor, axis: int) -> te.Tensor:
    """Softmax along one axis as stages: the largest element, exponentials, their sum, the quotient."""
    wide, rows = wider(x.dtype), {axis}
    largest = reduce_rows(x.shape, rows, lambda *i: cast(x(*i), wide), te.max, "largest")
    powers = te.compute(x.shape, lambda *i: tirx.exp(cast(x(*i), wide) - largest(*row_of(i, rows))), name="powers")
    total = reduce_rows(x.shape, rows, powers, te.sum, "total")
    share = table(total.shape, lambda *i: tirx.const(1, wide) / total(*i), "share")
    return te.compute(x.shape, lambda *i: cast(powers(*i) * share(*row_of(i, rows)), x.dtype), name="softmax")


def log_softmax_rows(x: te.Tensor, axis: int) -> te.Tensor:
    """The logarithm of Softmax along one axis as stages."""
    wide, rows = wider(x.dtype), {axis}
    largest = reduce_rows(x.shape, rows, lambda *i: cast(x(*i), wide), te.max, "largest")

    def centred(*i: tirx.Expr) -> tirx.Expr:
        return cast(x(*i), wide) - largest(*row_of(i, rows))

    total = reduce_rows(x.shape, rows, lambda *i: tirx.exp(centred(*i)), te.sum, "total")
    logarithm = table(total.shape, lambda *i: tirx.log(total(*i)), "logarithm")
    return te.compute(x.shape, lambda *i: cast(centred(*i) - logarithm(*row_of(i, rows)), x.dtype), name="log_softmax")


def _one_hot(x: te.Tensor, place: te.Tensor, axis: int) -> te.Tensor:
    one, zero = tirx.const(1, x.dtype), tirx.const(0, x.dtype)

    def element(*i: tirx.Expr) -> tirx.Expr:
        row = [*i[:axis], tirx.const(0, "int64"), *i[axis + 1 :]]
        return tirx.Select(tirx.EQ(place(*row), cast(i[axis], place.dtype)), one, zero)

    return te.compute(x.shape, element, name="hardmax")


def _along_axis(ctx: Emitter, node: ir.Node, build: Callable[[te.Tensor, int], te.Tensor]) -> Result:
    return _oriented(ctx, node, lambda x, axis: ctx.te(build, x, axis))


def _oriented(ctx: Emitter, node: ir.Node, emit: Callable[[relax.Expr, int], relax.Expr]) -> Result:
    """Apply along the node's axis in the axis order in which the input lies."""
    x = node.inputs[0]
    rank = ctx.rank(x)
    axis = ctx.axis(get_int(node, "axis", -1), rank)
    if ctx.prefers_channels_last(x):
        return ChannelsLast(emit(ctx.channels_last(x), [0, rank - 1, *range(1, rank - 1)][axis]))
    return emit(ctx.x(x), axis)
