"""Matrices, transposed in registers by squares of vectors.

In step s of log2(n), rows r and r + 2**s exchange the elements of which the column has bit s where the row lacks it
(Eklundh, A Fast Computer Method for Matrix Transposing, 1972). One element at a time would take a load and a store for
each; this takes log2(n) shuffles for each row of n.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx

from backends.relax.loops import (
    BufferLoad,
    BufferStore,
    Expr,
    Stmt,
    Var,
    allocate,
    i64,
    local,
    loop,
    over_vectors,
    sequence,
    simplify,
    vectorized,
)

__all__ = ["in_squares", "transposed"]


def transposed(
    lanes: int, row: Callable[[int], Expr], store: Callable[[int, Expr], Stmt], dtype: str = "float32"
) -> Stmt:
    """Read `lanes` rows of as many elements, and store the columns.

    Args:
        lanes: A power of two.
        row: Row r, a vector.
        store: Stores column c, a vector.
        dtype: Of the elements, 32 bits wide.
    """
    if lanes == 1:
        return store(0, row(0))
    everything = [tirx.Ramp(i64(0), i64(1), lanes)]
    now = [local([lanes], dtype, f"row{r}") for r in range(lanes)]
    buffers, statements = list(now), [BufferStore(b, row(r), everything) for r, b in enumerate(now)]
    distance = 1
    while distance < lanes:
        new = [local([lanes], dtype, f"step{distance}row{r}") for r in range(lanes)]
        for r in range(lanes):
            statements.append(BufferStore(new[r], _exchanged(now, r, distance, lanes), everything))
        buffers += new
        now, distance = new, 2 * distance
    statements += [store(c, BufferLoad(b, everything)) for c, b in enumerate(now)]
    return allocate(buffers, sequence(statements))


def in_squares(
    rows: Expr, size: int, lanes: int, square: Callable[[Expr, Expr], Stmt], single: Callable[[Expr, Expr], Stmt]
) -> Stmt:
    """Visit `rows` rows of `size` elements, in squares of `lanes` by `lanes` as far as they go.

    Args:
        rows: How many.
        size: Elements in a row.
        lanes: Of a vector.
        square: Its first row and element.
        single: An element.
    """
    whole = size - size % lanes
    groups = simplify(tirx.floordiv(rows, i64(lanes)))

    def elements(row: Expr, start: int) -> Stmt:
        def some(first: Expr, n: int) -> Stmt:
            return sequence([vectorized(n, lambda lane: single(row, start + first + lane))])

        return over_vectors(size - start, lanes, some)

    done = simplify(groups * lanes)
    squares = loop(
        groups, lambda g: sequence([loop(whole // lanes, lambda c: square(g * lanes, c * lanes), name="column")])
    )
    narrow = loop(done, lambda row: elements(row, whole), name="row") if whole < size else None
    rest = loop(simplify(rows - done), lambda row: elements(done + row, 0), name="row")
    return sequence([squares if whole else None, narrow, rest])


def _exchanged(rows: list[Var], r: int, distance: int, lanes: int) -> Expr:
    """Row r after an exchange with its partner at this distance."""
    lower, upper = (rows[i] for i in (r & ~distance, r | distance))
    everything = [tirx.Ramp(i64(0), i64(1), lanes)]
    is_upper = bool(r & distance)
    picks = []
    for column in range(lanes):
        from_upper = bool(column & distance)
        own = from_upper == is_upper
        place = column if own else column ^ distance
        picks.append(tirx.const(place + (lanes if from_upper else 0), "int32"))
    return tirx.Shuffle([BufferLoad(lower, everything), BufferLoad(upper, everything)], picks)
