"""Normalizations: by the statistics of a row, of a channel, of a group of channels, or given ones.

Shape letters: N batch, C channels, G groups, S spatial sizes. Variances are taken of centred values (two passes over a
row), as a difference of squares loses all its digits where the mean is large.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import onnx_ir as ir
from tvm import relax, te, tirx

from backends.relax.attributes import get_float, get_int, get_ints
from backends.relax.emitter import Emitter
from backends.relax.forms import dtype_name
from backends.relax.registry import emits
from backends.relax.scalars import cast, wider
from backends.relax.stages import broadcast_index, reduce_rows, row_of, table
from backends.relax.values import ChannelsLast, Refused, Result, prim, static_int


@emits("LayerNormalization")
def layer_normalization(ctx: Emitter, node: ir.Node) -> Sequence[Result | None]:
    """Standardize the last axes, scale and shift; optionally the mean and the inverse deviation of each row."""
    x = node.inputs[0]
    rank = ctx.rank(x)
    axes = range(ctx.axis(get_int(node, "axis", -1), rank), rank)
    epsilon = get_float(node, "epsilon", 1e-5)
    operands = [ctx.x(v) for v in node.inputs if v is not None]

    def build(x_: te.Tensor, scale: te.Tensor, *bias: te.Tensor) -> list[te.Tensor]:
        mean, inverse = _moments(x_, axes, epsilon)

        def element(*i: tirx.Expr) -> tirx.Expr:
            row = row_of(i, axes)
            y = (cast(x_(*i), mean.dtype) - mean(*row)) * inverse(*row)
            return _affine(y, x_.dtype, i, scale, *bias)

        return [te.compute(x_.shape, element, name="layer_norm"), mean, inverse]

    wanted = [v is not None and bool(v.name) for v in [*node.outputs, None, None][:3]]
    if not any(wanted[1:]):
        return [ctx.te(lambda *tensors: build(*tensors)[0], *operands)]
    results = ctx.emit(ctx.te(build, *operands))
    row_shape = relax.ShapeExpr([d if axis not in axes else prim(1) for axis, d in enumerate(ctx.shape(x))])
    statistics = [
        _as_declared(relax.op.reshape(relax.TupleGetItem(results, k), row_shape), node.outputs[k])
        if wanted[k]
        else None
        for k in range(1, len(node.outputs))
    ]
    return [relax.TupleGetItem(results, 0), *statistics]


@emits("RMSNormalization")
def rms_normalization(ctx: Emitter, node: ir.Node) -> Result:
    """Divide the last axes by their root mean square, and scale."""
    x = node.inputs[0]
    rank = ctx.rank(x)
    axes = range(ctx.axis(get_int(node, "axis", -1), rank), rank)
    epsilon = get_float(node, "epsilon", 1e-5)

    def build(x_: te.Tensor, scale: te.Tensor) -> te.Tensor:
        wide = wider(x_.dtype)
        squares = reduce_rows(x_.shape, axes, lambda *i: _square(cast(x_(*i), wide)), te.sum, "squares")
        inverse = _inverse_root(squares, _count(x_.shape, axes), epsilon)

        def element(*i: tirx.Expr) -> tirx.Expr:
            return _affine(cast(x_(*i), wide) * inverse(*row_of(i, axes)), x_.dtype, i, scale)

        return te.compute(x_.shape, element, name="rms_norm")

    return ctx.te(build, ctx.x(x), ctx.x(node.inputs[1]))


@emits("InstanceNormalization")
def instance_normalization(ctx: Emitter, node: ir.Node) -> Result:
    """Standardize the spatial axes of each channel, scale and shift by channel."""
    x = node.inputs[0]
    rank = ctx.rank(x)
    last = ctx.prefers_channels_last(x)
    axes = range(1, rank - 1) if last else range(2, rank)
    channel = rank - 1 if last else 1
    epsilon = get_float(node, "epsilon", 1e-5)

    def build(x_: te.Tensor, scale_C: te.Tensor, bias_C: te.Tensor) -> te.Tensor:
        mean, inverse = _moments(x_, axes, epsilon)

        def element(*i: tirx.Expr) -> tirx.Expr:
            row, c = row_of(i, axes), i[channel]
            y = (cast(x_(*i), mean.dtype) - mean(*row)) * inverse(*row)
            return cast(y * cast(scale_C(c), mean.dtype) + cast(bias_C(c), mean.dtype), x_.dtype)

        return te.compute(x_.shape, element, name="instance_norm")

    operands = (ctx.x(node.inputs[1]), ctx.x(node.inputs[2]))
    if last:
        return ChannelsLast(ctx.te(build, ctx.channels_last(x), *operands))
    return ctx.te(build, ctx.x(x), *operands)


@emits("GroupNormalization")
def group_normalization(ctx: Emitter, node: ir.Node) -> Result:
    """Standardize each group of channels, scale and shift by channel (by group in opset 18)."""
    x, scale, bias = node.inputs
    groups = get_int(node, "num_groups", 1)
    n, c, *spatial = ctx.shape(x)
    channels, scales = static_int(c), static_int(ctx.shape(scale)[0])
    if channels is None or channels % groups != 0 or scales not in (channels, groups):
        raise Refused(f"{groups} groups of {c} channels with {scales} scales")
    per_group, per_scale = channels // groups, channels // scales
    epsilon = get_float(node, "epsilon", 1e-5)
    axes = (2, 3)

    def build(x_NGCS: te.Tensor, scale_: te.Tensor, bias_: te.Tensor) -> te.Tensor:
        mean, inverse = _moments(x_NGCS, axes, epsilon)

        def element(*i: tirx.Expr) -> tirx.Expr:
            row, which = row_of(i, axes), tirx.floordiv(i[1] * per_group + i[2], prim(per_scale))
            y = (cast(x_NGCS(*i), mean.dtype) - mean(*row)) * inverse(*row)
            return cast(y * cast(scale_(which), mean.dtype) + cast(bias_(which), mean.dtype), x_NGCS.dtype)

        return te.compute(x_NGCS.shape, element, name="group_norm")

    size = ctx.derived(math.prod(spatial, start=prim(1)))
    grouped = ctx.emit(relax.op.reshape(ctx.x(x), relax.ShapeExpr([n, prim(groups), prim(per_group), size])))
    y = ctx.te(build, grouped, ctx.x(scale), ctx.x(bias))
    return relax.op.reshape(y, relax.ShapeExpr([n, c, *spatial]))


@emits("BatchNormalization")
def batch_normalization(ctx: Emitter, node: ir.Node) -> Sequence[Result | None]:
    """Standardize by given statistics (or, in training mode, by the batch's own), scale and shift by channel."""
    x, scale, bias, mean, variance = node.inputs
    last = ctx.prefers_channels_last(x)
    data = ctx.channels_last(x) if last else ctx.x(x)
    statistics = [ctx.x(mean), ctx.x(variance)]
    others: list[Result | None] = []
    if get_int(node, "training_mode", 0) == 1:
        batch = [axis for axis in range(ctx.rank(x)) if axis != (ctx.rank(x) - 1 if last else 1)]
        own = [ctx.emit(relax.op.mean(data, batch)), ctx.emit(relax.op.variance(data, batch))]
        kept = get_float(node, "momentum", 0.9)
        dtype = ctx.dtype(mean)
        for running, current in zip(statistics, own, strict=True):
            moved = relax.op.multiply(relax.op.astype(current, dtype), relax.const(1.0 - kept, dtype))
            others.append(relax.op.add(relax.op.multiply(running, relax.const(kept, dtype)), moved))
        statistics = own
    operands = [ctx.x(scale), ctx.x(bias), *statistics]
    y = ctx.te(_batch_norm, data, *operands, ctx.rank(x) - 1 if last else 1, get_float(node, "epsilon", 1e-5))
    return [ChannelsLast(y) if last else y, *others]


@emits("LRN")
def local_response_normalization(ctx: Emitter, node: ir.Node) -> Result:
    """Divide by a power of the squares of neighbouring channels."""
    x = node.inputs[0]
    size = get_int(node, "size", 1)
    alpha, beta = get_float(node, "alpha", 0.0001), get_float(node, "beta", 0.75)
    bias = get_float(node, "bias", 1.0)
    below = (size - 1) // 2

    def build(x_NSC: te.Tensor) -> te.Tensor:
        *outer, channels = x_NSC.shape
        wide = wider(x_NSC.dtype)
        zero = tirx.const(0, wide)

        def square(*i: tirx.Expr) -> tirx.Expr:
            c = i[-1] - below
            return tirx.if_then_else(tirx.all(c >= 0, c < channels), _square(cast(x_NSC(*i[:-1], c), wide)), zero)

        squares = te.compute((*outer, channels + size - 1), square, name="squares")
        near = te.reduce_axis((0, size), name="near")
        total = te.compute(x_NSC.shape, lambda *i: te.sum(squares(*i[:-1], i[-1] + near), axis=near), name="total")

        def element(*i: tirx.Expr) -> tirx.Expr:
            base = tirx.const(bias, wide) + tirx.const(alpha / size, wide) * total(*i)
            return cast(cast(x_NSC(*i), wide) / tirx.power(base, tirx.const(beta, wide)), x_NSC.dtype)

        return te.compute(x_NSC.shape, element, name="lrn")

    return ChannelsLast(ctx.te(build, ctx.channels_last(x)))


@emits("MeanVarianceNormalization")
def mean_variance_normalization(ctx: Emitter, node: ir.Node) -> Result:
    """Standardize the given axes; 1e-9 keeps a constant row finite."""
    x = node.inputs[0]
    axes = {ctx.axis(a, ctx.rank(x)) for a in get_ints(node, "axes", [0, 2, 3]) or []}

    def build(x_: te.Tensor) -> te.Tensor:
        mean, squares, count = _centred_squares(x_, axes)
        small = tirx.const(1e-9, mean.dtype)

        def element(*i: tirx.Expr) -> tirx.Expr:
            row = row_of(i, axes)
            deviation = tirx.sqrt(squares(*row) / count) + small
            return cast((cast(x_(*i), mean.dtype) - mean(*row)) / deviation, x_.dtype)

        return te.compute(x_.shape, element, name="standardized")

    return ctx.te(build, ctx.x(x))


@emits("LpNormalization")
def lp_normalization(ctx: Emitter, node: ir.Node) -> Result:
    """Divide an axis by its 1-norm or 2-norm; a row of zeros stays zero."""
    x = node.inputs[0]
    axis = ctx.axis(get_int(node, "axis", -1), ctx.rank(x))
    p = get_int(node, "p", 2)

    def build(x_: te.Tensor) -> te.Tensor:
        wide = wider(x_.dtype)
        measure = tirx.abs if p == 1 else _square
        total = reduce_rows(x_.shape, {axis}, lambda *i: measure(cast(x_(*i), wide)), te.sum, "total")
        norm = te.compute(total.shape, lambda *i: total(*i) if p == 1 else tirx.sqrt(total(*i)), name="norm")
        zero = tirx.const(0, wide)

        def element(*i: tirx.Expr) -> tirx.Expr:
            length = norm(*row_of(i, {axis}))
            return cast(tirx.Select(tirx.EQ(length, zero), zero, cast(x_(*i), wide) / length), x_.dtype)

        return te.compute(x_.shape, element, name="lp_norm")

    return ctx.te(build, ctx.x(x))


def _moments(x: te.Tensor, axes: Collection[int], epsilon: float) -> tuple[te.Tensor, te.Tensor]:
    """The mean of each row and the inverse of its standard deviation."""
    mean, squares, count = _centred_squares(x, axes)
    return mean, _inverse_root(squares, count, epsilon)


def _centred_squares(x: te.Tensor, axes: Collection[int]) -> tuple[te.Tensor, te.Tensor, tirx.Expr]:
    wide = wider(x.dtype)
    count = cast(_count(x.shape, axes), wide)
    total = reduce_rows(x.shape, axes, lambda *i: cast(x(*i), wide), te.sum, "total")
    mean = table(total.shape, lambda *row: total(*row) / count, "mean")
    squares = reduce_rows(
        x.shape, axes, lambda *i: _square(cast(x(*i), wide) - mean(*row_of(i, axes))), te.sum, "squares"
    )
    return mean, squares, count


def _inverse_root(squares: te.Tensor, count: tirx.Expr, epsilon: float) -> te.Tensor:
    small, n = tirx.const(epsilon, squares.dtype), cast(count, squares.dtype)
    one = tirx.const(1, squares.dtype)
    return table(squares.shape, lambda *row: one / tirx.sqrt(squares(*row) / n + small), "inverse")


def _count(shape: Sequence[tirx.Expr], axes: Collection[int]) -> tirx.Expr:
    return math.prod((shape[axis] for axis in axes), start=prim(1))


def _square(value: tirx.Expr) -> tirx.Expr:
    return value * value


def _affine(y: tirx.Expr, dtype: str, index: Sequence[tirx.Expr], scale: te.Tensor, *bias: te.Tensor) -> tirx.Expr:
    """Scale and shift by operands that broadcast to the tensor; a standardized value is rounded to its type before."""
    wide = str(y.expr_ty())
    scaled = cast(cast(y, dtype), wide) * cast(scale(*broadcast_index(scale.shape, index)), wide)
    for shift in bias:
        scaled = scaled + cast(shift(*broadcast_index(shift.shape, index)), wide)
    return cast(scaled, dtype)


def _batch_norm(
    x: te.Tensor,
    scale: te.Tensor,
    bias: te.Tensor,
    mean: te.Tensor,
    variance: te.Tensor,
    channel: int,
    epsilon: float,
) -> te.Tensor:
    wide = wider(x.dtype)
    small = tirx.const(epsilon, wide)
    factor = table(scale.shape, lambda c: cast(scale(c), wide) / tirx.sqrt(cast(variance(c), wide) + small), "factor")

    def element(*i: tirx.Expr) -> tirx.Expr:
        c = i[channel]
        return cast((cast(x(*i), wide) - cast(mean(c), wide)) * factor(c) + cast(bias(c), wide), x.dtype)

    return te.compute(x.shape, element, name="batch_norm")


def _as_declared(expr: relax.Expr, value: ir.Value) -> relax.Expr:
    return expr if value.dtype is None else relax.op.astype(expr, dtype_name(value.dtype))
