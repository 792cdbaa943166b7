"""Reading by index: the Gather family, OneHot, Trilu, ReverseSequence, TensorScatter.

An index below zero counts from the end. One out of range is an error of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
from tvm import te, tirx

from backends.relax.attributes import get_int, get_str
from backends.relax.byte_tables import byte_rows
from backends.relax.emitter import Emitter
from backends.relax.forms import dtype_name
from backends.relax.four_bit_products import rows as four_bit_rows
from backends.relax.four_bits import FourBits
from backends.relax.indices import checked_places, demand_range, fixed_indices
from backends.relax.known import moved
from backends.relax.registry import emits
from backends.relax.scalars import cast
from backends.relax.values import Refused, Result, prim, static_int

Read = Callable[..., tirx.Expr]
Index = Sequence[tirx.Expr]


@emits("Gather")
def gather(ctx: Emitter, node: ir.Node) -> Result:
    """The slices of an axis that the indices name."""
    x, indices = node.inputs[0], node.inputs[1]
    table = FourBits.of(ctx, x, transposed=True)
    if x is not None and table is not None and get_int(node, "axis", 0) in (0, -2):
        places = checked_places(ctx, indices, [prim(table.columns)])
        return four_bit_rows(ctx, table, places, dtype_name(x.dtype or ir.DataType.FLOAT))
    sizes = ctx.shape(x)
    axis = ctx.axis(get_int(node, "axis", 0), len(sizes))
    if axis == 0 and (rows := byte_rows(ctx, x, lambda: checked_places(ctx, indices, [sizes[0]]))) is not None:
        return rows
    places, size = fixed_indices(ctx, indices), static_int(sizes[axis])
    if places is not None:
        if size is not None:
            demand_range(places, size)
        taken = moved(ctx, x, lambda a: np.take(a, places, axis))
        if taken is not None:
            return taken
        if places.ndim == 0 and size is not None:
            return _one_slice(ctx, x, axis, int(places) % size)

    def build(data: te.Tensor, at: te.Tensor) -> te.Tensor:
        depth = len(at.shape)

        def element(*index: tirx.Expr) -> tirx.Expr:
            return data(*index[:axis], prim(at(*index[axis : axis + depth])), *index[axis + depth :])

        return te.compute([*data.shape[:axis], *at.shape, *data.shape[axis + 1 :]], element, name="gather")

    return ctx.te(build, ctx.x(x), checked_places(ctx, indices, [sizes[axis]]))


@emits("GatherElements")
def gather_elements(ctx: Emitter, node: ir.Node) -> Result:
    """For each index, the element at its own position but for the one axis that it names."""
    x, indices = node.inputs[0], node.inputs[1]
    axis = ctx.axis(get_int(node, "axis", 0), ctx.rank(x))

    def build(data: te.Tensor, at: te.Tensor) -> te.Tensor:
        def element(*index: tirx.Expr) -> tirx.Expr:
            return data(*index[:axis], prim(at(*index)), *index[axis + 1 :])

        return te.compute(at.shape, element, name="gather_elements")

    return ctx.te(build, ctx.x(x), checked_places(ctx, indices, [ctx.shape(x)[axis]]))


@emits("GatherND")
def gather_nd(ctx: Emitter, node: ir.Node) -> Result:
    """The slices whose leading positions the last axis of the indices holds."""
    x, indices = node.inputs[0], node.inputs[1]
    batch = get_int(node, "batch_dims", 0)
    named = static_int(ctx.shape(indices)[-1])
    if named is None:
        raise Refused("the number of indices depends on a symbolic size")

    def build(data: te.Tensor, at: te.Tensor) -> te.Tensor:
        outer = len(at.shape) - 1

        def element(*index: tirx.Expr) -> tirx.Expr:
            places = [prim(at(*index[:outer], k)) for k in range(named)]
            return data(*index[:batch], *places, *index[outer:])

        return te.compute([*at.shape[:-1], *data.shape[batch + named :]], element, name="gather_nd")

    return ctx.te(build, ctx.x(x), checked_places(ctx, indices, ctx.shape(x)[batch : batch + named]))


@emits("OneHot")
def one_hot(ctx: Emitter, node: ir.Node) -> Result:
    """A new axis that is "on" where the index says, else "off"; an index out of bounds is off everywhere."""
    indices, depth_input, values = node.inputs[:3]
    depth = ctx.constant(depth_input)
    given = ctx.ints(depth_input) or (None if depth is None else [prim(int(depth.reshape(-1)[0]))])
    if given is None:
        raise Refused("depth is computed at run time")
    rank = ctx.rank(indices) + 1
    axis = ctx.axis(get_int(node, "axis", -1), rank)

    def build(at: te.Tensor, off_on: te.Tensor, classes: tirx.Expr) -> te.Tensor:
        def element(*index: tirx.Expr) -> tirx.Expr:
            place = cast(at(*index[:axis], *index[axis + 1 :]), "int64")
            wanted = tirx.Select(place < 0, place + classes, place)
            return tirx.Select(tirx.EQ(wanted, index[axis]), off_on(1), off_on(0))

        return te.compute([*at.shape[:axis], classes, *at.shape[axis:]], element, name="one_hot")

    return ctx.te(build, ctx.x(indices), ctx.x(values), given[0])


@emits("Trilu")
def trilu(ctx: Emitter, node: ir.Node) -> Result:
    """The triangle above (or below) the k-th diagonal, 0 elsewhere."""
    x, k = (*node.inputs, None)[:2]
    upper = get_int(node, "upper", 1) == 1
    diagonals = ctx.ints(k) or ([prim(0)] if k is None else None)

    def build(data: te.Tensor, *diagonal: tirx.Expr | te.Tensor) -> te.Tensor:
        def element(*index: tirx.Expr) -> tirx.Expr:
            row, column = index[-2], index[-1]
            offset = diagonal[0]
            shift = offset(*([prim(0)] * len(offset.shape))) if isinstance(offset, te.Tensor) else offset
            kept = column - row >= shift if upper else column - row <= shift
            return tirx.Select(kept, data(*index), tirx.const(0, str(data.dtype)))

        return te.compute(data.shape, element, name="trilu")

    return ctx.te(build, ctx.x(x), diagonals[0] if diagonals is not None else ctx.x(k))


@emits("ReverseSequence")
def reverse_sequence(ctx: Emitter, node: ir.Node) -> Result:
    """The first `sequence_lens[b]` elements of each batch entry in reverse order."""
    x, lengths = node.inputs[0], node.inputs[1]
    batch_axis, time_axis = get_int(node, "batch_axis", 1), get_int(node, "time_axis", 0)

    def build(data: te.Tensor, lens: te.Tensor) -> te.Tensor:
        def element(*index: tirx.Expr) -> tirx.Expr:
            time, length = index[time_axis], cast(lens(index[batch_axis]), "int64")
            mirrored = tirx.Select(time < length, length - 1 - time, time)
            return data(*(mirrored if i == time_axis else p for i, p in enumerate(index)))

        return te.compute(data.shape, element, name="reverse_sequence")

    most = ctx.shape(x)[time_axis]
    return ctx.te(build, ctx.x(x), checked_places(ctx, lengths, [most + 1], from_end=False))


@emits("TensorScatter")
def tensor_scatter(ctx: Emitter, node: ir.Node) -> Result:
    """A cache with new entries written from `write_indices[b]` on, around its end if circular."""
    past, update, starts = (*node.inputs, None)[:3]
    rank = ctx.rank(past)
    axis = ctx.axis(get_int(node, "axis", -2), rank)
    circular = get_str(node, "mode", "linear") == "circular"

    def build(cache: te.Tensor, new: te.Tensor, *begin: te.Tensor) -> te.Tensor:
        size = cache.shape[axis]

        def element(*index: tirx.Expr) -> tirx.Expr:
            start = cast(begin[0](index[0]), "int64") if begin else prim(0)
            place = index[axis] - start
            place = tirx.floormod(place, size) if circular else place
            written = tirx.all(place >= 0, place < new.shape[axis])
            return tirx.if_then_else(written, new(*index[:axis], place, *index[axis + 1 :]), cache(*index))

        return te.compute(cache.shape, element, name="tensor_scatter")

    most = ctx.shape(past)[axis]
    places = most if circular else most - ctx.shape(update)[axis] + 1
    begins = [] if starts is None else [checked_places(ctx, starts, [places], from_end=False)]
    return ctx.te(build, ctx.x(past), ctx.x(update), *begins)


def _one_slice(ctx: Emitter, x: ir.Value | None, axis: int, place: int) -> Result:
    """One slice, without its axis; its place is known."""

    def build(data: te.Tensor) -> te.Tensor:
        shape = [d for i, d in enumerate(data.shape) if i != axis]
        return te.compute(shape, lambda *index: data(*index[:axis], prim(place), *index[axis:]), name="slice")

    return ctx.te(build, ctx.x(x))
