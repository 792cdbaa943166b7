"""Pools: MaxPool, AveragePool, LpPool, their global forms, MaxUnpool.

Shape letters: N batch, C channels, S spatial sizes (one to three of them). A pool of an image works on [N, S, C]: the
channels are contiguous, so that a window is read as rows of vectors.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import onnx_ir as ir
from tvm import relax, te, tirx

from backends.relax.attributes import declared_shape, get_int, get_ints
from backends.relax.checks import require_at_least
from backends.relax.emitter import Emitter
from backends.relax.indices import checked_places
from backends.relax.quantized import activation, restored
from backends.relax.registry import emits
from backends.relax.scalars import cast, lowest, wider
from backends.relax.values import ChannelsLast, Refused, Result, prim
from backends.relax.window import Window, pad_channels_last


@emits("MaxPool")
def max_pool(ctx: Emitter, node: ir.Node) -> Result | Sequence[Result | None]:
    """The largest element of each window, and on request where it is."""
    x = node.inputs[0]
    window = _window(ctx, node)
    if len(node.outputs) > 1 and node.outputs[1].name:
        return _max_pool_with_indices(ctx, node, window)
    held = activation(ctx, x)
    if held is None or held.scale is None or held.scale <= 0:
        return _largest(ctx, x, window)
    # of bytes: the largest stands for the largest number
    pooled = ir.Value(name=f"{node.outputs[0].name}.bytes", type=ir.TensorType(ir.DataType.UINT8))
    ctx.bind(pooled, _largest(ctx, held.value, window))
    return restored(ctx, pooled, held.scale, held.zero)


def _largest(ctx: Emitter, x: ir.Value | None, window: Window) -> Result:
    padding = lowest(ctx.dtype(x))

    def build(x_NSC: te.Tensor) -> te.Tensor:
        return _reduce_windows(pad_channels_last(x_NSC, window, padding), window, lambda v: v, te.max, "max_pool")

    return ChannelsLast(ctx.te(build, ctx.channels_last(x)))


@emits("AveragePool")
def average_pool(ctx: Emitter, node: ir.Node) -> Result:
    """The mean of each window; padding counts only with `count_include_pad`."""
    x = node.inputs[0]
    window = _window(ctx, node)
    dtype = ctx.dtype(x)
    wide = wider(dtype)
    count_padding = get_int(node, "count_include_pad", 0) == 1

    def build(x_NSC: te.Tensor) -> te.Tensor:
        padded = pad_channels_last(x_NSC, window, tirx.const(0, dtype))
        total = _reduce_windows(padded, window, lambda v: cast(v, wide), te.sum, "sum")

        def mean(*index: tirx.Expr) -> tirx.Expr:
            if window.inside():
                return cast(total(*index) * tirx.const(1.0 / window.taps, wide), dtype)
            own = replace(window, sizes=tuple(x_NSC.shape[1:-1]))  # a kernel names its symbolic sizes itself
            taps = own.taps_at(index[1:-1], count_padding=count_padding)
            return cast(total(*index) / tirx.Cast(wide, taps), dtype)

        return te.compute(total.shape, mean, name="average_pool")

    return ChannelsLast(ctx.te(build, ctx.channels_last(x)))


@emits("LpPool")
def lp_pool(ctx: Emitter, node: ir.Node) -> Result:
    """The p-norm of each window."""
    x = node.inputs[0]
    window = _window(ctx, node)
    dtype = ctx.dtype(x)
    wide = wider(dtype)
    power, root = _norm(get_int(node, "p", 2), wide)

    def build(x_NSC: te.Tensor) -> te.Tensor:
        padded = pad_channels_last(x_NSC, window, tirx.const(0, dtype))
        total = _reduce_windows(padded, window, lambda v: power(cast(v, wide)), te.sum, "sum")
        return te.compute(total.shape, lambda *index: cast(root(total(*index)), dtype), name="lp_pool")

    return ChannelsLast(ctx.te(build, ctx.channels_last(x)))


@emits("GlobalAveragePool")
def global_average_pool(ctx: Emitter, node: ir.Node) -> Result:
    """The mean over the spatial axes."""
    return _global_pool(ctx, node, relax.op.mean)


@emits("GlobalMaxPool")
def global_max_pool(ctx: Emitter, node: ir.Node) -> Result:
    """The largest element over the spatial axes."""
    return _global_pool(ctx, node, relax.op.max)


@emits("GlobalLpPool")
def global_lp_pool(ctx: Emitter, node: ir.Node) -> Result:
    """The p-norm over the spatial axes."""
    p = get_int(node, "p", 2)

    def reduce(x: relax.Expr, axis: list[int], keepdims: bool) -> relax.Expr:
        size = relax.op.abs(x)
        power = functools.reduce(relax.op.multiply, [size] * p)
        total = relax.op.sum(power, axis, keepdims)
        return relax.op.power(total, relax.const(1.0 / p, str(x.ty.dtype))) if p != 1 else total

    return _global_pool(ctx, node, reduce)


@emits("MaxUnpool")
def max_unpool(ctx: Emitter, node: ir.Node) -> Result:
    """Put each element back where a MaxPool found it; zero elsewhere."""
    x, indices = node.inputs[0], node.inputs[1]
    kernel = get_ints(node, "kernel_shape") or []
    n, c, *sizes = ctx.shape(x)
    strides = get_ints(node, "strides", [1] * len(sizes)) or []
    pads = get_ints(node, "pads", [0] * 2 * len(sizes)) or []
    before, after = pads[: len(sizes)], pads[len(sizes) :]
    unpooled = [(d - 1) * s + k - b - a for d, s, k, b, a in zip(sizes, strides, kernel, before, after, strict=True)]
    given = node.inputs[2] if len(node.inputs) > 2 else None
    wanted = _output_shape(ctx, node, given) if given is not None else [n, c, *unpooled]
    elements = math.prod([n, c, *unpooled], start=prim(1))
    flat = relax.op.full(relax.ShapeExpr([elements]), relax.const(0, ctx.dtype(x)), ctx.dtype(x))
    count = relax.ShapeExpr([math.prod(ctx.shape(x), start=prim(1))])
    places = relax.op.reshape(checked_places(ctx, indices, [elements], from_end=False), count)
    values = relax.op.reshape(ctx.x(x), count)
    filled = relax.op.reshape(
        relax.op.scatter_elements(ctx.emit(flat), ctx.emit(places), ctx.emit(values)),
        relax.ShapeExpr([n, c, *unpooled]),
    )
    if given is None:
        return filled

    def build(y: te.Tensor) -> te.Tensor:
        def element(*index: tirx.Expr) -> tirx.Expr:
            known = [tirx.LT(i, prim(u)) for i, u in zip(index[2:], unpooled, strict=True)]
            return tirx.if_then_else(tirx.all(*known), y(*index), tirx.const(0, y.dtype))

        return te.compute(wanted, element, name="unpooled")

    return ctx.te(build, ctx.emit(filled))


def _output_shape(ctx: Emitter, node: ir.Node, given: ir.Value) -> list[tirx.Expr]:
    elements, declared = ctx.ints(given), declared_shape(node.outputs[0])
    if elements is not None:
        return elements
    if declared is None:
        raise Refused("output_shape is computed at run time")
    return [prim(d) for d in declared]


def _window(ctx: Emitter, node: ir.Node) -> Window:
    sizes = ctx.shape(node.inputs[0])[2:]
    kernel = get_ints(node, "kernel_shape")
    if kernel is None:
        raise Refused("kernel_shape is missing")
    require_at_least(ctx, 1, sizes, "the size of an axis that is pooled")
    window = Window.of(node, sizes, kernel, ctx.derived)
    require_at_least(ctx, 0, window.outputs, "the number of windows")
    return window


def _reduce_windows(
    padded: te.Tensor,
    window: Window,
    element: Callable[[tirx.Expr], tirx.Expr],
    reducer: Callable[..., tirx.Expr],
    name: str,
) -> te.Tensor:
    """Reduce each window of padded: [N, S, C] to one element."""
    taps = [te.reduce_axis((0, k), name=f"k{i}") for i, k in enumerate(window.kernel)]

    def reduced(*index: tirx.Expr) -> tirx.Expr:
        batch, *position, channel = index
        read = [p * s + k * d for p, s, k, d in zip(position, window.strides, taps, window.dilations, strict=True)]
        return reducer(element(padded[(batch, *read, channel)]), axis=taps)

    return te.compute((padded.shape[0], *window.outputs, padded.shape[-1]), reduced, name=name)


def _max_pool_with_indices(ctx: Emitter, node: ir.Node, window: Window) -> list[Result]:
    """MaxPool in ONNX's own axis order, with the position of each maximum in the flattened input."""
    x = node.inputs[0]
    dtype = ctx.dtype(x)
    column_major = get_int(node, "storage_order", 0) == 1

    def build(x_NCS: te.Tensor) -> list[te.Tensor]:
        batch_stride = x_NCS.shape[1] * math.prod(window.sizes, start=prim(1))
        taps = [te.reduce_axis((0, k), name=f"k{i}") for i, k in enumerate(window.kernel)]

        def best(*index: tirx.Expr) -> tirx.Expr:
            batch, channel, *position = index
            read = [
                p * s + tirx.Cast("int64", k) * d - b
                for p, s, k, d, b in zip(position, window.strides, taps, window.dilations, window.before, strict=True)
            ]
            known = tirx.all(*(c for r, size in zip(read, window.sizes, strict=True) for c in (r >= 0, r < size)))
            value = tirx.if_then_else(known, x_NCS[(batch, channel, *read)], lowest(dtype))
            place = _flat(read, window.sizes, column_major=column_major)
            start = batch * batch_stride + channel * math.prod(window.sizes, start=prim(1))
            return _argmax((tirx.Select(known, start + place, prim(-1)), value), axis=taps)

        n, c = x_NCS.shape[:2]
        where, largest = te.compute((n, c, *window.outputs), best, name="max_pool")
        return [largest, where]

    pair = ctx.emit(ctx.te(build, ctx.x(x)))
    return [relax.TupleGetItem(pair, 0), relax.TupleGetItem(pair, 1)]


def _first_of_largest(left: tuple[tirx.Expr, ...], right: tuple[tirx.Expr, ...]) -> tuple[tirx.Expr, ...]:
    better = tirx.any(left[0] < 0, tirx.all(right[0] >= 0, right[1] > left[1]))
    return tirx.Select(better, right[0], left[0]), tirx.Select(better, right[1], left[1])


def _argmax(pair: tuple[tirx.Expr, ...], axis: list[tirx.IterVar]) -> tirx.Expr:
    reducer = te.comm_reducer(
        _first_of_largest, lambda place, value: (tirx.const(-1, place), lowest(value)), name="argmax"
    )
    return reducer(pair, axis=axis)


def _flat(position: Sequence[tirx.Expr], sizes: Sequence[tirx.Expr], *, column_major: bool) -> tirx.Expr:
    """The place of a position in a tensor of the given sizes, rows first or columns first."""
    place = prim(0)
    for p, size in (
        reversed(list(zip(position, sizes, strict=True))) if column_major else zip(position, sizes, strict=True)
    ):
        place = place * size + p
    return place


def _global_pool(ctx: Emitter, node: ir.Node, reduce: Callable[..., relax.Expr]) -> Result:
    x = node.inputs[0]
    rank = ctx.rank(x)
    require_at_least(ctx, 1, ctx.shape(x)[2:], "the size of an axis that is pooled")
    if ctx.prefers_channels_last(x):
        return ChannelsLast(reduce(ctx.channels_last(x), list(range(1, rank - 1)), True))
    return reduce(ctx.x(x), list(range(2, rank)), True)


def _norm(p: int, dtype: str) -> tuple[Callable[[tirx.Expr], tirx.Expr], Callable[[tirx.Expr], tirx.Expr]]:
    """The power of an element and the root of their sum."""
    if p == 1:
        return tirx.abs, lambda total: total
    if p == 2:
        return lambda v: v * v, tirx.sqrt
    return (
        lambda v: math.prod([tirx.abs(v)] * p),
        lambda total: tirx.power(total, tirx.const(1.0 / p, dtype)),
    )
