"""Kernels with control flow of their own, for what no formula over an output element expresses: scatter, top-k, scans.

A body is written as nested Python functions of the loop variables; every index is int64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm import te, tirx
from tvm.ir import StringImm
from tvm.tirx import AssertStmt, BufferLoad, BufferStore, For, ForKind, IfThenElse, SeqStmt, Stmt, Var

from backends.relax.values import prim

Body = Callable[[list[Var], list[Var]], Stmt]
"""From the input buffers and the output buffers to a statement."""


def procedure(
    name: str, inputs: Sequence[te.Tensor], outputs: Sequence[tuple[Sequence[tirx.Expr], str]], body: Body
) -> list[te.Tensor]:
    """A stage that runs a statement.

    Args:
        name: what it is called.
        inputs: the tensors it reads.
        outputs: shape and dtype of each tensor it writes.
        body: gives the statement.
    """
    # Without layouts: their symbolic sizes are not renewed with those of the shapes, and would be undefined.
    given = [tirx.decl_buffer(t.shape, str(t.dtype), f"{name}_in{i}", layout=None) for i, t in enumerate(inputs)]
    made = [
        tirx.decl_buffer(list(shape), dtype, f"{name}_out{i}", layout=None) for i, (shape, dtype) in enumerate(outputs)
    ]
    result = te.extern(
        [list(shape) for shape, _ in outputs],
        list(inputs),
        body,
        name=name,
        dtype=[dtype for _, dtype in outputs],
        in_buffers=given,
        out_buffers=made,
    )
    return list(result) if isinstance(result, (list, tuple)) else [result]


def loop(extent: tirx.Expr | int, body: Callable[[tirx.Expr], Stmt], *, parallel: bool = False) -> Stmt:
    """The body for 0, 1, ... below the extent."""
    var = tirx.Var("i", "int64")
    return For(var, prim(0), prim(extent), ForKind.PARALLEL if parallel else ForKind.SERIAL, body(var))


def nest(
    extents: Sequence[tirx.Expr | int],
    body: Callable[[list[tirx.Expr]], Stmt],
    *,
    parallel: Sequence[int] = (),
    outer: Sequence[tirx.Expr] = (),
) -> Stmt:
    """Nested loops; the first that is listed in `parallel` is spread over the threads."""
    depth = len(outer)
    if depth == len(extents):
        return body(list(outer))
    spread = depth in parallel
    return loop(
        extents[depth],
        lambda i: nest(extents, body, parallel=() if spread else parallel, outer=[*outer, i]),
        parallel=spread,
    )


def sequence(*statements: Stmt) -> Stmt:
    """One after the other."""
    return statements[0] if len(statements) == 1 else SeqStmt(list(statements))


def store(buffer: Var, value: tirx.Expr, index: Sequence[tirx.Expr]) -> Stmt:
    """Write one element."""
    return BufferStore(buffer, value, [prim(i) for i in index])


def fetch(buffer: Var, index: Sequence[tirx.Expr]) -> tirx.Expr:
    """Read one element."""
    return BufferLoad(buffer, [prim(i) for i in index])


def when(condition: tirx.Expr, then: Stmt) -> Stmt:
    """The statement where the condition holds."""
    return IfThenElse(condition, then, None)


def demand(condition: tirx.Expr, kind: str, text: str) -> Stmt:
    """Stop the run where the condition does not hold; `kind` is the name of Python's exception."""
    return AssertStmt(condition, StringImm(kind), [StringImm(text)])  # the order in which TVM's constructor takes them


def copied(source: Var, target: Var) -> Stmt:
    """Write every element of one buffer to another of the same shape."""
    return nest(list(target.shape), lambda i: store(target, fetch(source, i), i), parallel=(0,))
