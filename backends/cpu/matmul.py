"""The rule for matrix products: loops as in `backends.cpu.product_nest`, or, for long sums, with K cut into blocks too.

A panel of W columns and a K of 1,536 or more leaves little of the second-level cache to the rows of A. Then K is cut,
too: a block of A stays in the cache while the same block of K of all panels of a task passes by, and what the tiles
have added up so far waits in a buffer for the next block (Goto and van de Geijn, Anatomy of High-Performance Matrix
Multiplication, 2008, section 4). The last block's tiles do what follows the product.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx

from backends.cpu.epilogue import Epilogue
from backends.cpu.factors import add_product, last_steps
from backends.cpu.heavy import with_epilogue
from backends.cpu.product_nest import Asked, Nest, Product, take_apart
from backends.cpu.register_tile import RegisterTile, asks_ahead, remainder
from backends.cpu.tiles import Tiles
from backends.relax.kernel import Kernel
from backends.relax.loops import (
    Expr,
    IfThenElse,
    Stmt,
    Var,
    allocate,
    bind,
    i64,
    known,
    local,
    loop,
    parallel,
    product,
    sequence,
    simplify,
    unflatten,
)
from optimizer.target import Cpu

__all__ = ["Cut", "lower"]

_MORE_GROUPS = 4
"""Groups of panels that are tried, for each core, beyond the fewest that the caches allow."""


@dataclass(frozen=True)
class Cut:
    """How a product is cut where its sums are long.

    Attributes:
        depth: steps along the reduced axis in a block; the last block may have fewer.
        blocks: of the reduced axis.
        rows: in a block, whole tiles; the last block may have fewer.
        panels: of a task; the last task of a block of rows may have fewer.
        groups: tasks of a block of rows.
        columns_first: whether a thread takes all rows of its panels before the next panels, rather than all panels of
            its rows.
    """

    depth: int
    blocks: int
    rows: int
    panels: int
    groups: int
    columns_first: bool

    @classmethod
    def of_product(cls, parts: Product, tiles: Tiles) -> Cut | None:
        """As the caches want it; `None` where the reduced axis stays whole: all but long sums with packed constants."""
        columns, depth = known(parts.column.extent), known(parts.depth.extent)
        if columns is None or depth is None or parts.width is None:
            return None
        rows = known(product([a.extent for a in parts.rows]))
        steps = depth // tiles.together(str(parts.right.expr_ty()))
        return cls.of(tiles, rows, columns, steps, parts.width, parts.apart)

    @classmethod
    def of(cls, tiles: Tiles, rows: int | None, columns: int, steps: int, width: int, apart: int = 0) -> Cut | None:
        """The same, of sizes.

        Args:
            tiles: of the processor.
            rows: R; `None` if that is symbolic.
            columns: N.
            steps: along K.
            width: columns of a panel.
            apart: see `Tiles.tile_rows`.
        """
        blocks = tiles.depth_blocks(rows, steps, width)
        if blocks == 1:
            return None
        depth, panels, cores = -(-steps // blocks), -(-columns // width), tiles.cpu.cores
        most = tiles.rows_beside(depth)
        row_blocks = 1 if rows is None else -(-rows // most)
        if rows is not None and row_blocks * panels < cores:
            row_blocks = cores
        tile = tiles.tile_rows(rows, width // tiles.lanes(), apart)
        block = most // tile * tile if rows is None else -(-rows // row_blocks // tile) * tile
        block = max(block, tile)
        again = rows is None or rows > block
        row_blocks = 1 if rows is None else -(-rows // block)
        fewest = -(-panels // tiles.panels_together(block, steps, width, again=again))
        heights = [block] if rows is None else [*[block] * (row_blocks - 1), rows - block * (row_blocks - 1)]
        columns_first = rows is not None and rows <= columns

        def slowest(groups: int) -> int:
            """What the thread with the most to do has, in rows times columns."""
            each = -(-panels // groups) * width
            widths = [min(each, columns - start) for start in range(0, columns, each)]
            outer, inner = (widths, heights) if columns_first else (heights, widths)
            tasks = [o * i for o in outer for i in inner]
            share = -(-len(tasks) // cores)
            return max(sum(tasks[start : start + share]) for start in range(0, len(tasks), share))

        groups = min(range(fewest, min(panels, fewest + _MORE_GROUPS * cores) + 1), key=lambda g: (slowest(g), g))
        together = -(-panels // groups)
        return cls(depth, blocks, block, together, -(-panels // together), columns_first)

    def row_blocks(self, rows: Expr) -> Expr:
        """Into how many blocks so many rows are cut."""
        return simplify(tirx.floordiv(rows + (self.rows - 1), self.rows))


def lower(kernel: Kernel, cpu: Cpu) -> Stmt | None:
    """See `backends.cpu.schedule.Rule`."""
    parts = take_apart(kernel.stages[0])
    if parts is None:
        return None
    tiles = Tiles(cpu)
    cut = Cut.of_product(parts, tiles)

    def build(epilogue: Epilogue) -> Stmt:
        nest = Nest(parts, epilogue, tiles) if cut is None else _DeepNest(parts, epilogue, tiles, cut)
        return nest.build()

    return with_epilogue(kernel, cpu, build)


class _DeepNest(Nest):
    """Builds the loop nest of a product whose sums are long."""

    def __init__(self, parts: Product, epilogue: Epilogue, tiles: Tiles, cut: Cut) -> None:
        super().__init__(parts, epilogue, tiles)
        self.cut = cut
        self.all_columns, self.all_steps = int(parts.column.extent), int(self.steps)
        self.panels = -(-self.all_columns // self.width)
        self.staged = local([cut.panels * cut.rows * self.width], self.dtype, "sums")

    def build(self) -> Stmt:
        cut = self.cut
        batch_extents = [a.extent for a in self.parts.batch]
        row_blocks, rows = cut.row_blocks(self.total_rows), known(self.total_rows)
        inner = [i64(cut.groups), row_blocks] if cut.columns_first else [row_blocks, i64(cut.groups)]
        tasks = simplify(product([*batch_extents, *inner]))

        def task(index: Expr) -> Stmt:
            first, second, third = unflatten(index, [product(batch_extents), *inner])
            group, block = (second, third) if cut.columns_first else (third, second)

            def body(place: list[Expr]) -> Stmt:
                group, begin, count, *batch = place
                point = {a.var: b for a, b in zip(self.parts.batch, batch, strict=True)}
                return allocate([self.staged], self._blocks(point, group * cut.panels, begin, count))

            begin = block * cut.rows
            ragged = rows is None or rows % cut.rows
            count = tirx.Min(i64(cut.rows), self.total_rows - begin) if ragged else i64(cut.rows)
            return bind([group, begin, count, *unflatten(first, batch_extents)], body)

        return sequence([parallel(tasks, task)])

    def _results(self) -> None:
        """None: behind a long sum it does not matter."""

    def _blocks(self, point: dict[Var, Expr], first: Expr, begin: Expr, count: Expr) -> Stmt:
        """All blocks of the reduced axis, for `count` rows from `begin` on and the panels of a task."""
        most = i64(self.cut.panels)
        panels = tirx.Min(most, self.panels - first) if self.panels % self.cut.panels else most

        def block(depth: Expr) -> Stmt:
            def panel(p: Expr) -> Stmt:
                return self._block(point, first, p, panels, depth, begin, count)

            return sequence([loop(panels, panel, name="panel")])

        return sequence([loop(self.cut.blocks, block, name="depth")])

    def _steps(self, depth: Expr) -> Expr:
        """Of a block of the reduced axis."""
        size = i64(self.cut.depth)
        return tirx.Min(size, self.all_steps - depth * size) if self.all_steps % self.cut.depth else size

    def _block(
        self, point: dict[Var, Expr], first: Expr, p: Expr, panels: Expr, depth: Expr, begin: Expr, count: Expr
    ) -> Stmt:
        """One panel's block; a last panel that is not full has tiles of fewer vectors."""
        full, rest = divmod(self.all_columns, self.width)

        def tiles(vectors: int, valid: int) -> Stmt:
            rows = min(self.cut.rows, self.tiles.tile_rows(known(self.total_rows), vectors, self.parts.apart))
            number = self.cut.rows // rows  # of a whole block

            def between(place: list[Expr]) -> Stmt:
                panel, following, start, whole = place

                def tile(at: Expr, size: int, ahead: Asked = ()) -> Stmt:
                    where = (p * self.cut.rows + at) * self.width
                    asked = (following, start, ahead)
                    return self._deep_tile(point, panel, begin + at, size, vectors, valid, depth, where, asked)

                def one(index: Expr) -> Stmt:
                    asks = self.streamed and rows > 1
                    ahead = asks_ahead(index, number, self.width, self.cut.depth) if asks else ()
                    return tile(index * rows, rows, ahead)

                left = simplify(count - whole * rows)
                return sequence([loop(whole, one, name="tile"), self._left_over(left, whole * rows, rows, tile)])

            last = tirx.EQ(p, panels - 1)
            following = tirx.Select(last, first, first + p + 1)
            start = tirx.Select(last, (depth + 1) * self.cut.depth, depth * self.cut.depth)
            return bind([first + p, following, start, simplify(tirx.floordiv(count, rows))], between)

        whole = tiles(self.width // self.lanes, self.width) if full else None
        last = tiles(-(-rest // self.lanes), rest) if rest else None
        if whole is None or last is None:
            return sequence([whole, last])
        return IfThenElse(first + p < full, whole, last)

    def _left_over(self, count: Expr, start: Expr, rows: int, tile: Callable[[Expr, int], Stmt]) -> Stmt | None:
        """The rows that do not fill a tile: of the last block alone where all others are whole tiles."""
        total = known(self.total_rows)
        if total is None or self.cut.rows % rows:
            return remainder(count, start, rows, tile)
        size = total % rows
        return IfThenElse(count > 0, tile(start, size), None) if size else None

    def _deep_tile(
        self,
        point: dict[Var, Expr],
        panel: Expr,
        start: Expr,
        rows: int,
        vectors: int,
        valid: int,
        depth: Expr,
        where: Expr,
        asked: tuple[Expr, Expr, Asked],
    ) -> Stmt:
        """One tile: goes on from the sums at `where`, leaves them there, and finishes the rows of the last block."""
        tile = RegisterTile(rows, vectors, self.lanes, self.dtype, add_product(self.factors.dtype, self.tiles.cpu))
        cut, first = self.cut, panel * self.width
        last = tirx.EQ(depth, i64(cut.blocks - 1))

        def step(k: Expr) -> Stmt:
            following, row, ahead = asked
            lines = self._asked(point, following, row, [place(k) for place in ahead])
            place = depth * cut.depth + k
            return sequence([*lines, *self._step(tile, point, panel, first, start, place, 0)])

        def finish(r: Expr) -> Stmt:
            return self._finish_row(point, start + r, first, where + r * self.width, i64(valid), self.lanes)

        def odd(rest: int) -> Stmt:
            end = i64(self.all_steps)
            sums = self._step(tile, point, panel, first, start, end, rest)
            return IfThenElse(last, sequence(sums), None)

        go_on = IfThenElse(
            tirx.EQ(depth, i64(0)), sequence(tile.zero()), sequence(tile.resume(self.staged, where, self.width))
        )
        body = [go_on, self._sum(self._steps(depth), step)]
        if self.factors.together > 1:
            body += last_steps(self.parts.depth.extent, self.factors.together, odd)
        body += tile.leave(self.staged, where, self.width)
        return allocate(tile.buffers, sequence([*body, IfThenElse(last, loop(rows, finish, name="row"), None)]))
