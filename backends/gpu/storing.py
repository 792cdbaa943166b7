"""How sums that lie in shared memory get to where they belong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from tvm import tirx
from tvm.tirx import BufferStore, Expr, Stmt

from backends.gpu.operands import Result, divides
from backends.gpu.threads import cast, gather, holds, i32, named, ramp, registers, repeat, scatter, wide_index
from backends.relax.loops import allocate, known, sequence, simplify

__all__ = ["Read", "Rows", "store_rows"]

Read: TypeAlias = Callable[[Expr], Expr]
"""The sum at a place: rows of as many places as the tile has columns."""


@dataclass(frozen=True)
class Rows:
    """Rows of sums that lie in shared memory.

    Attributes:
        first: the row of the result that the first one is; int64.
        count: how many.
        columns: of each.
        threads: that store them.
        whole: whether there is a row of the result for each.
    """

    first: Expr
    count: int
    columns: int
    threads: int
    whole: bool


def store_rows(result: Result, rows: Rows, column: Expr, thread: Expr, read: Read) -> Stmt:
    """Neighbouring threads store neighbours; the tail is done on the way.

    Args:
        result: where to.
        rows: which.
        column: the column of the result that the first one is; int64.
        thread: which thread; int32.
        read: gives the sums.
    """
    lanes = _stored_together(result, rows.columns)
    across = rows.columns // lanes
    vectors = rows.count * across

    def turn(index: Expr) -> Stmt:
        place = index * rows.threads + thread
        down, right = tirx.floordiv(place, i32(across)), tirx.floormod(place, i32(across)) * lanes
        line, first = simplify(rows.first + wide_index(down)), simplify(column + wide_index(right))
        exists = [
            place < vectors if vectors % rows.threads else None,
            None if rows.whole else line < result.rows,
            None if divides(rows.columns, result.columns) else first < result.columns,
        ]

        def at(indices: list[Expr]) -> Stmt:
            *lead, last = indices
            return _store(result, read, down * rows.columns + right, lead, last, lanes)

        return holds(exists, named([*result.indices(line), simplify(first + result.first)], at))

    return sequence([repeat(-(-vectors // rows.threads), turn, "turn")])


def _stored_together(result: Result, columns: int) -> int:
    """How many neighbours a thread stores at once."""
    total, first = known(result.columns), known(result.first)
    aligned = total is not None and first is not None and total % 4 == 0 and first % 4 == 0 and columns % 4 == 0
    row = known(result.epilogue.target.shape[-1])
    vectors = str(result.epilogue.target.dtype) in ("float32", "int32")
    return 4 if aligned and vectors and row is not None and row % 4 == 0 else 1


def _store(result: Result, read: Read, place: Expr, lead: list[Expr], last: Expr, lanes: int) -> Stmt:
    """Finish neighbours that lie in shared memory, and store them."""
    epilogue = result.epilogue
    dtype = str(epilogue.heavy.buffer.dtype)

    def value(lane: int) -> Expr:
        return epilogue.value([*lead, simplify(last + lane)], cast(read(place + lane), dtype))

    if lanes == 1:
        return BufferStore(epilogue.target, value(0), [*lead, last])
    done = registers(lanes, str(epilogue.target.dtype), "done")
    values = [scatter(done, value(lane), lane) for lane in range(lanes)]
    return allocate(
        [done],
        sequence([*values, BufferStore(epilogue.target, gather(done, 0, lanes), [*lead, ramp(last, lanes)])]),
    )
