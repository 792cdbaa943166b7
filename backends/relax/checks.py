"""What must hold of the symbolic sizes, and only a run can tell.

An emitter that relies on two sizes being equal says so with `require`. What can be proved costs nothing; what cannot
becomes part of the plan, and the run raises an error before the step that relies on it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from tvm import relax, sym, te, tirx

from backends.relax.forms import sizes_of
from backends.relax.known import meant, simplified
from backends.relax.plan import Check
from backends.relax.reads import reaches
from backends.relax.size_formula import formula
from backends.relax.values import Refused, prim, static_int

if TYPE_CHECKING:
    from backends.relax.emitter import Emitter


def require(ctx: Emitter, left: tirx.Expr | int, right: tirx.Expr | int, what: str, *, or_one: bool = False) -> None:
    """Demand that two sizes are equal.

    Args:
        ctx: the emitter.
        left: a size, as an expression over the symbolic ones.
        right: another.
        what: what the two are, for the text of the error.
        or_one: whether `left` may be 1 instead.

    Raises:
        Refused: they never are.
    """
    a, b = (simplified(ctx, meant(ctx, size)) for size in (left, right))
    difference = static_int(simplified(ctx, a - b))
    if difference == 0 or (or_one and static_int(a) == 1):
        return
    if difference is not None and not (or_one and static_int(a) is None):
        raise Refused(f"{what}: {a} and {b}")
    check = Check(ctx.node_name, what, formula(a), formula(b), or_one)
    if not any((c.left, c.right, c.or_one) == (check.left, check.right, or_one) for c in ctx.checks):
        ctx.checks.append(check)


def require_at_least(ctx: Emitter, least: int, sizes: Iterable[tirx.Expr], what: str) -> None:
    """Demand that no size is smaller."""
    for size in sizes:
        require(ctx, size, tirx.max(prim(size), prim(least)), f"{what}, which must be at least {least}")


def require_reads_inside(ctx: Emitter, outputs: Sequence[te.Tensor]) -> None:
    """Demand that a kernel goes over no more elements of an operand's axis than it has."""
    for extent, size in reaches(outputs):
        require(ctx, tirx.max(prim(extent), prim(size)), size, "the elements that are read of an axis, and its size")


def require_same_shape(ctx: Emitter, left: Sequence[tirx.Expr], right: Sequence[tirx.Expr], what: str) -> None:
    """Demand that two shapes are equal.

    Raises:
        Refused: they never are.
    """
    if len(left) != len(right):
        raise Refused(f"{what}: ranks {len(left)} and {len(right)}")
    for a, b in zip(left, right, strict=True):
        require(ctx, a, b, what)


def require_same_count(
    ctx: Emitter, sizes: Sequence[tirx.Expr], target: Sequence[tirx.Expr], what: str = "numbers of elements"
) -> None:
    """Demand that tensors of these two shapes have equally many elements."""
    require(ctx, math.prod(sizes, start=prim(1)), math.prod(target, start=prim(1)), what)


def retyped(ctx: Emitter, expr: relax.Var, sizes: Sequence[tirx.Expr], what: str) -> relax.Var:
    """The same tensor with other expressions for its sizes, which the run finds to be the same.

    It is a reshape: TVM takes the symbols of a `match_cast` for new names of what they are matched with.
    """
    own = sizes_of(expr)
    for a, b in zip(own, sizes, strict=True):
        require(ctx, a, b, what)
    if all(sym.Analyzer().can_prove_equal(a, prim(b)) for a, b in zip(own, sizes, strict=True)):  # as TVM itself can
        return expr
    return ctx.emit(relax.op.reshape(expr, relax.ShapeExpr([prim(d) for d in sizes])))
