"""Shapes as values, and operators that only give a tensor another shape: no element moves.

What is known of a shape at compile time, symbolic sizes included, stays known; a shape that is computed at run time is
refused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import tvm_ffi
from tvm import relax, te, tirx

from backends.relax.attributes import get_float, get_int, get_ints, get_tensor
from backends.relax.checks import require, require_same_count
from backends.relax.emitter import Emitter
from backends.relax.forms import dtype_name
from backends.relax.known import all_known, elements, forward, known, meant, moved, same, simplified, symbolic
from backends.relax.pointwise import broadcast_shape, read
from backends.relax.registry import emits
from backends.relax.scalars import cast
from backends.relax.values import Refused, Result, prim, static_int

_FOLDED = 64
"""Constants of at most so many elements are made at compile time."""


@emits("Shape")
def shape_of(ctx: Emitter, node: ir.Node) -> Result:
    """The sizes of the axes from `start` to `end`."""
    sizes = ctx.shape(node.inputs[0])
    chosen = sizes[slice(get_int(node, "start", 0), get_int(node, "end", len(sizes)))]
    return symbolic(elements(chosen, [len(chosen)]), "int64")


@emits("Size")
def size_of(ctx: Emitter, node: ir.Node) -> Result:
    """The number of elements."""
    return symbolic(simplified(ctx, math.prod(ctx.shape(node.inputs[0]), start=prim(1))), "int64")


@emits("Reshape")
def reshape(ctx: Emitter, node: ir.Node) -> Result:
    """The same elements under another shape: 0 copies a size (unless `allowzero`), -1 stands for what is left."""
    x = node.inputs[0]
    target = ctx.ints(node.inputs[1])
    if target is None:
        raise Refused("the shape is computed at run time")
    sizes = ctx.shape(x)
    if get_int(node, "allowzero", 0) == 0:
        target = [sizes[i] if static_int(t) == 0 and i < len(sizes) else t for i, t in enumerate(target)]
    completed = _complete(ctx, sizes, target)
    require_same_count(ctx, sizes, completed)
    return reshaped(ctx, x, completed)


@emits("Flatten")
def flatten(ctx: Emitter, node: ir.Node) -> Result:
    """Two axes: those before `axis`, and the rest."""
    x = node.inputs[0]
    sizes = ctx.shape(x)
    axis = get_int(node, "axis", 1)
    if not -len(sizes) <= axis <= len(sizes):
        raise Refused(f"axis {axis} of a tensor of rank {len(sizes)}")
    cut = axis if axis >= 0 else axis + len(sizes)
    return reshaped(ctx, x, [_product(ctx, sizes[:cut]), _product(ctx, sizes[cut:])])


@emits("Squeeze")
def squeeze(ctx: Emitter, node: ir.Node) -> Result:
    """Without the given axes, or without every axis of size 1."""
    x = node.inputs[0]
    sizes = ctx.shape(x)
    axes = given_axes(ctx, node)
    if axes is None:
        axes = [i for i, d in enumerate(ctx.static_shape(x)) if d == 1]
    dropped = {ctx.axis(a, len(sizes)) for a in axes}
    for axis in sorted(dropped):
        require(ctx, sizes[axis], 1, f"the size of axis {axis} that is dropped, and 1")
    return reshaped(ctx, x, [d for i, d in enumerate(sizes) if i not in dropped])


@emits("Unsqueeze")
def unsqueeze(ctx: Emitter, node: ir.Node) -> Result:
    """With new axes of size 1; their places are counted in the result."""
    x = node.inputs[0]
    sizes = list(ctx.shape(x))
    axes = given_axes(ctx, node) or []
    rank = len(sizes) + len(axes)
    for axis in sorted(ctx.axis(a, rank) for a in axes):
        sizes.insert(axis, prim(1))
    return reshaped(ctx, x, sizes)


@emits("Identity")
def identity(ctx: Emitter, node: ir.Node) -> Result:
    """The input."""
    return forward(ctx, node.inputs[0])


@emits("Constant")
def constant(ctx: Emitter, node: ir.Node) -> Result:
    """The attribute that is given, as a tensor."""
    name = next(iter(node.attributes), "")
    if name == "value":
        array = get_tensor(node, name)
    elif name in ("value_int", "value_ints"):
        array = np.array(get_int(node, name, 0) if name == "value_int" else get_ints(node, name, []), np.int64)
    elif name == "value_float":
        array = np.array(get_float(node, name, 0.0), np.float32)
    elif name == "value_floats":
        array = np.array(node.attributes[name].as_floats(), np.float32)
    else:
        array = None
    if array is None or array.dtype.kind == "O":
        raise Refused(f"a constant given as {name or 'nothing'}")
    return array


@emits("ConstantOfShape")
def constant_of_shape(ctx: Emitter, node: ir.Node) -> Result:
    """One value everywhere."""
    sizes = ctx.ints(node.inputs[0])
    if sizes is None:
        raise Refused("the shape is computed at run time")
    given = get_tensor(node, "value")
    value = np.zeros((), np.float32) if given is None else given.reshape(())
    fixed = [static_int(d) for d in sizes]
    if all(d is not None for d in fixed) and math.prod(d or 0 for d in fixed) <= _FOLDED:
        return np.full([d or 0 for d in fixed], value)
    dtype = str(value.dtype)
    return relax.op.full(relax.ShapeExpr(list(sizes)), relax.const(value, dtype), dtype)


@emits("Range")
def arange(ctx: Emitter, node: ir.Node) -> Result:
    """From start to before limit, by delta."""
    dtype = ctx.dtype(node.inputs[0])
    scalars = all_known(ctx, node.inputs)
    if scalars is None:
        start, limit, delta = (ctx.required_constant(v, "a bound").item() for v in node.inputs)
        count = prim(max(math.ceil((limit - start) / delta), 0))
        ends = [tirx.const(start, dtype), tirx.const(delta, dtype)]
    else:
        first, limit, step = (s.reshape(-1)[0] for s in scalars)
        count = _count(ctx, first, limit, step)
        if (fixed := static_int(count)) is not None and fixed <= _FOLDED:
            return symbolic(elements([simplified(ctx, first + step * i) for i in range(fixed)], [fixed]), dtype)
        ends = [first, step]

    def build(size: tirx.Expr, start: tirx.Expr, delta: tirx.Expr) -> te.Tensor:
        first, step = cast(start, dtype), cast(delta, dtype)
        return te.compute([size], lambda i: first + cast(i, dtype) * step, name="range")

    return ctx.te(build, count, *ends)


@emits("EyeLike")
def eye_like(ctx: Emitter, node: ir.Node) -> Result:
    """1 on the k-th diagonal, else 0."""
    x = node.inputs[0]
    k = get_int(node, "k", 0)
    given = node.attributes.get("dtype")
    dtype = ctx.dtype(x) if given is None else dtype_name(ir.DataType(given.as_int()))

    def build(sizes: list[tirx.Expr]) -> te.Tensor:
        def element(i: tirx.Expr, j: tirx.Expr) -> tirx.Expr:
            return tirx.Select(tirx.EQ(i + k, j), tirx.const(1, dtype), tirx.const(0, dtype))

        return te.compute(sizes, element, name="eye")

    return ctx.te(build, ctx.shape(x))


@emits("Expand")
def expand(ctx: Emitter, node: ir.Node) -> Result:
    """Repeated along axes of size 1, to what the input and the wanted shape broadcast to."""
    x = node.inputs[0]
    wanted = ctx.ints(node.inputs[1])
    if wanted is None:
        raise Refused("the shape is computed at run time")
    sizes = broadcast_shape(ctx, [ctx.shape(x), wanted])
    array = known(ctx, x)
    if array is not None and all(static_int(d) is not None for d in sizes):
        return symbolic(np.broadcast_to(array, [static_int(d) or 0 for d in sizes]), ctx.dtype(x))
    if len(sizes) == ctx.rank(x) and all(same(ctx, a, b) for a, b in zip(sizes, ctx.shape(x), strict=True)):
        return forward(ctx, x)

    def build(tensor: te.Tensor, shape: list[tirx.Expr]) -> te.Tensor:
        return te.compute(shape, lambda *index: read(ctx, tensor, shape, index), name="expand")

    return ctx.te(build, ctx.x(x), sizes)


def reshaped(ctx: Emitter, value: ir.Value | None, sizes: Sequence[tirx.Expr]) -> Result:
    """The same elements in row-major order under another shape."""
    fixed = [static_int(d) for d in sizes]
    if all(d is not None for d in fixed):
        rearranged = moved(ctx, value, lambda a: a.reshape([d or 0 for d in fixed]))
        if rearranged is not None:
            return rearranged
    if 0 in fixed:  # Relax would take the 0 for "as in the input"
        dtype = ctx.dtype(value)
        return relax.op.full(relax.ShapeExpr(list(sizes)), relax.const(0, dtype), dtype)
    source = ctx.x(value)
    if ctx.prefers_channels_last(value) and _only_one_channel_order(ctx.shape(value)):
        source = ctx.channels_last(value)
    return relax.op.reshape(source, relax.ShapeExpr([prim(d) for d in sizes]))


def given_axes(ctx: Emitter, node: ir.Node, position: int = 1) -> list[int] | None:
    """Axes from an input, or from the attribute of older operator sets; `None` if there is neither."""
    if len(node.inputs) > position and node.inputs[position] is not None:
        if [static_int(d) for d in ctx.shape(node.inputs[position])] == [0]:
            return []
        return ctx.static_ints(node.inputs[position], "axes")
    return get_ints(node, "axes")


def _only_one_channel_order(sizes: Sequence[tirx.Expr]) -> bool:
    """Whether [N, C, S] and [N, S, C] hold the elements in the same order."""
    return all(static_int(d) == 1 for d in sizes[2:]) or static_int(sizes[1]) == 1


def _complete(ctx: Emitter, sizes: Sequence[tirx.Expr], target: Sequence[tirx.Expr]) -> list[tirx.Expr]:
    """The target shape with the input's own sizes where it names them, and what they leave instead of -1."""
    if all(static_int(t) not in (None, -1) for t in target):
        return list(target)
    left, kept = list(sizes), []
    completed = list(target)
    for i, size in enumerate(target):
        place = next((k for k, s in enumerate(left) if same(ctx, s, size)), None)
        if place is None and (place := _place_of_quotient(ctx, left, size)) is not None:
            require(ctx, left[place], size, "a size as the shape gives it, and as the input has it")
            completed[i] = left[place]
        if place is not None:
            del left[place]  # by its place: == of two sizes is an expression
        elif static_int(size) != -1:
            kept.append(size)
    rest = tirx.floordiv(math.prod(left, start=prim(1)), math.prod(kept, start=prim(1)))
    return [simplified(ctx, rest) if static_int(t) == -1 else t for t in completed]


def _place_of_quotient(ctx: Emitter, sizes: Sequence[tirx.Expr], size: tirx.Expr) -> int | None:
    """Which size a quotient is, given that nothing in it is negative: Div rounds towards 0, a convolution down."""
    rounded_down = _rounded_down(meant(ctx, size))
    if rounded_down.same_as(meant(ctx, size)):
        return None
    return next((k for k, s in enumerate(sizes) if same(ctx, s, rounded_down)), None)


def _rounded_down(size: tirx.Expr) -> tirx.Expr:
    return tvm_ffi.structural_map(size, (tirx.Div, lambda q: tirx.floordiv(_rounded_down(q.a), _rounded_down(q.b))))


def _product(ctx: Emitter, sizes: Sequence[tirx.Expr]) -> tirx.Expr:
    return simplified(ctx, math.prod(sizes, start=prim(1)))


def _count(ctx: Emitter, start: tirx.Expr, limit: tirx.Expr, step: tirx.Expr) -> tirx.Expr:
    by = static_int(step)
    if by is None or by == 0:
        raise Refused("delta is computed at run time, or 0")
    span, stride = (limit - start, by) if by > 0 else (start - limit, -by)
    return simplified(ctx, tirx.max(tirx.floordiv(span + (stride - 1), prim(stride)), prim(0)))
