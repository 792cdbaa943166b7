"""Order along an axis: ArgMax, ArgMin, TopK, and running sums and products."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence

import onnx_ir as ir
from tvm import te, tirx

from backends.relax.attributes import get_int
from backends.relax.checks import require, require_at_least
from backends.relax.emitter import Emitter
from backends.relax.layout import laid
from backends.relax.ops.elementwise import largest, smallest
from backends.relax.ops.reduction import Reduction, combined, highest, without_axes
from backends.relax.procedure import fetch, loop, nest, procedure, sequence, store, when
from backends.relax.registry import emits
from backends.relax.scalars import cast, is_float, lowest, wider
from backends.relax.values import Refused, Result, prim, static_int

_PLACE = "int32"


@emits("ArgMax", "ArgMin")
def arg_extremum(ctx: Emitter, node: ir.Node) -> Result:
    """Where the largest (smallest) element of an axis is: the first of equal ones, or the last; a NaN beats all.

    Two plain reductions, which vectorise: the extremum, then the first (last) place that holds it.
    """
    x = node.inputs[0]
    axis = ctx.axis(get_int(node, "axis", 0), ctx.rank(x))
    last = get_int(node, "select_last_index", 0) == 1
    extremum = (largest, lowest) if node.op_type == "ArgMax" else (smallest, highest)
    placing = Reduction(tirx.max, lowest) if last else Reduction(tirx.min, highest)
    require_at_least(ctx, 1, [ctx.shape(x)[axis]], "the size of the axis that is searched")
    source = laid(ctx, x)

    def build(tensor: te.Tensor) -> te.Tensor:
        place = source.place(axis)
        dtype = wider(str(tensor.dtype))
        best = combined(tensor, [place], Reduction(*extremum), dtype, "extremum")

        def candidate(value: tirx.Expr, index: Sequence[tirx.Expr]) -> tirx.Expr:
            top = best(*(prim(0) if i == place else p for i, p in enumerate(index)))
            found = tirx.EQ(value, top)
            if is_float(value):
                found = tirx.any(found, tirx.all(tirx.isnan(value), tirx.isnan(top)))
            return tirx.Select(found, cast(index[place], _PLACE), placing.neutral(_PLACE))

        places = combined(tensor, [place], placing, dtype, "place", candidate, _PLACE)
        return te.compute(places.shape, lambda *i: cast(places(*i), "int64"), name="arg_extremum")

    return without_axes(ctx, node, source, [axis], ctx.te(build, source.expr))


@emits("TopK")
def top_k(ctx: Emitter, node: ir.Node) -> list[Result]:
    """The k largest (smallest) elements of an axis, in order, and where they are; the first of equal ones comes first.

    Each element is inserted into the sorted list of the best ones so far; most are turned away by its last entry.
    """
    x = node.inputs[0]
    axis = ctx.axis(get_int(node, "axis", -1), ctx.rank(x))
    count = ctx.ints(node.inputs[1])
    if count is None:
        raise Refused("k is computed at run time")
    require(ctx, tirx.max(count[0], ctx.shape(x)[axis]), ctx.shape(x)[axis], "k and the elements that there are")
    wants_largest = get_int(node, "largest", 1) == 1

    def build(tensor: te.Tensor, k: tirx.Expr) -> list[te.Tensor]:
        shape = [k if i == axis else d for i, d in enumerate(tensor.shape)]
        others = [d for i, d in enumerate(tensor.shape) if i != axis]

        def body(ins: list[tirx.Var], outs: list[tirx.Var]) -> tirx.Stmt:
            def row(index: list[tirx.Expr]) -> tirx.Stmt:
                return _best_of_row(ins[0], outs, tensor.shape[axis], k, _spliced(index, axis), wants_largest)

            return nest(others, row, parallel=(0,))

        return procedure("top_k", [tensor], [(shape, str(tensor.dtype)), (shape, "int64")], body)

    both = ctx.te(build, ctx.x(x), count[0])
    return [both[0], both[1]]


@emits("CumSum", "CumProd")
def cumulative(ctx: Emitter, node: ir.Node) -> Result:
    """The sum (product) of all elements up to each one; without it if exclusive, from the end if reverse."""
    x = node.inputs[0]
    rank = ctx.rank(x)
    axis = 0 if rank == 1 else ctx.axis((ctx.static_ints(node.inputs[1], "the axis") or [0])[0], rank)
    exclusive, reverse = get_int(node, "exclusive", 0) == 1, get_int(node, "reverse", 0) == 1
    combine, neutral = (operator.add, 0) if node.op_type == "CumSum" else (operator.mul, 1)

    def build(tensor: te.Tensor) -> te.Tensor:
        size, dtype = tensor.shape[axis], str(tensor.dtype)

        def body(ins: list[tirx.Var], outs: list[tirx.Var]) -> tirx.Stmt:
            def at(index: list[tirx.Expr], step: tirx.Expr) -> tuple[tirx.Expr, ...]:
                return (*index[:axis], size - 1 - step if reverse else step, *index[axis:])

            def first(index: list[tirx.Expr]) -> tirx.Stmt:
                place = at(index, prim(0))
                return store(outs[0], tirx.const(neutral, dtype) if exclusive else fetch(ins[0], place), place)

            def following(index: list[tirx.Expr]) -> tirx.Stmt:
                step, rest = index[axis] + 1, [*index[:axis], *index[axis + 1 :]]
                before, place = at(rest, step - 1), at(rest, step)
                value = combine(fetch(outs[0], before), fetch(ins[0], before if exclusive else place))
                return store(outs[0], value, place)

            others = [d for i, d in enumerate(tensor.shape) if i != axis]
            steps = [size - 1 if i == axis else d for i, d in enumerate(tensor.shape)]
            start = when(size > 0, nest(others, first))
            return sequence(start, nest(steps, following, parallel=(0,) if axis > 0 else ()))

        return procedure("cumulative", [tensor], [(tensor.shape, dtype)], body)[0]

    if static_int(ctx.shape(x)[axis]) == 0:
        return ctx.x(x)
    return ctx.te(build, ctx.x(x))


Place = Callable[[tirx.Expr], tuple[tirx.Expr, ...]]


def _spliced(index: Sequence[tirx.Expr], axis: int) -> Place:
    """The position in a tensor whose other axes are at `index`."""
    return lambda place: (*index[:axis], place, *index[axis:])


def _best_of_row(
    source: tirx.Var, outs: Sequence[tirx.Var], size: tirx.Expr, k: tirx.Expr, at: Place, wants_largest: bool
) -> tirx.Stmt:
    values, places = outs

    def comes_before(a: tirx.Expr, b: tirx.Expr) -> tirx.Expr:
        return a > b if wants_largest else a < b

    def insert(i: tirx.Expr) -> tirx.Stmt:
        candidate = fetch(source, at(i))
        filled = tirx.min(i, k)

        def shift(step: tirx.Expr) -> tirx.Stmt:
            """From the end of the list: what the candidate comes before moves back by one, if there is room."""
            place = filled - 1 - step
            beaten = comes_before(candidate, fetch(values, at(place)))
            moves = sequence(
                store(values, fetch(values, at(place)), at(place + 1)),
                store(places, fetch(places, at(place)), at(place + 1)),
            )
            return sequence(when(tirx.all(beaten, place + 1 < k), moves), when(beaten, put(place)))

        def put(place: tirx.Expr) -> tirx.Stmt:
            return sequence(store(values, candidate, at(place)), store(places, i, at(place)))

        enter = sequence(when(filled < k, put(filled)), loop(filled, shift))
        worst = fetch(values, at(tirx.max(filled - 1, prim(0))))
        return when(tirx.any(filled < k, comes_before(candidate, worst)), enter)

    return loop(size, insert)
