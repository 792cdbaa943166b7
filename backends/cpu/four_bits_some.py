"""Some rows against weights of 4 bits: too many for sums of blocks beside their totals, few enough for one tile.

Each code is unpacked, scaled and multiplied with all rows while it is in a register; a part of a panel's columns at a
time, so that the sums of all rows fit.
"""

from __future__ import annotations

from backends.cpu.codes import WIDE, CodesNest
from backends.cpu.register_tile import RegisterTile, span, wide
from backends.cpu.tiles import Tiles
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
)
from backends.relax.nibbles import GROUP

__all__ = ["SomeRows", "vectors_of"]


def vectors_of(tiles: Tiles, rows: int, panel: int) -> int:
    """Vectors of columns of which the sums of so many rows fit beside their scales; 0 where two do not."""
    fitting = [v for v in (4, 2) if v <= panel and rows * v + v + 4 <= tiles.cpu.vector_registers]
    return fitting[0] if fitting else 0


class SomeRows:
    """All rows of a product, `rows` of them, `vectors` of columns at a time."""

    def __init__(self, nest: CodesNest, rows: int, vectors: int) -> None:
        self.nest, self.rows, self.vectors = nest, rows, vectors
        self.parts = nest.parts
        self.staged = local([rows * nest.parts.width], WIDE, "staged")

    def build(self) -> Stmt:
        """The statement."""
        return sequence([parallel(self.nest.panels, self._panel)])

    def _panel(self, panel: Expr) -> Stmt:
        parts = [self._part(panel, first) for first in range(0, self.nest.vectors, self.vectors)]
        width = self.parts.width
        stores = loop(self.rows, lambda r: self.nest.store_row(panel, r, self.staged, simplify(r * width)), name="row")
        return allocate([self.staged], sequence([*parts, stores]))

    def _part(self, panel: Expr, first: int) -> Stmt:
        """Some vectors of a panel."""
        n, block = self.nest.lanes, self.parts.block
        tile = RegisterTile(self.rows, self.vectors, n, WIDE)
        full, rest = divmod(self.parts.depth, block)

        def of_block(number: Expr, size: int) -> Stmt:
            start = simplify(number * -(-block // GROUP))
            whole, left = divmod(size, GROUP)
            return sequence(
                [
                    *self.nest.scales_ahead(panel, number, range(first, first + self.vectors)),
                    loop(
                        whole,
                        lambda g: self._group(tile, panel, number, simplify(start + g), first, GROUP),
                        name="group",
                    ),
                    self._group(tile, panel, number, simplify(start + whole), first, left) if left else None,
                ]
            )

        end = [
            BufferStore(
                self.staged,
                BufferLoad(tile.buffers[r], [span(v * n, n)]),
                [span(r * self.parts.width + (first + v) * n, n)],
            )
            for r in range(self.rows)
            for v in range(self.vectors)
        ]
        body = [
            *tile.zero(),
            loop(full, lambda b: of_block(b, block), name="block"),
            of_block(i64(full), rest) if rest else None,
            *end,
        ]
        return allocate(tile.buffers, sequence(body))

    def _group(self, tile: RegisterTile, panel: Expr, block: Expr, group: Expr, first: int, size: int) -> Stmt:
        """Up to eight rows of codes."""
        nest = self.nest
        places = range(first, first + self.vectors)
        statements = nest.words_ahead(panel, group, places)
        for k in range(size):
            factors = [nest.factors(panel, block, nest.words(panel, group, v), k, v) for v in places]
            for r in range(self.rows):
                x = wide(nest.left(i64(r), simplify(group * GROUP + k)), nest.lanes)
                statements += [tile.multiply(r, v, x, factor) for v, factor in enumerate(factors)]
        return sequence(statements)
