"""Operators that move elements: Transpose, Concat, Split, Slice, Pad, Tile, DepthToSpace, SpaceToDepth, CenterCropPad.

Each is one kernel with simple indices, or a view; on an operand that lies with its channels last they work in that
order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from tvm import relax, te, tirx

from backends.relax.attributes import get_int, get_ints, get_str
from backends.relax.checks import require, require_at_least, retyped
from backends.relax.emitter import Emitter
from backends.relax.known import all_known, forward, moved, not_negative, simplified, symbolic
from backends.relax.layout import Laid, gathered, laid
from backends.relax.ops.shape import given_axes
from backends.relax.registry import emits
from backends.relax.values import ChannelsLast, Refused, Result, prim, static_int

Read = Callable[..., tirx.Expr]
Index = Sequence[tirx.Expr]


@emits("Transpose")
def transpose(ctx: Emitter, node: ir.Node) -> Result:
    """The axes in another order; between the two orders of an image it is only another view."""
    x = node.inputs[0]
    rank = ctx.rank(x)
    order = get_ints(node, "perm", range(rank)[::-1]) or []
    rearranged = moved(ctx, x, lambda a: a.transpose(order))
    if rearranged is not None:
        return rearranged
    if order == list(range(rank)):
        return forward(ctx, x)
    if rank > 2 and order == [0, *range(2, rank), 1] and ctx.prefers_channels_last(x):
        return ctx.channels_last(x)
    if rank > 3 and order == [0, rank - 1, *range(1, rank - 1)]:
        return ChannelsLast(ctx.x(x))
    source = laid(ctx, x)
    return relax.op.permute_dims(source.expr, [source.place(a) for a in order])


@emits("Concat")
def concat(ctx: Emitter, node: ir.Node) -> Result:
    """The operands one after the other along an axis."""
    values = [v for v in node.inputs if v is not None]
    axis = ctx.axis(get_int(node, "axis", 0), ctx.rank(values[0]))
    arrays = all_known(ctx, values)
    if arrays is not None:
        return symbolic(np.concatenate(arrays, axis), ctx.dtype(values[0]))
    if len(values) == 1:
        return forward(ctx, values[0])
    if ctx.rank(values[0]) > 2 and any(ctx.prefers_channels_last(v) for v in values):
        place = Laid(None, ctx.rank(values[0]), True).place(axis)
        return ChannelsLast(
            relax.op.concat(_operands(ctx, values, [ctx.channels_last(v) for v in values], place), place)
        )
    return relax.op.concat(_operands(ctx, values, [ctx.x(v) for v in values], axis), axis)


def _operands(ctx: Emitter, values: Sequence[ir.Value], tensors: list[relax.Var], axis: int) -> list[relax.Var]:
    """What is joined. Rows that are cut out to be joined to others are seen through a view: `FuseOps` stops at it.

    They are then copied when they are cut out, not when they are joined, and need not keep all the others there.
    """
    outermost = all(static_int(prim(size)) == 1 for size in tensors[0].ty.shape.values[:axis])
    cut_out = [_is_cut_out(value) for value in values]
    if outermost and not all(cut_out):
        tensors = [
            ctx.emit(relax.op.reshape(x, x.ty.shape)) if cut else x for x, cut in zip(tensors, cut_out, strict=True)
        ]
    return _agreeing(ctx, tensors, axis)


def _is_cut_out(value: ir.Value) -> bool:
    node = value.producer()
    return node is not None and node.op_type == "Slice" and len(value.uses()) == 1 and not value.is_graph_output()


def _agreeing(ctx: Emitter, operands: list[relax.Var], axis: int) -> list[relax.Var]:
    """The operands with one expression for each size that they share; what cannot be proved, the run checks."""
    sizes = [[prim(d) for d in x.ty.shape.values] for x in operands]
    columns = zip(*sizes, strict=True)
    shared = [next((d for d in column if static_int(d) is not None), column[0]) for column in columns]
    return [
        retyped(ctx, x, [d if k == axis else shared[k] for k, d in enumerate(own)], "sizes of what is joined")
        for x, own in zip(operands, sizes, strict=True)
    ]


@emits("Split")
def split(ctx: Emitter, node: ir.Node) -> list[Result]:
    """The parts of a tensor along an axis; equal ones (the last may be smaller) unless their sizes are given."""
    x = node.inputs[0]
    sizes = ctx.shape(x)
    axis = ctx.axis(get_int(node, "axis", 0), len(sizes))
    results: list[Result] = []
    start = prim(0)
    parts = _part_sizes(ctx, node, sizes[axis])
    require(ctx, sum(parts, start=prim(0)), sizes[axis], "the parts together and the axis that is split")
    require_at_least(ctx, 0, parts, "the size of a part")
    for length in parts:
        end = simplified(ctx, start + length)
        results.append(_cut(ctx, x, {axis: Cut(start, length, 1)}))
        start = end
    return results


@emits("Slice")
def slice_(ctx: Emitter, node: ir.Node) -> Result:
    """A range of each given axis; bounds below zero count from the end, and are then cut to the axis."""
    x, starts_input, ends_input, _, steps_input = (*node.inputs, None, None)[:5]
    sizes = ctx.shape(x)
    starts, ends = ctx.ints(starts_input), ctx.ints(ends_input)
    if starts is None or ends is None:
        raise Refused("a bound is computed at run time")
    axes = given_axes(ctx, node, 3) or list(range(len(starts)))
    steps = ctx.static_ints(steps_input, "steps") or [1] * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
        raise Refused(f"{len(starts)} starts, {len(ends)} ends, {len(axes)} axes and steps {steps}")
    cuts = {}
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        place = ctx.axis(axis, len(sizes))
        cuts[place] = _bounded(ctx, sizes[place], start, end, step)
    return _cut(ctx, x, cuts)


@emits("Pad")
def pad(ctx: Emitter, node: ir.Node) -> Result:
    """More elements before and after (fewer, where the padding is negative)."""
    x, pads_input, value, axes_input = (*node.inputs, None, None)[:4]
    sizes = ctx.shape(x)
    pads = ctx.ints(pads_input)
    if pads is None:
        raise Refused("pads are computed at run time")
    axes = ctx.static_ints(axes_input, "axes") or list(range(len(sizes)))
    before, after = [prim(0)] * len(sizes), [prim(0)] * len(sizes)
    for axis, low, high in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        before[ctx.axis(axis, len(sizes))], after[ctx.axis(axis, len(sizes))] = low, high
    return _padded(ctx, x, before, after, get_str(node, "mode", "constant"), value)


@emits("CenterCropPad")
def center_crop_pad(ctx: Emitter, node: ir.Node) -> Result:
    """Cut or padded with zeros around the middle to the given sizes."""
    x = node.inputs[0]
    sizes = ctx.static_shape(x, "what to crop")
    wanted = ctx.static_ints(node.inputs[1], "the shape") or []
    before, after = [0] * len(sizes), [0] * len(sizes)
    for axis, size in zip(get_ints(node, "axes", range(len(sizes))) or [], wanted, strict=True):
        place = ctx.axis(axis, len(sizes))
        more = size - sizes[place]
        before[place] = more // 2 if more > 0 else -(-more // 2)
        after[place] = more - before[place]
    return _padded(ctx, x, [prim(b) for b in before], [prim(a) for a in after], "constant", None)


@emits("Tile")
def tile(ctx: Emitter, node: ir.Node) -> Result:
    """The tensor repeated along each axis."""
    x = node.inputs[0]
    repeats = ctx.ints(node.inputs[1])
    if repeats is None:
        raise Refused("repeats are computed at run time")
    fixed = [static_int(r) for r in repeats]
    if all(r is not None for r in fixed):
        repeated = moved(ctx, x, lambda a: np.tile(a, [r or 0 for r in fixed]))
        if repeated is not None:
            return repeated
    sizes = [simplified(ctx, d * r) for d, r in zip(ctx.shape(x), repeats, strict=True)]

    def element(read: Read, index: Index, own: Index) -> tirx.Expr:
        return read(*(i if r == 1 else tirx.floormod(i, d) for i, r, d in zip(index, fixed, own, strict=True)))

    return gathered(ctx, laid(ctx, x), sizes, element, "tile")


@emits("DepthToSpace")
def depth_to_space(ctx: Emitter, node: ir.Node) -> Result:
    """Blocks of channels become blocks of the image."""
    x = node.inputs[0]
    n, c, h, w = ctx.shape(x)
    b = get_int(node, "blocksize", 1)
    depth_first = get_str(node, "mode", "DCR") == "DCR"
    channels = simplified(ctx, tirx.floordiv(c, prim(b * b)))
    require(ctx, channels * (b * b), c, "channels in whole blocks and in all")

    def element(read: Read, index: Index, own: Index) -> tirx.Expr:
        batch, channel, row, column = index
        block = tirx.floormod(row, b) * b + tirx.floormod(column, b)
        source = block * tirx.floordiv(own[1], b * b) + channel if depth_first else channel * (b * b) + block
        return read(batch, source, tirx.floordiv(row, b), tirx.floordiv(column, b))

    return gathered(ctx, laid(ctx, x), [n, channels, h * b, w * b], element, "depth_to_space")


@emits("SpaceToDepth")
def space_to_depth(ctx: Emitter, node: ir.Node) -> Result:
    """Blocks of the image become blocks of channels."""
    x = node.inputs[0]
    n, c, h, w = ctx.shape(x)
    b = get_int(node, "blocksize", 1)
    depth_first = get_str(node, "mode", "DCR") == "DCR"
    rows, columns = (simplified(ctx, tirx.floordiv(d, prim(b))) for d in (h, w))
    for blocks, size in ((rows, h), (columns, w)):
        require(ctx, blocks * b, size, "size in whole blocks and in all")

    def element(read: Read, index: Index, own: Index) -> tirx.Expr:
        batch, target, row, column = index
        block = tirx.floordiv(target, own[1]) if depth_first else tirx.floormod(target, b * b)
        channel = tirx.floormod(target, own[1]) if depth_first else tirx.floordiv(target, b * b)
        return read(batch, channel, row * b + tirx.floordiv(block, b), column * b + tirx.floormod(block, b))

    return gathered(ctx, laid(ctx, x), [n, c * (b * b), rows, columns], element, "space_to_depth")


@dataclass(frozen=True)
class Cut:
    """A range of an axis: `length` elements from `start` on, `step` apart."""

    start: tirx.Expr
    length: tirx.Expr
    step: int


def _cut(ctx: Emitter, x: ir.Value | None, cuts: dict[int, Cut]) -> Result:
    sizes = [cuts[i].length if i in cuts else d for i, d in enumerate(ctx.shape(x))]
    fixed = {i: (static_int(c.start), static_int(c.length), c.step) for i, c in cuts.items()}
    if all(s is not None and n is not None for s, n, _ in fixed.values()):
        places = [
            [s + k * t for k in range(n)] if s is not None and n is not None else []
            for s, n, t in (fixed.get(i, (0, static_int(d), 1)) for i, d in enumerate(ctx.shape(x)))
        ]
        taken = moved(ctx, x, lambda a: a[np.ix_(*places)] if places else a)
        if taken is not None:
            return taken
    if all(static_int(c.start) == 0 and c.step == 1 for c in cuts.values()) and all(
        static_int(simplified(ctx, n - d)) == 0 for n, d in zip(sizes, ctx.shape(x), strict=True)
    ):
        return forward(ctx, x)

    def element(read: Read, index: Index, own: Index, starts: Index) -> tirx.Expr:
        offsets = dict(zip(cuts, starts, strict=True))
        return read(*(offsets[i] + p * cuts[i].step if i in cuts else p for i, p in enumerate(index)))

    return gathered(ctx, laid(ctx, x), sizes, element, "slice", [c.start for c in cuts.values()])


def _bounded(ctx: Emitter, size: tirx.Expr, start: tirx.Expr, end: tirx.Expr, step: int) -> Cut:
    """The range that `[start:end:step]` takes of an axis."""
    low, high = (prim(0), size) if step > 0 else (prim(-1), size - 1)
    first = _clamped(ctx, _from_front(ctx, start, size), prim(0) if step > 0 else low, high)
    last = _clamped(ctx, _from_front(ctx, end, size), low, high)
    span = last - first if step > 0 else first - last
    stride = abs(step)
    length = simplified(ctx, tirx.max(tirx.floordiv(span + (stride - 1), prim(stride)), prim(0)))
    return Cut(first, length, step)


def _from_front(ctx: Emitter, bound: tirx.Expr, size: tirx.Expr) -> tirx.Expr:
    fixed = static_int(bound)
    if fixed is not None:
        return bound if fixed >= 0 else size + max(fixed, -(1 << 40))
    if not_negative(ctx, bound):
        return bound
    return tirx.Select(bound < 0, bound + size, bound)


def _clamped(ctx: Emitter, bound: tirx.Expr, low: tirx.Expr, high: tirx.Expr) -> tirx.Expr:
    if static_int(bound) is not None and (static_int(bound) or 0) >= 1 << 40:
        return simplified(ctx, high)
    return simplified(ctx, tirx.max(tirx.min(bound, high), low))


def _part_sizes(ctx: Emitter, node: ir.Node, size: tirx.Expr) -> list[tirx.Expr]:
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        given = ctx.ints(node.inputs[1])
        if given is None:
            raise Refused("the sizes of the parts are computed at run time")
        return given
    count = get_int(node, "num_outputs", len(node.outputs))
    part = simplified(ctx, tirx.floordiv(size + (count - 1), prim(count)))
    return [part] * (count - 1) + [simplified(ctx, size - part * (count - 1))]


def _padded(
    ctx: Emitter,
    x: ir.Value | None,
    before: Sequence[tirx.Expr],
    after: Sequence[tirx.Expr],
    mode: str,
    value: ir.Value | None,
) -> Result:
    if mode not in ("constant", *_OUTSIDE):
        raise Refused(f"mode {mode!r}")
    sizes = [simplified(ctx, b + d + a) for b, d, a in zip(before, ctx.shape(x), after, strict=True)]
    padded = [i for i, (b, a) in enumerate(zip(before, after, strict=True)) if static_int(b) != 0 or static_int(a) != 0]
    if not padded:
        return forward(ctx, x)
    dtype = ctx.dtype(x)
    fill = ctx.constant(value)
    fixed = None if value is not None and fill is None else tirx.const(0 if fill is None else fill.item(), dtype)

    def element(read: Read, index: Index, own: Index, offsets: Index, *filler: te.Tensor) -> tirx.Expr:
        places = [i - b for i, b in zip(index, offsets, strict=True)]
        if mode != "constant":
            return read(*(_OUTSIDE[mode](p, own[i]) if i in padded else p for i, p in enumerate(places)))
        inside = [c for i in padded for c in (places[i] >= 0, places[i] < own[i])]
        outside = fixed if fixed is not None else filler[0](*([prim(0)] * len(filler[0].shape)))
        return tirx.if_then_else(tirx.all(*inside), read(*places), outside)

    more = [] if fixed is not None else [ctx.x(value)]
    return gathered(ctx, laid(ctx, x), sizes, element, "pad", list(before), *more)


def _reflected(place: tirx.Expr, size: tirx.Expr) -> tirx.Expr:
    """To and fro, without repeating the ends."""
    period = tirx.max((size - 1) * 2, prim(1))
    around = tirx.floormod(place, period)
    return tirx.min(around, tirx.max(period - around, prim(0))) if static_int(size) != 1 else prim(0)


_OUTSIDE: dict[str, Callable[[tirx.Expr, tirx.Expr], tirx.Expr]] = {
    "edge": lambda place, size: tirx.max(tirx.min(place, size - 1), prim(0)),
    "reflect": _reflected,
    "wrap": tirx.floormod,
}
