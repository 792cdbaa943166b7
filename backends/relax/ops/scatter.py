"""Writing by index: ScatterElements and ScatterND, with reductions. Kernels with control flow of their own.

Updates of one element are applied in order. An index out of range is an error of the run.
"""

from __future__ import annotations

import operator
from collections.abc import Callable

import onnx_ir as ir
from tvm import te, tirx

from backends.relax.attributes import get_int, get_str
from backends.relax.checks import require, require_same_shape
from backends.relax.emitter import Emitter
from backends.relax.indices import checked_places
from backends.relax.ops.elementwise import largest, smallest
from backends.relax.procedure import copied, fetch, nest, procedure, sequence, store
from backends.relax.registry import emits
from backends.relax.scalars import cast, scalar_type, wider
from backends.relax.values import Refused, Result, prim, static_int

_REDUCTIONS: dict[str, Callable[[tirx.Expr, tirx.Expr], tirx.Expr]] = {
    "none": lambda old, new: new,
    "add": operator.add,
    "mul": operator.mul,
    "max": largest,
    "min": smallest,
}


@emits("ScatterElements", "Scatter")
def scatter_elements(ctx: Emitter, node: ir.Node) -> Result:
    """The data, with each update written at its own position but for the one axis that its index names."""
    data, indices, updates = node.inputs[:3]
    axis = ctx.axis(get_int(node, "axis", 0), ctx.rank(data))
    extents = ctx.shape(indices)
    require_same_shape(ctx, extents, ctx.shape(updates), "sizes of indices and updates")
    for i, (extent, size) in enumerate(zip(extents, ctx.shape(data), strict=True)):
        if i != axis:
            require(ctx, tirx.max(extent, size), size, "sizes of the indices, at most those of the data,")
    combine = _reduction(node)

    def build(x: te.Tensor, at: te.Tensor, new: te.Tensor) -> te.Tensor:
        def body(ins: list[tirx.Var], outs: list[tirx.Var]) -> tirx.Stmt:
            out = outs[0]

            def write(index: list[tirx.Expr]) -> tirx.Stmt:
                place = prim(fetch(ins[1], index))
                target = [*index[:axis], place, *index[axis + 1 :]]
                return store(out, combine(fetch(out, target), fetch(ins[2], index)), target)

            independent = [i for i in range(len(at.shape)) if i != axis]
            return sequence(copied(ins[0], out), nest(at.shape, write, parallel=independent[:1]))

        return procedure("scatter_elements", [x, at, new], [(x.shape, str(x.dtype))], body)[0]

    places = checked_places(ctx, indices, [ctx.shape(data)[axis]])
    return ctx.te(build, ctx.x(data), places, ctx.x(updates))


@emits("ScatterND")
def scatter_nd(ctx: Emitter, node: ir.Node) -> Result:
    """The data, with slices written at the positions that the last axis of the indices holds."""
    data, indices, updates = node.inputs[:3]
    named = static_int(ctx.shape(indices)[-1])
    if named is None:
        raise Refused("the number of indices depends on a symbolic size")
    combine = _reduction(node)
    slices = [*ctx.shape(indices)[:-1], *ctx.shape(data)[named:]]
    require_same_shape(ctx, slices, ctx.shape(updates), "sizes of the slices and of the updates")

    def build(x: te.Tensor, at: te.Tensor, new: te.Tensor) -> te.Tensor:
        outer = len(at.shape) - 1

        def body(ins: list[tirx.Var], outs: list[tirx.Var]) -> tirx.Stmt:
            out = outs[0]

            def write(index: list[tirx.Expr]) -> tirx.Stmt:
                places = [prim(fetch(ins[1], [*index[:outer], prim(k)])) for k in range(named)]
                target = [*places, *index[outer:]]
                return store(out, combine(fetch(out, target), fetch(ins[2], index)), target)

            return sequence(copied(ins[0], out), nest([*at.shape[:-1], *x.shape[named:]], write))

        return procedure("scatter_nd", [x, at, new], [(x.shape, str(x.dtype))], body)[0]

    places = checked_places(ctx, indices, ctx.shape(data)[:named])
    return ctx.te(build, ctx.x(data), places, ctx.x(updates))


def _reduction(node: ir.Node) -> Callable[[tirx.Expr, tirx.Expr], tirx.Expr]:
    name = get_str(node, "reduction", "none")
    if name not in _REDUCTIONS:
        raise Refused(f"reduction {name!r}")

    def combine(old: tirx.Expr, new: tirx.Expr) -> tirx.Expr:
        dtype = scalar_type(old)
        wide = wider(dtype) if name != "none" else dtype
        return cast(_REDUCTIONS[name](cast(old, wide), cast(new, wide)), dtype)

    return combine
