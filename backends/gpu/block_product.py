"""A product of two matrices by blocks of threads: what matrix products, convolutions and attention have in common.

Letters: a block computes BM rows x BN columns of the result and goes along the reduced axis in steps of BK; a thread
has TM x TN of the sums in its registers. The factors of a step lie in shared memory, that of the rows transposed, so
that a thread reads neighbours of both as vectors:

    left[BK, BM + 4]    right[BK, BN]    sums[TM, TN] += left[k, rows of the thread] x right[k, columns of the thread]

There are two such pairs: while one is multiplied, what the next step needs is on its way from memory to registers, and
goes to the other pair afterwards, so that a step has one barrier (Kerr et al., CUTLASS, 2017). A thread's rows and
columns come in groups of four neighbours, a whole row of threads apart, which keeps the vectors that a warp reads in
different banks. The result goes through the same shared memory once more, so that the threads store neighbours and the
tail is generated once for each group of rows.
"""

from __future__ import annotations

import math

from tvm import tirx
from tvm.tirx import Expr, Stmt, Var

from backends.gpu.launch import barrier
from backends.gpu.loader import Loader
from backends.gpu.operands import Factor, Result, divides, sum_type
from backends.gpu.storing import Rows, store_rows
from backends.gpu.threads import (
    gather,
    holds,
    i32,
    named,
    narrow,
    registers,
    repeat,
    scatter,
    shared,
    wide_index,
    zeros,
)
from backends.gpu.tile_model import PADDING, Tile
from backends.relax.loops import allocate, i64, sequence, simplify

__all__ = ["BlockProduct", "outer_product"]


class BlockProduct:
    """Builds what the threads of a block do."""

    def __init__(self, left: Factor, right: Factor, result: Result, tile: Tile) -> None:
        self.left, self.right, self.result, self.tile = left, right, result, tile
        self.dtype = sum_type(str(result.epilogue.heavy.buffer.dtype))
        self.pitch = tile.rows + PADDING
        self.pair = tile.depth * (self.pitch + tile.columns)
        self.group = min(4, tile.thread_rows)
        self.width = min(4, tile.thread_columns)
        self.memory = shared(tile.shared_elements, self.dtype, "tile")
        self.sums = registers(tile.thread_rows * tile.thread_columns, self.dtype, "sums")
        self.steps = simplify(tirx.floordiv(result.depth + (tile.depth - 1), i64(tile.depth)))

    def build(self, block_row: Expr, block_column: Expr, thread: Expr) -> Stmt:
        """The statement.

        Args:
            block_row: which rows of blocks; int64.
            block_column: which columns.
            thread: which thread; int64.
        """
        thread = narrow(thread)
        row, column = simplify(block_row * self.tile.rows), simplify(block_column * self.tile.columns)
        left = Loader(self.left, row, self.tile.rows, self, thread, along_depth=True)
        right = Loader(self.right, column, self.tile.columns, self, thread, along_depth=False)

        def run(places: list[Expr]) -> Stmt:
            rest = iter(places)
            for loader in (left, right):
                loader.places = [[next(rest) for _ in own] for own in loader.places]
            return self._run(row, column, thread, left, right)

        flat = [value for loader in (left, right) for own in loader.places for value in own]
        return allocate([self.memory, self.sums, left.held, right.held], named(flat, run))

    def _run(self, row: Expr, column: Expr, thread: Expr, left: Loader, right: Loader) -> Stmt:
        def fetch(step: Expr) -> Stmt:
            start = simplify(wide_index(step) * self.tile.depth)
            return sequence([left.fetch(start), right.fetch(start)])

        def keep(step: Expr) -> Stmt:
            start = tirx.bitwise_and(step, i32(1)) * self.pair
            behind = start + self.tile.depth * self.pitch
            return sequence([left.keep(self.memory, start, self.pitch), right.keep(self.memory, behind, 0)])

        steps = narrow(self.steps)

        def step(index: Expr) -> Stmt:
            more = index + 1 < steps
            return sequence(
                [
                    holds([more], fetch(index + 1)),
                    self._multiply(tirx.bitwise_and(index, i32(1)) * self.pair, thread),
                    holds([more], keep(index + 1)),
                    barrier(),
                ]
            )

        count = self.tile.thread_rows * self.tile.thread_columns
        return sequence(
            [
                *(
                    scatter(self.sums, zeros(self.dtype, self.width), i, self.width)
                    for i in range(0, count, self.width)
                ),
                fetch(i32(0)),
                keep(i32(0)),
                barrier(),
                repeat(steps, step, "step"),
                self._finish(row, column, thread),
            ]
        )

    def _thread(self, thread: Expr) -> tuple[Expr, Expr]:
        """Row and column of a thread among those of the block."""
        across = self.tile.columns // self.tile.thread_columns
        return tirx.floordiv(thread, i32(across)), tirx.floormod(thread, i32(across))

    def _multiply(self, start: Expr, thread: Expr) -> Stmt:
        """One step: the products of what lies in one pair of tiles."""
        tile, group, width = self.tile, self.group, self.width
        y, x = self._thread(thread)
        a, b = registers(tile.thread_rows, self.dtype, "a"), registers(tile.thread_columns, self.dtype, "b")
        down, across = tile.rows * group // tile.thread_rows, tile.columns * width // tile.thread_columns

        def at(k: Expr) -> Stmt:
            rows = start + k * self.pitch + y * group
            columns = start + tile.depth * self.pitch + k * tile.columns + x * width
            reads = [
                scatter(a, gather(self.memory, rows + g * down, group), g * group, group)
                for g in range(tile.thread_rows // group)
            ]
            reads += [
                scatter(b, gather(self.memory, columns + g * across, width), g * width, width)
                for g in range(tile.thread_columns // width)
            ]
            return sequence([*reads, *outer_product(self.sums, a, b, tile.thread_rows, tile.thread_columns)])

        return allocate([a, b], sequence([repeat(tile.depth, at, "k")]))

    def _finish(self, row: Expr, column: Expr, thread: Expr) -> Stmt:
        """The sums through shared memory to where they belong; a group of rows at a time."""
        tile, group, width = self.tile, self.group, self.width
        y, x = self._thread(thread)
        groups = tile.thread_rows // group
        down, across = tile.rows // groups, tile.columns * width // tile.thread_columns
        statements: list[Stmt | None] = []

        def rows(g: int) -> Rows:
            return Rows(
                simplify(row + g * down), down, tile.columns, tile.threads, divides(tile.rows, self.result.rows)
            )

        def read(place: Expr) -> Expr:
            return gather(self.memory, place)

        for g in range(groups):
            for r in range(group):
                for c in range(tile.thread_columns // width):
                    own = gather(self.sums, (g * group + r) * tile.thread_columns + c * width, width)
                    place = (y * group + r) * tile.columns + c * across + x * width
                    statements.append(scatter(self.memory, own, place, width))
            statements += [barrier(), store_rows(self.result, rows(g), column, thread, read)]
            statements.append(barrier() if g + 1 < groups else None)
        return sequence(statements)


def outer_product(sums: Var, a: Var, b: Var, rows: int, columns: int, first: int = 0) -> list[Stmt]:
    """`sums[rows, columns] += a[rows] x b[columns]`, all in registers; the sums begin at `first`."""
    width = math.gcd(4, columns)
    statements = []
    for r in range(rows):
        factor = tirx.Broadcast(gather(a, r), width) if width > 1 else gather(a, r)
        for c in range(0, columns, width):
            place = first + r * columns + c
            total = gather(sums, place, width) + factor * gather(b, c, width)
            statements.append(scatter(sums, total, place, width))
    return statements
