"""A few rows against weights of 4 bits: each code is unpacked into a register and multiplied with all rows at once.

    total[r, n] += scale[block, n] * (sum over k of x[r, k] * code[k, n]  -  zero[block, n] * sum over k of x[r, k])

The codes of a block are summed up as they are; their scale, and their zero point, are applied once a block.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tvm import tirx

from backends.cpu.codes import WIDE, CodesNest
from backends.cpu.register_tile import RegisterTile, span, wide
from backends.relax.loops import (
    BufferLoad,
    BufferStore,
    Expr,
    Stmt,
    allocate,
    i64,
    local,
    loop,
    parallel,
    sequence,
    simplify,
    vectorized,
)
from backends.relax.nibbles import GROUP

__all__ = ["FewRows"]

_CHAINS = 8
"""Sums that are added to in turn, so that none waits for the one before: two multiply-adds a cycle, of four cycles."""
_PARALLEL_CODES = 65_536
"""Fewer codes are unpacked by one thread: to wake another takes longer."""


class FewRows:
    """All rows of a product, `rows` of them."""

    def __init__(self, nest: CodesNest, rows: int) -> None:
        self.nest = nest
        self.rows = rows
        self.parts = nest.parts
        self.sums = local([rows * self.blocks], WIDE, "sums")
        self.staged = local([rows * nest.parts.width], WIDE, "staged")

    @property
    def blocks(self) -> int:
        """Blocks of K."""
        return -(-self.parts.depth // self.parts.block)

    @property
    def offsets(self) -> bool:
        """Whether something is to be taken off the codes."""
        return self.parts.zero is not None or self.nest.offset != 0

    def build(self) -> Stmt:
        """The statement."""
        worthwhile = self.parts.depth * self.nest.panels * self.parts.width >= _PARALLEL_CODES
        panels = sequence([parallel(self.nest.panels, self._panel, worthwhile=worthwhile)])
        return allocate([self.sums], sequence([*self._summed(), panels])) if self.offsets else panels

    def _summed(self) -> list[Stmt | None]:
        """The sum of each block of each row."""
        return [self._each_block(partial(self._sum, row)) for row in range(self.rows)]

    def _each_block(self, body: Callable[[Expr, int, int], Stmt]) -> Stmt:
        """`body(block, groups of eight rows in it, rows left over)`, for all blocks."""
        full, rest = divmod(self.parts.depth, self.parts.block)
        return sequence(
            [
                loop(full, lambda b: body(b, *divmod(self.parts.block, GROUP)), name="block"),
                body(i64(full), *divmod(rest, GROUP)) if rest else None,
            ]
        )

    def _sum(self, row: int, block: Expr, groups: int, rest: int) -> Stmt:
        parts = local([GROUP], WIDE, "parts")
        first = block * self.parts.block

        def clear(lane: Expr) -> Stmt:
            return BufferStore(parts, tirx.const(0, WIDE), [lane])

        def add(start: Expr, lane: Expr) -> Stmt:
            value = BufferLoad(parts, [lane]) + self.nest.left(i64(row), simplify(first + start + lane))
            return BufferStore(parts, value, [lane])

        total: Expr = BufferLoad(parts, [i64(0)])
        for lane in range(1, GROUP):
            total = total + BufferLoad(parts, [i64(lane)])
        return allocate(
            [parts],
            sequence(
                [
                    vectorized(GROUP, clear),
                    loop(groups, lambda g: sequence([vectorized(GROUP, lambda n: add(g * GROUP, n))]), name="group"),
                    loop(rest, lambda n: add(i64(groups * GROUP), n), name="rest"),
                    BufferStore(self.sums, total, [simplify(block + row * self.blocks)]),
                ]
            ),
        )

    def _panel(self, panel: Expr) -> Stmt:
        nest = self.nest
        totals = RegisterTile(self.rows, nest.vectors, nest.lanes, WIDE)
        chains = max(1, min(2, _CHAINS // (self.rows * nest.vectors)))
        tiles = [RegisterTile(self.rows, nest.vectors, nest.lanes, WIDE) for _ in range(chains)]
        buffers = [buffer for tile in [totals, *tiles] for buffer in tile.buffers]

        def block(number: Expr, groups: int, rest: int) -> Stmt:
            first = simplify(number * -(-self.parts.block // GROUP))
            return sequence(
                [
                    *(clear for tile in tiles for clear in tile.zero()),
                    loop(groups, lambda g: self._group(tiles, panel, simplify(first + g), GROUP), name="group"),
                    self._group(tiles, panel, simplify(first + groups), rest) if rest else None,
                    *self._scaled(totals, tiles, panel, number),
                ]
            )

        def finish(row: Expr, offset: Expr) -> Stmt:
            return nest.store_row(panel, row, self.staged, offset)

        body = [*totals.zero(), self._each_block(block), *totals.finish(self.staged, finish)]
        return allocate([*buffers, self.staged], sequence(body))

    def _group(self, tiles: list[RegisterTile], panel: Expr, group: Expr, rows: int) -> Stmt:
        """Up to eight rows of codes."""
        nest = self.nest
        statements: list[Stmt | None] = []
        for vector in range(nest.vectors):
            words = nest.words(panel, group, vector)
            statements += nest.words_ahead(panel, group, [vector])
            for k in range(rows):
                codes = nest.unpacked(words, k)
                for r in range(self.rows):
                    x = wide(nest.left(i64(r), simplify(group * GROUP + k)), nest.lanes)
                    statements.append(tiles[k * len(tiles) // GROUP].multiply(r, vector, x, codes))
        return sequence(statements)

    def _scaled(self, totals: RegisterTile, tiles: list[RegisterTile], panel: Expr, block: Expr) -> list[Stmt]:
        """Add the sums of a block to the totals."""
        nest = self.nest
        result = nest.scales_ahead(panel, block, range(nest.vectors))
        for vector in range(nest.vectors):
            here = [span(vector * nest.lanes, nest.lanes)]
            scale, zero = nest.scales(panel, block, vector), nest.zeros(panel, block, vector)
            for r in range(self.rows):
                value = _added([BufferLoad(tile.buffers[r], here) for tile in tiles])
                if zero is not None:
                    value = value - zero * wide(BufferLoad(self.sums, [simplify(block + r * self.blocks)]), nest.lanes)
                result.append(totals.add(r, vector, value * scale))
        return result


def _added(values: list[Expr]) -> Expr:
    first, *others = values
    for value in others:
        first = first + value
    return first
