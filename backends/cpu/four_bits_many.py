"""Many rows against weights of 4 bits: some rows of a panel are unpacked, then multiplied with all rows of a block.

The unpacked rows stay in the first-level cache, the sums of the block in the second-level one. A block has so many rows
that unpacking is little beside multiplying.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx

from backends.cpu.codes import WIDE, CodesNest
from backends.cpu.register_tile import RegisterTile, remainder, span, wide
from backends.relax.loops import (
    BufferLoad,
    BufferStore,
    Expr,
    Stmt,
    allocate,
    bind,
    i64,
    known,
    local,
    loop,
    parallel,
    sequence,
    simplify,
    unflatten,
)
from backends.relax.nibbles import GROUP

__all__ = ["ManyRows"]

_L1_SHARE = 0.6
"""Of the first-level cache, for unpacked rows of a panel."""
_BLOCK_ROWS = 192
"""The most rows of a block."""


class ManyRows:
    """All rows of a product, in blocks."""

    def __init__(self, nest: CodesNest) -> None:
        self.nest = nest
        self.parts = nest.parts
        self.tile_rows = nest.tiles.tile_rows(known(nest.total_rows), nest.vectors)
        rows = known(nest.total_rows)
        most = _BLOCK_ROWS // self.tile_rows * self.tile_rows
        even = -(-rows // -(-rows // most)) if rows else most
        self.block_rows = -(-even // self.tile_rows) * self.tile_rows
        deep = int(nest.cpu.l1_bytes * _L1_SHARE) // (4 * self.parts.width) // GROUP * GROUP
        self.depth = min(max(deep, GROUP), -(-self.parts.depth // GROUP) * GROUP)
        self.unpacked = local([self.depth * self.parts.width], WIDE, "unpacked")
        self.sums = local([self.block_rows * self.parts.width], WIDE, "sums")

    def build(self) -> Stmt:
        """The statement."""
        total = self.nest.total_rows
        blocks = simplify(tirx.floordiv(total + (self.block_rows - 1), i64(self.block_rows)))

        def task(index: Expr) -> Stmt:
            block, panel = unflatten(index, [blocks, i64(self.nest.panels)])
            first = simplify(block * self.block_rows)
            count = simplify(tirx.min(total - first, i64(self.block_rows)))
            return bind([panel, first, count], lambda place: self._block(*place))

        return sequence([parallel(simplify(blocks * self.nest.panels), task)])

    def _block(self, panel: Expr, first: Expr, count: Expr) -> Stmt:
        full, rest = divmod(self.parts.depth, self.depth)

        def chunk(number: Expr, size: int) -> Stmt:
            start = simplify(number * self.depth)
            return sequence([self._unpack(panel, start, size), self._multiply(first, count, start, size)])

        def finish(row: Expr) -> Stmt:
            return self.nest.store_row(panel, simplify(first + row), self.sums, simplify(row * self.parts.width))

        body = sequence(
            [
                self._clear(count),
                loop(full, lambda n: chunk(n, self.depth), name="chunk"),
                chunk(i64(full), rest) if rest else None,
                loop(count, finish, name="row"),
            ]
        )
        return allocate([self.unpacked, self.sums], body)

    def _clear(self, count: Expr) -> Stmt:
        n = self.nest.lanes

        def vector(index: Expr) -> Stmt:
            return BufferStore(self.sums, self.nest.number(0.0), [span(simplify(index * n), n)])

        return sequence([loop(simplify(count * self.nest.vectors), vector, name="vector")])

    def _unpack(self, panel: Expr, start: Expr, size: int) -> Stmt:
        """Rows [start, start + size) of a panel."""
        nest, n, width = self.nest, self.nest.lanes, self.parts.width

        def group(index: Expr) -> Stmt:
            word = simplify(tirx.floordiv(start, GROUP) + index)
            block = simplify(tirx.floordiv(word * GROUP, i64(self.parts.block)))
            statements = []
            for vector in range(nest.vectors):
                words = nest.words(panel, word, vector)
                for k in range(GROUP):
                    value = nest.factors(panel, block, words, k, vector)
                    place = simplify((index * GROUP + k) * width + vector * n)
                    statements.append(BufferStore(self.unpacked, value, [span(place, n)]))
            return sequence(statements)

        return sequence([loop(-(-size // GROUP), group, name="group")])

    def _multiply(self, first: Expr, count: Expr, start: Expr, size: int) -> Stmt:
        """All rows of a block with the unpacked rows of the panel, onto the sums."""
        rows = self.tile_rows
        whole = simplify(tirx.floordiv(count, i64(rows)))

        def tile(row: Expr, height: int) -> Stmt:
            return self._tile(first, row, height, start, size)

        full = loop(whole, lambda t: tile(simplify(t * rows), rows), name="tile")
        left = simplify(count - whole * rows)
        number = known(left)
        rest: Stmt | None
        if number is None:
            rest = self._rest(left, simplify(whole * rows), tile)
        else:
            rest = tile(simplify(whole * rows), number) if number else None
        return sequence([full, rest])

    def _rest(self, left: Expr, row: Expr, tile: Callable[[Expr, int], Stmt]) -> Stmt | None:
        """What tiles leave over of a block; nothing if the rows are known to fill tiles."""
        total = known(self.nest.total_rows)
        if total is None:
            return remainder(left, row, self.tile_rows, tile)
        last = (total - (total - 1) // self.block_rows * self.block_rows) % self.tile_rows
        return loop(tirx.min(left, i64(1)), lambda _: tile(row, last), name="rest") if last else None

    def _tile(self, first: Expr, row: Expr, height: int, start: Expr, size: int) -> Stmt:
        nest, n, width = self.nest, self.nest.lanes, self.parts.width
        tile = RegisterTile(height, nest.vectors, n, WIDE)
        cells = [(r, v) for r in range(height) for v in range(nest.vectors)]

        def sums(r: int, v: int) -> list[Expr]:
            return [span(simplify((row + r) * width + v * n), n)]

        def step(k: Expr) -> Stmt:
            columns = [BufferLoad(self.unpacked, [span(simplify(k * width + v * n), n)]) for v in range(nest.vectors)]
            values = [wide(nest.left(simplify(first + row + r), simplify(start + k)), n) for r in range(height)]
            return sequence([tile.multiply(r, v, values[r], columns[v]) for r, v in cells])

        begin = [BufferStore(tile.buffers[r], BufferLoad(self.sums, sums(r, v)), [span(v * n, n)]) for r, v in cells]
        end = [BufferStore(self.sums, BufferLoad(tile.buffers[r], [span(v * n, n)]), sums(r, v)) for r, v in cells]
        return allocate(tile.buffers, sequence([*begin, loop(size, step, name="k"), *end]))
