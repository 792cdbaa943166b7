"""Reductions: one stage that combines the elements, and where needed one that finishes the result.

float16 and bfloat16 are summed in float32. NaN anywhere gives NaN. An empty set gives the neutral element of the
reduction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import onnx_ir as ir
from tvm import relax, te, tirx

from backends.relax.attributes import get_int
from backends.relax.emitter import Emitter
from backends.relax.known import Elements, known, simplified, symbolic
from backends.relax.layout import Laid, laid
from backends.relax.ops.cast import converted
from backends.relax.ops.elementwise import largest, smallest
from backends.relax.ops.shape import given_axes
from backends.relax.pointwise import pointwise
from backends.relax.registry import emits
from backends.relax.scalars import cast, is_float, is_unsigned, lowest, one_like, scalar_type, wider, zero_like
from backends.relax.values import Result, prim, static_int

Scalar = Callable[[tirx.Expr], tirx.Expr]


def _unchanged(x: tirx.Expr) -> tirx.Expr:
    return x


@dataclass(frozen=True)
class Reduction:
    """What an operator does: `finish(combine of element(x), count)`.

    Attributes:
        combine: two partial results to one.
        neutral: the result over an empty set, for a dtype.
        element: what is done to each element first.
        finish: what is done to the result, given the number of elements.
    """

    combine: Callable[[tirx.Expr, tirx.Expr], tirx.Expr]
    neutral: Callable[[str], tirx.Expr]
    element: Scalar = _unchanged
    finish: Callable[[tirx.Expr, tirx.Expr], tirx.Expr] | None = None


def _zero(dtype: str) -> tirx.Expr:
    return tirx.const(0, dtype)


def _add(a: tirx.Expr, b: tirx.Expr) -> tirx.Expr:
    return a + b


def _absolute(x: tirx.Expr) -> tirx.Expr:
    return x if is_unsigned(x) else tirx.abs(x)


def _square(x: tirx.Expr) -> tirx.Expr:
    return x * x


def _root(total: tirx.Expr, _: tirx.Expr) -> tirx.Expr:
    return tirx.sqrt(_real(total))


def _logarithm(total: tirx.Expr, _: tirx.Expr) -> tirx.Expr:
    return tirx.log(_real(total))


def _mean(total: tirx.Expr, count: tirx.Expr) -> tirx.Expr:
    n = cast(count, scalar_type(total))
    return total / n if is_float(total) else tirx.truncdiv(total, tirx.max(n, one_like(n)))


def _real(x: tirx.Expr) -> tirx.Expr:
    return x if is_float(x) else tirx.Cast("float64", x)


def highest(dtype: str) -> tirx.Expr:
    """What no element is above: infinity, or the largest integer."""
    return tirx.const(float("inf"), dtype) if "float" in dtype else tirx.max_value(dtype)


_REDUCTIONS = {
    "ReduceSum": Reduction(_add, _zero),
    "ReduceMean": Reduction(_add, _zero, finish=_mean),
    "ReduceProd": Reduction(lambda a, b: a * b, lambda dtype: tirx.const(1, dtype)),
    "ReduceMax": Reduction(largest, lowest),
    "ReduceMin": Reduction(smallest, highest),
    "ReduceL1": Reduction(_add, _zero, _absolute),
    "ReduceL2": Reduction(_add, _zero, _square, _root),
    "ReduceSumSquare": Reduction(_add, _zero, _square),
    "ReduceLogSum": Reduction(_add, _zero, finish=_logarithm),
}


@emits(*_REDUCTIONS)
def reduce_elements(ctx: Emitter, node: ir.Node) -> Result:
    """The combination of the elements along the given axes."""
    x = node.inputs[0]
    reduction = _REDUCTIONS[node.op_type]
    axes = reduced_axes(ctx, node)
    folded = _folded(ctx, node, reduction, axes)
    if folded is not None:
        return folded
    name = node.op_type.lower()
    if not axes:
        return pointwise(ctx, [x], lambda v: _finished(reduction, reduction.element(v), prim(1)), name)
    source = laid(ctx, x)

    def build(tensor: te.Tensor) -> te.Tensor:
        places = [source.place(a) for a in axes]
        count = math.prod((tensor.shape[p] for p in places), start=prim(1))
        dtype = str(tensor.dtype)
        total = combined(tensor, places, reduction, "uint8" if dtype == "bool" else wider(dtype), name)
        if reduction.finish is None and scalar_type(total) == dtype:
            return total
        return te.compute(
            total.shape, lambda *i: converted(_finished(reduction, total(*i), count), dtype), name="finish"
        )

    return without_axes(ctx, node, source, axes, ctx.te(build, source.expr))


@emits("ReduceLogSumExp")
def reduce_log_sum_exp(ctx: Emitter, node: ir.Node) -> Result:
    """log(sum(exp(x))), with the largest element taken out of the sum so that nothing overflows."""
    x = node.inputs[0]
    axes = reduced_axes(ctx, node)
    if not axes:
        return pointwise(ctx, [x], lambda v: cast(tirx.log(tirx.exp(_real(v))), scalar_type(v)), "log_sum_exp")
    source = laid(ctx, x)

    def build(tensor: te.Tensor) -> te.Tensor:
        places = [source.place(a) for a in axes]
        dtype = str(tensor.dtype)
        wide = wider(dtype) if "float" in dtype else "float64"
        top = combined(tensor, places, _REDUCTIONS["ReduceMax"], wide, "largest")

        def shift(index: Sequence[tirx.Expr]) -> tirx.Expr:
            kept = [prim(0) if i in places else p for i, p in enumerate(index)]
            peak = top(*kept)
            infinite = tirx.EQ(tirx.abs(peak), tirx.const(float("inf"), wide))
            return tirx.Select(infinite, zero_like(peak), peak)

        total = combined(
            tensor, places, Reduction(_add, _zero), wide, "total", lambda v, index: tirx.exp(v - shift(index))
        )
        return te.compute(total.shape, lambda *i: cast(tirx.log(total(*i)) + shift(i), dtype), name="log_sum_exp")

    return without_axes(ctx, node, source, axes, ctx.te(build, source.expr))


def reduced_axes(ctx: Emitter, node: ir.Node) -> list[int]:
    """The axes of a reduction, counted from the front; all of them where none is given (unless that means none)."""
    rank = ctx.rank(node.inputs[0])
    axes = given_axes(ctx, node)
    if not axes and get_int(node, "noop_with_empty_axes", 0) == 0:
        axes = list(range(rank))
    return sorted({ctx.axis(a, rank) for a in axes or []})


def combined(
    tensor: te.Tensor,
    places: Sequence[int],
    reduction: Reduction,
    dtype: str,
    name: str,
    element: Callable[[tirx.Expr, Sequence[tirx.Expr]], tirx.Expr] | None = None,
    result: str | None = None,
) -> te.Tensor:
    """The stage that combines the elements along some axes, which stay with size 1.

    Args:
        tensor: what is reduced.
        places: the axes.
        reduction: how.
        dtype: the type to which elements are cast first.
        name: what the stage is called.
        element: what is done to an element, given its position, in place of the reduction's own.
        result: the type of what `element` gives, where it is not `dtype`.
    """
    shape = [prim(1) if i in places else d for i, d in enumerate(tensor.shape)]
    if any(static_int(tensor.shape[p]) == 0 for p in places):
        return te.compute(shape, lambda *_: reduction.neutral(result or dtype), name=name)
    axes = {p: te.reduce_axis((0, tensor.shape[p]), name=f"k{p}") for p in places}
    reducer = te.comm_reducer(lambda a, b: reduction.combine(a, b), reduction.neutral, name=name)

    def total(*index: tirx.Expr) -> tirx.Expr:
        full = [axes.get(i, p) for i, p in enumerate(index)]
        value = cast(tensor(*full), dtype)
        value = reduction.element(value) if element is None else element(value, full)
        return reducer(value, axis=list(axes.values()))

    return te.compute(shape, total, name=name)


def without_axes(ctx: Emitter, node: ir.Node, source: Laid, axes: Sequence[int], reduced: relax.Var) -> Result:
    """A reduced tensor with its axes of size 1, or without them, as `keepdims` says."""
    if get_int(node, "keepdims", 1) == 1:
        return source.result(reduced)
    left = [a for a in range(source.rank) if a not in axes]
    if sorted(left, key=source.place) != left:
        reduced = ctx.emit(relax.op.permute_dims(reduced, source.onnx(range(source.rank))))
    sizes = ctx.shape(node.inputs[0])
    return relax.op.reshape(reduced, relax.ShapeExpr([sizes[a] for a in left]))


def _finished(reduction: Reduction, total: tirx.Expr, count: tirx.Expr) -> tirx.Expr:
    return total if reduction.finish is None else reduction.finish(total, count)


def _folded(ctx: Emitter, node: ir.Node, reduction: Reduction, axes: Sequence[int]) -> Result | None:
    """The reduction of known integers."""
    array = known(ctx, node.inputs[0])
    dtype = ctx.dtype(node.inputs[0])
    if array is None or reduction.finish is not None or dtype not in ("int32", "int64"):
        return None
    kept = [i for i in range(array.ndim) if i not in axes]
    rows = array.transpose([*kept, *axes]).reshape(*(array.shape[i] for i in kept), -1)
    result: Elements = np.empty(rows.shape[:-1], object)
    for place in np.ndindex(result.shape):
        values = [reduction.element(e) for e in rows[place]]
        result[place] = simplified(ctx, reduce(reduction.combine, values, prim(reduction.neutral("int64"))))
    if get_int(node, "keepdims", 1) == 1:
        result = result.reshape([1 if i in axes else d for i, d in enumerate(array.shape)])
    return symbolic(result, dtype)
