"""A product of two matrices on tensor cores: of 16-bit elements, added up in float32, or of bytes, in int32.

Letters: a block computes BM rows x BN columns, a warp of it WM x WN, in steps of BK. Asynchronous copies (`cp.async`)
bring the factors of the next steps to shared memory past the registers, while tensor cores multiply (`mma.sync`) what
`ldmatrix` has read from there: a ring of stages, of which one is multiplied and the others are on their way.

    left[BM, BK + 8]    right[BK, BN + 8]     of each stage; the eight elements keep the rows of a matrix in other banks

A product of 16 x 16 by 16 x 8 gives thread t of a warp the sums of the rows t / 4 and t / 4 + 8, in the columns
2 * (t % 4) and the next (PTX ISA, matrix fragments for mma.m16n8k16). They go through shared memory to the result, as
in `backends.gpu.block_product`.

Of bytes, a word of the right factor holds four neighbours along the reduced axis, as its panels are packed, so that a
thread's part of a fragment is a word of shared memory: right[BK / 4, BN + 8].

A right factor may also be computed on its way (`backends.gpu.tensor_decoder`), a step ahead like the copies. What
copies cannot take goes through registers (`backends.gpu.tensor_gather`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from tvm import tirx
from tvm.tirx import BufferLoad, Expr, Stmt, Var

from backends.gpu.launch import barrier
from backends.gpu.operands import Factor, Result, copied, divides, element_bytes, singly, sum_type
from backends.gpu.storing import Rows, store_rows
from backends.gpu.tensor_decoder import Computed, Decoder
from backends.gpu.tensor_gather import Gatherer
from backends.gpu.tensor_instructions import commit, copy, matrices, multiply, wait
from backends.gpu.tensor_tile import TensorTile
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
from backends.relax.loops import allocate, i64, sequence, simplify

__all__ = ["TensorProduct", "flat_index"]

_ROWS, _COLUMNS = 16, 8
"""Of one instruction, which takes 32 bytes along the reduced axis."""
_DEPTH_BYTES = 32


class Bringer(Protocol):
    """Brings the tiles of one factor to shared memory, a step ahead of the products."""

    places: list[list[Expr]]
    """What does not depend on the step, for each line; computed once."""

    @property
    def held(self) -> Sequence[Var]:
        """Registers in which elements wait."""
        ...

    def fetch(self, start: Expr, stage: Expr) -> Stmt:
        """Begin to bring the tile of the step at `start`: to `stage` in shared memory, or to registers."""
        ...

    def keep(self, stage: Expr) -> Stmt | None:
        """Bring what waits in registers to its stage; `None` if nothing does."""
        ...


class TensorProduct:
    """Builds what the threads of a block do."""

    def __init__(self, left: Factor, right: Factor | Computed, result: Result, tile: TensorTile) -> None:
        self.left, self.right, self.result, self.tile = left, right, result, tile
        self.down, self.across = tile.warp_rows // _ROWS, tile.warp_columns // _COLUMNS
        self.memory = shared(tile.shared_words, "uint32", "tile")
        self.dtype = sum_type(left.dtype)
        self.sums = registers(self.down * self.across * 4, self.dtype, "sums")
        self.steps = simplify(tirx.floordiv(result.depth + (tile.depth - 1), i64(tile.depth)))

    def build(self, block_row: Expr, block_column: Expr, thread: Expr) -> Stmt:
        """See `backends.gpu.block_product.BlockProduct.build`."""
        thread, tile = narrow(thread), self.tile
        row, column = simplify(block_row * tile.rows), simplify(block_column * tile.columns)
        left = self._bringing(self.left, row, tile.rows, thread, along_depth=True)
        right: Bringer = (
            Decoder(self.right, column, self, thread)
            if isinstance(self.right, Computed)
            else self._bringing(self.right, column, tile.columns, thread, along_depth=False)
        )

        def run(places: list[Expr]) -> Stmt:
            rest = iter(places)
            left.places = [[next(rest) for _ in own] for own in left.places]
            right.places = [[next(rest) for _ in own] for own in right.places]
            return self._run(row, column, thread, left, right)

        flat = [value for own in [*left.places, *right.places] for value in own]
        return allocate([self.memory, self.sums, *left.held, *right.held], named(flat, run))

    def _bringing(self, factor: Factor, first: Expr, size: int, thread: Expr, *, along_depth: bool) -> Bringer:
        """How the tiles of a factor come."""
        in_words = along_depth or self.tile.element == 2 or factor.rows_together == 4
        if in_words and not singly(factor.run, factor.dtype):
            return _Copier(factor, first, size, self, thread, along_depth=along_depth)
        return Gatherer(factor, first, size, self, thread, along_depth=along_depth)

    def _run(self, row: Expr, column: Expr, thread: Expr, left: Bringer, right: Bringer) -> Stmt:
        tile, steps = self.tile, narrow(self.steps)
        ahead, behind = tile.stages - 1, tile.rows * tile.left_pitch
        places = [(left, 0), (right, behind)]

        def ring(step: Expr) -> Expr:
            return tirx.truncmod(step, i32(tile.stages)) * tile.stage_words

        def fetch(step: Expr) -> Stmt:
            start, stage = simplify(wide_index(step) * tile.depth), ring(step)
            parts = [each.fetch(start, stage + at) for each, at in places]
            return sequence([holds([step < steps], sequence(parts)), commit()])

        def keep(step: Expr) -> Stmt | None:
            """What is held goes to a stage that all have multiplied: that of the step before this one."""
            parts = [kept for each, at in places if (kept := each.keep(ring(step) + at)) is not None]
            return holds([step < steps], sequence(parts)) if parts else None

        def step(index: Expr) -> Stmt:
            """NVIDIA's compiler would write out a known number of them, and spill the addresses of them all."""
            multiplied = self._multiply(ring(index), thread)
            return sequence([wait(ahead - 1), barrier(), fetch(index + ahead), multiplied, keep(index + ahead)])

        count = self.down * self.across * 4
        return sequence(
            [
                *(scatter(self.sums, zeros(self.dtype), i) for i in range(count)),
                *(part for s in range(ahead) for part in (fetch(i32(s)), keep(i32(s)))),
                repeat(steps, step, "step", rolled=True),
                barrier(),
                self._finish(row, column, thread),
            ]
        )

    def _warp(self, thread: Expr) -> tuple[Expr, Expr, Expr]:
        """The first row and column of a thread's warp, and its place in the warp."""
        tile = self.tile
        warp, lane = tirx.floordiv(thread, i32(32)), tirx.floormod(thread, i32(32))
        warps = tile.columns // tile.warp_columns
        return (
            tirx.floordiv(warp, i32(warps)) * tile.warp_rows,
            tirx.floormod(warp, i32(warps)) * tile.warp_columns,
            lane,
        )

    def _multiply(self, stage: Expr, thread: Expr) -> Stmt:
        """One step: the products of what lies in a stage."""
        tile, dtype = self.tile, self.left.dtype
        row, column, lane = self._warp(thread)
        a, b = registers(self.down * 4, "uint32", "a"), registers(self.across * 2, "uint32", "b")
        own, half = tirx.floormod(lane, i32(16)), tirx.floordiv(lane, i32(16))
        statements: list[Stmt] = []
        for step in range(tile.depth * tile.element // _DEPTH_BYTES):
            for m in range(self.down):
                word = stage + (row + m * _ROWS + own) * tile.left_pitch + (step * _DEPTH_BYTES // 4 + half * 4)
                statements.append(matrices(a, m * 4, self.memory, word))
            right = stage + tile.rows * tile.left_pitch
            statements += self._halves(b, right, step, column, lane) if tile.element == 2 else []
            statements += self._bytes(b, right, step, column, lane) if tile.element == 1 else []
            statements += [
                multiply(dtype, self.sums, (m * self.across + n) * 4, a, m * 4, b, n * 2)
                for m in range(self.down)
                for n in range(self.across)
            ]
        return allocate([a, b], sequence(statements))

    def _halves(self, b: Var, right: Expr, step: int, column: Expr, lane: Expr) -> list[Stmt]:
        """Fragments of the right factor, two at a time, transposed as they are read."""
        own, half = tirx.floormod(lane, i32(16)), tirx.floordiv(lane, i32(16))
        line = right + (step * 16 + own) * self.tile.right_pitch + tirx.floordiv(column, i32(2)) + half * 4
        return [
            matrices(b, n * 2, self.memory, line + n * _COLUMNS // 2, turned=True) for n in range(0, self.across, 2)
        ]

    def _bytes(self, b: Var, right: Expr, step: int, column: Expr, lane: Expr) -> list[Stmt]:
        """Fragments of the right factor: words of rows lane % 4 and four further, of column lane / 4."""
        line = right + (step * 8 + tirx.floormod(lane, i32(4))) * self.tile.right_pitch
        word = line + column + tirx.floordiv(lane, i32(4))
        return [
            scatter(b, gather(self.memory, word + i * 4 * self.tile.right_pitch + n * _COLUMNS), n * 2 + i)
            for n in range(self.across)
            for i in range(2)
        ]

    def _finish(self, row: Expr, column: Expr, thread: Expr) -> Stmt:
        """The sums through shared memory to where they belong."""
        tile = self.tile
        first, right, lane = self._warp(thread)
        down, across = tirx.floordiv(lane, i32(4)), tirx.floormod(lane, i32(4)) * 2
        statements = []
        for m in range(self.down):
            for n in range(self.across):
                for i in range(4):
                    line = first + (m * _ROWS + i // 2 * 8) + down
                    value = gather(self.sums, (m * self.across + n) * 4 + i)
                    place = line * tile.columns + right + across + (n * _COLUMNS + i % 2)
                    statements.append(scatter(self.memory, tirx.reinterpret("uint32", value), place))
        rows = Rows(row, tile.rows, tile.columns, tile.threads, divides(tile.rows, self.result.rows))
        stored = store_rows(
            self.result, rows, column, thread, lambda place: tirx.reinterpret(self.dtype, gather(self.memory, place))
        )
        return sequence([*statements, barrier(), stored])


class _Copier:
    """Asks for the tiles of one factor to come to shared memory.

    Attributes:
        places: what `Factor.place` gives for each line that the thread copies.
        held: no registers.
    """

    held: tuple[Var, ...] = ()

    def __init__(
        self, factor: Factor, first: Expr, size: int, block: TensorProduct, thread: Expr, *, along_depth: bool
    ) -> None:
        tile = block.tile
        self.factor, self.memory = factor, block.memory
        # Elements that are copied: of the left factor, those of its type; of the right one, 16 bits or words of bytes.
        self.rows_together = factor.rows_together
        self.bytes = element_bytes(factor.dtype) * self.rows_together
        self.depth = simplify(tirx.floordiv(block.result.depth + (self.rows_together - 1), i64(self.rows_together)))
        side = tile.depth if along_depth else size
        self.lanes = math.gcd(16 // self.bytes, copied(factor.run, factor.dtype) if self.rows_together == 1 else size)
        self.lanes = math.gcd(self.lanes, side)
        self.together = 1 if along_depth else self.lanes
        across, vectors = side // self.lanes, (size if along_depth else tile.right_rows) * side // self.lanes
        pitch = tile.left_pitch if along_depth else tile.right_pitch
        self.places: list[list[Expr]] = []
        self.spots: list[tuple[Expr, Expr]] = []
        self.exists: list[tuple[Expr | None, Expr | None]] = []
        for begin in range(0, vectors, tile.threads):
            place = thread + begin
            down, along = tirx.floordiv(place, i32(across)), tirx.floormod(place, i32(across)) * self.lanes
            line, k = (down, along) if along_depth else (along, down)
            at = simplify(first + wide_index(line))
            self.spots.append((k, down * pitch + tirx.floordiv(along * self.bytes, i32(4))))
            self.places.append(factor.place(at, self.together))
            own = place < vectors if begin + tile.threads > vectors else None
            self.exists.append((own, None if divides(size, factor.lines) else at < factor.lines))

    def keep(self, stage: Expr) -> None:
        """Nothing is left to do."""

    def fetch(self, start: Expr, stage: Expr) -> Stmt:
        """Ask for the elements of a step to come; zeros come where there are none."""
        statements = []
        for place, (along, word), (own, inside) in zip(self.places, self.spots, self.exists, strict=True):
            k = simplify(tirx.floordiv(start, i64(self.rows_together)) + wide_index(along))
            element, conditions = self.factor.load(place, k, self.together)
            found = [c for c in (inside, k < self.depth, *conditions) if c is not None]
            ask = copy(
                self.memory,
                stage + word,
                element.source,
                flat_index(element),
                self.bytes * self.lanes,
                tirx.all(*found),
            )
            statements.append(holds([own], ask))
        return sequence(statements)


def flat_index(element: BufferLoad) -> Expr:
    """The place of an element in its buffer."""
    index: Expr = i64(0)
    for at, size in zip(element.indices, element.source.shape, strict=True):
        index = index * size + at
    return simplify(index)
