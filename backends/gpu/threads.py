"""Small helpers to write down what the threads of a block do, beside those of `backends.relax.loops`.

Places in shared memory and in registers are int32: they fit, and 64-bit arithmetic takes a GPU two instructions or
more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from tvm import sym, tirx
from tvm.tirx import AllocBuffer, BufferLoad, BufferStore, Expr, For, ForKind, IfThenElse, Stmt, Var

from backends.relax.loops import known, sequence

__all__ = [
    "NAMED",
    "Place",
    "block_places",
    "cast",
    "gather",
    "holds",
    "i32",
    "named",
    "narrow",
    "ramp",
    "registers",
    "repeat",
    "repeat_in_groups",
    "scatter",
    "shared",
    "wide_index",
    "zeros",
]

_GROUP = 8
"""Turns of a loop that a compiler may write out."""
NAMED = "at"
"""What a register is called that holds an index; see `backends.gpu.narrow`."""

Place: TypeAlias = Any
"""An int32 expression or a Python integer."""


def i32(value: Place) -> Expr:
    """An int32 expression."""
    return tirx.const(value, "int32") if isinstance(value, int) else value


def narrow(value: Expr) -> Expr:
    """An index as int32, where it is known to be small."""
    size = known(value)
    if size is not None:
        return i32(size)
    if isinstance(value, tirx.Cast) and str(value.value.expr_ty()) == "int32":
        return value.value
    return tirx.Cast("int32", value)


def wide_index(value: Place) -> Expr:
    """An int32 place as the int64 index of a buffer in memory."""
    size = known(value)
    return tirx.const(size, "int64") if size is not None else tirx.Cast("int64", value)


def block_places(block: Expr, extents: Sequence[Expr], body: Callable[[list[Expr]], Stmt]) -> Stmt:
    """The body with the coordinates (int64) of a block in a row-major order.

    They are divided as int32, which the number of blocks fits in, and rounded towards zero, as none is negative: TVM
    cannot see that, and has to think of signs otherwise.
    """
    parts: list[Expr] = []
    rest = narrow(block)
    for position, extent in enumerate(reversed(extents)):
        if position == len(extents) - 1:
            parts.append(wide_index(rest))
        elif known(extent) == 1:
            parts.append(wide_index(0))
        else:
            parts.append(wide_index(tirx.truncmod(rest, narrow(extent))))
            rest = tirx.truncdiv(rest, narrow(extent))
    return named(parts[::-1], body)


def shared(size: int, dtype: str, name: str) -> Var:
    """A buffer of the block."""
    return tirx.decl_buffer([i32(size)], dtype, name, scope="shared")


def registers(size: int, dtype: str, name: str) -> Var:
    """A buffer of the thread: registers, as long as every place in it is a constant when loops are unrolled."""
    return tirx.decl_buffer([i32(size)], dtype, name, scope="local")


def named(values: Sequence[Expr], body: Callable[[list[Expr]], Stmt]) -> Stmt:
    """The body with each int64 value computed once; a constant or a variable stays what it is."""
    statements: list[Stmt] = []
    names: list[Expr] = []
    for value in values:
        if known(value) is not None or isinstance(value, Var):
            names.append(value)
            continue
        buffer = registers(1, "int64", NAMED)
        statements += [AllocBuffer(buffer), scatter(buffer, value, 0)]
        names.append(gather(buffer, 0))
    return sequence([*statements, body(names)])


def ramp(start: Place, lanes: int, step: int = 1) -> Expr:
    """The places of `lanes` neighbours, of the type of `start`."""
    start = i32(start)
    return tirx.Ramp(start, tirx.const(step, str(start.expr_ty())), lanes) if lanes > 1 else start


def gather(buffer: Var, start: Place, lanes: int = 1) -> Expr:
    """Neighbours of a flat buffer."""
    return BufferLoad(buffer, [ramp(start, lanes)])


def scatter(buffer: Var, value: Expr, start: Place, lanes: int = 1) -> Stmt:
    """Store neighbours to a flat buffer."""
    return BufferStore(buffer, value, [ramp(start, lanes)])


def cast(value: Expr, dtype: str, lanes: int = 1) -> Expr:
    """A scalar or a vector in another type."""
    wanted = dtype if lanes == 1 else f"{dtype}x{lanes}"
    return value if str(value.expr_ty()) == wanted else tirx.Cast(wanted, value)


def zeros(dtype: str, lanes: int = 1, value: float = 0) -> Expr:
    """The same number in every lane."""
    nothing = tirx.const(value, dtype)
    return tirx.Broadcast(nothing, lanes) if lanes > 1 else nothing


def repeat(
    count: Place, body: Callable[[Expr], Stmt], name: str = "i", *, unrolled: bool = False, rolled: bool = False
) -> Stmt | None:
    """A loop over [0, count) with an int32 counter; `rolled`: no compiler writes out its turns."""
    size = known(count)
    if size == 0:
        return None
    if size == 1:
        return body(i32(0))
    if unrolled and size is not None:
        return sequence([body(i32(i)) for i in range(size)])
    var = Var(name, "int32")
    return For(
        var, i32(0), i32(count), ForKind.SERIAL, body(var), annotations={"disable_unroll": True} if rolled else None
    )


def repeat_in_groups(count: int, body: Callable[[Expr], Stmt], name: str = "i") -> Stmt | None:
    """A loop over [0, count) of which NVIDIA's compiler writes out eight turns at a time, where these are a divisor.

    It writes out all of a loop's turns where their number is known, reads the shared memory of all before the first
    product, and spills what it has no registers for.
    """
    if count <= _GROUP or count % _GROUP:
        return repeat(count, body, name)
    group = Var(name, "int32")
    turns = repeat(_GROUP, lambda i: body(group * _GROUP + i), name)
    return For(group, i32(0), i32(count // _GROUP), ForKind.SERIAL, turns, annotations={"disable_unroll": True})


def holds(conditions: Sequence[Expr | None], then: Stmt, otherwise: Stmt | None = None) -> Stmt:
    """`then` where all conditions hold; those that are `None`, or can be proved, are not tested."""
    analyzer = sym.Analyzer()
    open_ = [c for c in conditions if c is not None and not analyzer.can_prove(c)]
    return IfThenElse(tirx.all(*open_), then, otherwise) if open_ else then
