"""How queries, keys and values come from memory to shared memory, through registers."""

from __future__ import annotations

import math
from collections.abc import Callable

from tvm import tirx
from tvm.tirx import BufferLoad, Expr, Stmt, Var

from backends.gpu.operands import neighbours
from backends.gpu.threads import Place, cast, gather, holds, i32, ramp, registers, scatter, wide_index, zeros
from backends.relax.loops import TensorLoad, sequence, simplify, substitute

__all__ = ["Rows"]

_SUM = "float32"


class Rows:
    """Brings rows of a tensor, or a piece of each, from memory to registers, and from there to shared memory.

    Attributes:
        held: the registers.
    """

    def __init__(
        self,
        load: TensorLoad,
        line: Var,
        point: dict[Var, Expr],
        rows: int,
        size: int,
        threads: int,
        thread: Expr,
        end: int,
    ) -> None:
        """`line` is the axis that counts the rows, which have `end` elements; pieces have `size`, but for the last."""
        self.load, self.line, self.point = load, line, point
        self.size, self.end = size, end
        dtype = str(load.source.dtype)
        self.lanes = math.gcd(neighbours(self.end, dtype), size)
        across = size // self.lanes
        vectors = rows * across
        self.held = registers(-(-vectors // threads) * self.lanes, dtype, "held")
        self.spots: list[tuple[Expr, Expr, Expr | None]] = []
        for begin in range(0, vectors, threads):
            place = thread + begin
            row, element = tirx.floordiv(place, i32(across)), tirx.floormod(place, i32(across)) * self.lanes
            self.spots.append((row, element, place < vectors if begin + threads > vectors else None))

    def fetch(self, start: Expr, total: Expr, piece: Place = 0) -> Stmt:
        """From memory, a piece of the rows from `start` on; zeros where there is none."""
        statements: list[Stmt] = []
        before = piece * self.size
        ragged = self.end % self.size
        for turn, (row, element, exists) in enumerate(self.spots):
            at, line = turn * self.lanes, simplify(start + wide_index(row))
            lead = [substitute(i, {**self.point, self.line: line}) for i in self.load.indices[:-1]]
            value = BufferLoad(self.load.source, [*lead, ramp(wide_index(element + before), self.lanes)])
            nothing = scatter(self.held, zeros(str(self.held.dtype), self.lanes), at, self.lanes)
            conditions = [exists, line < total, element + before < self.end if ragged else None]
            statements.append(holds(conditions, scatter(self.held, value, at, self.lanes), nothing))
        return sequence(statements)

    def keep_transposed(self, memory: Var, pitch: int, first: int = 0) -> Stmt:
        """To shared memory, element by element: [elements, pitch], behind the first `first` elements."""
        return self._kept(
            lambda at, row, element: sequence(
                [
                    scatter(memory, cast(gather(self.held, at + lane), _SUM), (element + (first + lane)) * pitch + row)
                    for lane in range(self.lanes)
                ]
            )
        )

    def keep(self, memory: Var, pitch: int) -> Stmt:
        """To shared memory, row by row: [rows, pitch]."""
        return self._kept(
            lambda at, row, element: scatter(
                memory, cast(gather(self.held, at, self.lanes), _SUM, self.lanes), row * pitch + element, self.lanes
            )
        )

    def _kept(self, store: Callable[[int, Expr, Expr], Stmt]) -> Stmt:
        return sequence(
            [
                holds([exists], store(turn * self.lanes, row, element))
                for turn, (row, element, exists) in enumerate(self.spots)
            ]
        )
