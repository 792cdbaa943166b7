"""Einsum as matrix products, and determinants."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir
from tvm import relax, te, tirx

from backends.relax.attributes import get_str
from backends.relax.contraction import FLOATS, product
from backends.relax.emitter import Emitter
from backends.relax.procedure import copied, fetch, loop, nest, procedure, sequence, store, when
from backends.relax.registry import emits
from backends.relax.scalars import cast, wider
from backends.relax.values import Refused, Result, prim, static_int


@dataclass(frozen=True)
class Term:
    """An operand and the labels of its axes: letters, and `.0`, `.1`... from the end for those of an ellipsis."""

    expr: relax.Expr
    labels: tuple[str, ...]

    def size(self, label: str) -> tirx.Expr:
        """The size of the axis with that label."""
        return self.expr.ty.shape.values[self.labels.index(label)]


@emits("Einsum")
def einsum(ctx: Emitter, node: ir.Node) -> Result:
    """Operands are contracted from left to right, each time by one batched matrix product."""
    equation = get_str(node, "equation", "").replace(" ", "")
    operands = [ctx.x(v) for v in node.inputs]
    inputs, output = _labels(equation, [o.ty.ndim for o in operands])
    terms = _without_broadcasts([Term(o, ls) for o, ls in zip(operands, inputs, strict=True)])
    kept = [_projected(ctx, t, _needed(terms, i, output)) for i, t in enumerate(terms)]
    result = kept[0]
    for position, term in enumerate(kept[1:], 1):
        needed = set(output).union(*(t.labels for t in kept[position + 1 :]))
        result = _contracted(ctx, result, term, needed)
    return _ordered(ctx, result, output).expr


@emits("Det")
def determinant(ctx: Emitter, node: ir.Node) -> Result:
    """The determinant of each matrix, by Gaussian elimination with row pivots."""

    def build(x: te.Tensor) -> te.Tensor:
        batch, n, dtype = list(x.shape[:-2]), x.shape[-1], str(x.dtype)

        def body(ins: list[tirx.Var], outs: list[tirx.Var]) -> tirx.Stmt:
            work, result = outs
            eliminate = nest(batch, lambda index: _eliminate(work, result, index, n, dtype))
            return sequence(copied(ins[0], work), eliminate)

        return procedure("determinant", [x], [(x.shape, dtype), (batch, dtype)], body)[1]

    x = ctx.x(node.inputs[0])
    if str(x.ty.dtype) not in ("float32", "float64"):
        raise Refused(f"a determinant of {x.ty.dtype}")
    return ctx.te(build, x)


def _labels(equation: str, ranks: Sequence[int]) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
    left, arrow, right = equation.partition("->")
    parts = left.split(",")
    if len(parts) != len(ranks):
        raise Refused(f"{len(ranks)} operands for {equation!r}")
    widest = max((r - len(p.replace("...", "")) for p, r in zip(parts, ranks, strict=True) if "..." in p), default=0)
    inputs = [_expanded(p, r - len(p.replace("...", ""))) for p, r in zip(parts, ranks, strict=True)]
    if arrow:
        return inputs, _expanded(right, widest)
    letters = left.replace("...", "").replace(",", "")
    once = sorted(c for c in set(letters) if letters.count(c) == 1)
    return inputs, (*_expanded("..." if widest else "", widest), *once)


def _expanded(part: str, dots: int) -> tuple[str, ...]:
    before, ellipsis, after = part.partition("...")
    middle = [f".{dots - 1 - i}" for i in range(dots)] if ellipsis else []
    return (*before, *middle, *after)


def _without_broadcasts(terms: Sequence[Term]) -> list[Term]:
    """Axes of size 1 are dropped where another operand has the axis in full."""
    full = {label for t in terms for label in t.labels if static_int(t.size(label)) != 1}
    result = []
    for term in terms:
        sizes = zip(term.labels, term.expr.ty.shape.values, strict=True)
        dropped = [i for i, (label, d) in enumerate(sizes) if static_int(d) == 1 and label in full]
        labels = tuple(label for i, label in enumerate(term.labels) if i not in dropped)
        result.append(Term(relax.op.squeeze(term.expr, dropped), labels) if dropped else term)
    return result


def _needed(terms: Sequence[Term], position: int, output: Sequence[str]) -> set[str]:
    others = (t.labels for i, t in enumerate(terms) if i != position)
    return set(output).union(*others)


def _projected(ctx: Emitter, term: Term, needed: set[str]) -> Term:
    """The diagonal of repeated labels, summed over labels that nothing else needs."""
    labels = tuple(dict.fromkeys(label for label in term.labels if label in needed))
    if labels == term.labels:
        return Term(ctx.emit(term.expr), labels)
    summed = [label for label in dict.fromkeys(term.labels) if label not in needed]

    def build(x: te.Tensor) -> te.Tensor:
        size = dict(zip(term.labels, x.shape, strict=True))
        axes = {label: te.reduce_axis((0, size[label]), name="k") for label in summed}
        wide = wider(str(x.dtype))

        def element(*index: tirx.Expr) -> tirx.Expr:
            place = {**dict(zip(labels, index, strict=True)), **axes}
            value = x(*(place[label] for label in term.labels))
            return te.sum(cast(value, wide), axis=list(axes.values())) if axes else value

        total = te.compute([size[label] for label in labels], element, name="einsum")
        return te.compute(total.shape, lambda *i: cast(total(*i), str(x.dtype)), name="project")

    return Term(ctx.te(build, ctx.emit(term.expr)), labels)


def _contracted(ctx: Emitter, a: Term, b: Term, needed: set[str]) -> Term:
    """Shared labels that are still needed are batch axes, the other shared ones are summed over."""
    shared = [label for label in a.labels if label in b.labels]
    batch, summed = [s for s in shared if s in needed], [s for s in shared if s not in needed]
    rows = [label for label in a.labels if label not in shared]
    columns = [label for label in b.labels if label not in shared]
    left = _grouped(ctx, _ordered(ctx, a, [*batch, *rows, *summed]), len(batch), len(rows))
    right = _grouped(ctx, _ordered(ctx, b, [*batch, *summed, *columns]), len(batch), len(summed))
    total = _matmul(ctx, left, right)
    sizes = [*(a.size(label) for label in [*batch, *rows]), *(b.size(label) for label in columns)]
    return Term(ctx.emit(relax.op.reshape(total, relax.ShapeExpr(sizes))), (*batch, *rows, *columns))


def _matmul(ctx: Emitter, left: relax.Expr, right: relax.Expr) -> relax.Var:
    if str(left.ty.dtype) in FLOATS:
        return product(ctx, left, right, right.ty.shape.values[-1], None)
    return ctx.emit(relax.op.matmul(left, right))


def _ordered(ctx: Emitter, term: Term, labels: Sequence[str]) -> Term:
    order = [term.labels.index(label) for label in labels]
    if order == list(range(len(order))):
        return term
    return Term(ctx.emit(relax.op.permute_dims(term.expr, order)), tuple(labels))


def _grouped(ctx: Emitter, term: Term, batch: int, first: int) -> relax.Expr:
    """[batch..., first..., rest...] -> [batch..., product of first, product of rest]."""
    sizes = list(term.expr.ty.shape.values)
    split = batch + first
    shape = [*sizes[:batch], math.prod(sizes[batch:split], start=prim(1)), math.prod(sizes[split:], start=prim(1))]
    return ctx.emit(relax.op.reshape(term.expr, relax.ShapeExpr(shape)))


def _eliminate(work: tirx.Var, result: tirx.Var, batch: list[tirx.Expr], n: tirx.Expr, dtype: str) -> tirx.Stmt:
    """The determinant of one matrix; `work` holds a copy of it, `result` the product of the pivots so far."""

    def at(i: tirx.Expr, j: tirx.Expr) -> tuple[tirx.Expr, ...]:
        return (*batch, i, j)

    def scale(factor: tirx.Expr) -> tirx.Stmt:
        return store(result, fetch(result, batch) * factor, batch)

    def exchange(k: tirx.Expr, i: tirx.Expr) -> tirx.Stmt:
        """Rows are exchanged, one of them with its sign changed, so that the determinant stays."""

        def swap(j: tirx.Expr) -> tirx.Stmt:
            upper = tirx.Var("upper", dtype)
            stores = sequence(store(work, fetch(work, at(i, j)), at(k, j)), store(work, -upper, at(i, j)))
            return sequence(tirx.Bind(upper, fetch(work, at(k, j))), stores)

        return when(tirx.abs(fetch(work, at(i, k))) > tirx.abs(fetch(work, at(k, k))), loop(n, swap))

    def clear(k: tirx.Expr, i: tirx.Expr) -> tirx.Stmt:
        def subtract(j: tirx.Expr) -> tirx.Stmt:
            column = n - 1 - j
            ratio = fetch(work, at(i, k)) / fetch(work, at(k, k))
            return store(work, fetch(work, at(i, column)) - ratio * fetch(work, at(k, column)), at(i, column))

        return loop(n - k, subtract)

    def step(k: tirx.Expr) -> tirx.Stmt:
        pivot = fetch(work, at(k, k))
        below = n - 1 - k
        return sequence(
            loop(below, lambda r: exchange(k, k + 1 + r)),
            scale(pivot),
            when(tirx.NE(pivot, tirx.const(0, dtype)), loop(below, lambda r: clear(k, k + 1 + r))),
        )

    return sequence(store(result, tirx.const(1, dtype), batch), loop(n, step))
