"""Small helpers to write down loop nests as TIR.

Every index is int64. A body is given as a Python function of the loop variable, so that what is unrolled in Python
(register tiles, the
taps of a window) and what is a loop in the generated code read alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import tvm_ffi
from tvm import sym, tirx
from tvm.ir import TensorLoad
from tvm.tirx import AllocBuffer, BufferLoad, BufferStore, Expr, For, ForKind, IfThenElse, SeqStmt, Stmt, Var

Index: TypeAlias = Any
"""An int64 expression or a Python integer."""


def i64(value: Index) -> Expr:
    """An int64 expression."""
    return tirx.const(value, "int64") if isinstance(value, int) else value


def known(value: Index) -> int | None:
    """The value of a constant expression, else None."""
    if isinstance(value, int):
        return value
    return int(value.value) if isinstance(value, tirx.IntImm) else None


def simplify(expr: Index) -> Expr:
    """The expression with its arithmetic done."""
    return sym.Analyzer().simplify(i64(expr))


def product(values: Sequence[Index]) -> Expr:
    """The product of sizes, simplified."""
    result: Expr = i64(1)
    for value in values:
        result = result * i64(value)
    return simplify(result)


def sequence(statements: Sequence[Stmt | None]) -> Stmt:
    """The statements one after the other."""
    real = [s for s in statements if s is not None]
    return real[0] if len(real) == 1 else SeqStmt(real) if real else tirx.Evaluate(tirx.const(0, "int32"))


def loop(
    extent: Index, body: Callable[[Expr], Stmt], kind: ForKind = ForKind.SERIAL, start: Index = 0, name: str = "i"
) -> Stmt | None:
    """A loop over [start, start + extent); no loop for an extent of one, nothing for zero."""
    size = known(extent)
    if size == 0:
        return None
    if size == 1:
        return body(i64(start))
    var = Var(name, "int64")
    return For(var, i64(start), i64(extent), kind, body(var))


def parallel(extent: Index, body: Callable[[Expr], Stmt], *, worthwhile: bool = True) -> Stmt | None:
    """A loop whose iterations are spread over the threads (a plain loop where that would cost more than it gives)."""
    return loop(extent, body, ForKind.PARALLEL if worthwhile else ForKind.SERIAL, name="task")


def vectorized(lanes: int, body: Callable[[Expr], Stmt]) -> Stmt | None:
    """A loop that becomes one vector operation."""
    return loop(lanes, body, ForKind.VECTORIZED if lanes > 1 else ForKind.SERIAL, name="lane")


def lanes_of(extent: Index, widest: int) -> list[tuple[int, int, int]]:
    """Cut a static extent into vector loops: (start, vectors, lanes), widest first, lanes a power of two."""
    size = known(extent)
    if size is None:
        raise ValueError("the extent is symbolic")
    result, start, lanes = [], 0, widest
    while size and lanes:
        if size // lanes:
            result.append((start, size // lanes, lanes))
            start += size // lanes * lanes
            size %= lanes
        lanes //= 2
    return result


def over_vectors(extent: Index, widest: int, body: Callable[[Expr, int], Stmt]) -> Stmt:
    """Cover [0, extent) by `body(first, lanes)`; the rest in narrower vectors, or singly if the extent is symbolic."""
    if known(extent) is None:
        vectors = tirx.floordiv(i64(extent), widest)
        done = vectors * widest
        return sequence(
            [
                loop(vectors, lambda v: body(v * widest, widest), name="vector"),
                loop(i64(extent) - done, lambda r: body(done + r, 1), name="rest"),
            ]
        )
    return sequence(
        [
            loop(vectors, lambda v, s=start, n=lanes: body(i64(s) + v * n, n), name="vector")  # type: ignore[misc]
            for start, vectors, lanes in lanes_of(extent, widest)
        ]
    )


def local(shape: Sequence[Index], dtype: str, name: str) -> Var:
    """A buffer of the kernel's own: on the stack if it is below 1 KiB, else from TVM's workspace pool."""
    return tirx.decl_buffer([i64(s) for s in shape], dtype, name)


def allocate(buffers: Sequence[Var], body: Stmt) -> Stmt:
    """The body with the buffers allocated around it."""
    return sequence([*(AllocBuffer(b) for b in buffers), body])


def prefetch(load: BufferLoad) -> Stmt:
    """Ask for the cache line of an element that is read soon; nothing happens where the address is none of ours."""
    arguments = [
        tirx.address_of(load),
        *(tirx.const(v, "int32") for v in (0, 2, 1)),
    ]  # to read, into the second-level cache, data
    return tirx.Evaluate(tirx.call_intrin("void", "tirx.prefetch", *arguments))


def bind(values: Sequence[Index], body: Callable[[list[Expr]], Stmt]) -> Stmt:
    """The body with each value computed once; a constant or a variable stays what it is.

    A value goes through a buffer that LLVM makes a register of: TVM looks through the variable of a `Bind`, and takes
    minutes to find out about products and quotients of symbols what it does not need to know.
    """
    statements: list[Stmt] = []
    names: list[Expr] = []
    for value in values:
        if known(value) is not None or isinstance(value, Var):
            names.append(i64(value))
            continue
        buffer = local([1], "int64", "bound")
        statements += [AllocBuffer(buffer), BufferStore(buffer, i64(value), [i64(0)])]
        names.append(BufferLoad(buffer, [i64(0)]))
    return sequence([*statements, body(names)])


def unflatten(index: Expr, extents: Sequence[Index]) -> list[Expr]:
    """The coordinates of a row-major position."""
    result: list[Expr] = []
    for position, extent in enumerate(reversed(extents)):
        if position == len(extents) - 1:
            result.append(index)
        elif known(extent) == 1:
            result.append(i64(0))
        else:
            result.append(tirx.floormod(index, i64(extent)))
            index = tirx.floordiv(index, i64(extent))
    return result[::-1]


def substitute(
    expr: Expr, variables: dict[Var, Expr], loads: Callable[[TensorLoad], Expr | None] | None = None
) -> Expr:
    """Replace variables, and (bottom up) the loads for which `loads` gives something."""

    def variable(var: Var) -> Expr:
        return variables.get(var, var)

    def load(node: TensorLoad) -> Expr:
        new = loads(node) if loads is not None else None
        return node if new is None else new

    return tvm_ffi.structural_map(expr, [(TensorLoad, load), (Var, variable)])


def loads_of(expr: Expr) -> list[TensorLoad]:
    """Every load in the expression."""
    found: list[TensorLoad] = []
    tvm_ffi.structural_walk(expr, (TensorLoad, lambda node: found.append(node)))
    return found


def uses(expr: Expr, var: Var) -> bool:
    """Whether the variable occurs in the expression."""
    found: list[Var] = []
    tvm_ffi.structural_walk(expr, (Var, lambda v: found.append(v) if v.same_as(var) else None))
    return bool(found)


__all__ = [
    "BufferLoad",
    "BufferStore",
    "Expr",
    "ForKind",
    "IfThenElse",
    "Index",
    "Stmt",
    "TensorLoad",
    "Var",
    "allocate",
    "bind",
    "i64",
    "known",
    "lanes_of",
    "loads_of",
    "local",
    "loop",
    "over_vectors",
    "parallel",
    "prefetch",
    "product",
    "sequence",
    "simplify",
    "substitute",
    "unflatten",
    "uses",
    "vectorized",
]
