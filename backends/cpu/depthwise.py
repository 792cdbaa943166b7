"""The rule for depthwise convolutions: vectors of channels, several neighbouring pixels at a time.

The data is [N, H, W, C], the weights [KH, KW, C]. One task computes one row of output pixels. Padding is treated as
in `conv2d`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tvm import tirx

from backends.cpu.epilogue import Epilogue
from backends.cpu.heavy import with_epilogue
from backends.cpu.open_row import OpenRow, thick_ends, thin_ends
from backends.cpu.operands import converted
from backends.cpu.register_tile import RegisterTile, remainder, span
from backends.cpu.taps import Inside, Reach, Taps, TileAt, edges
from backends.cpu.tiles import Tiles
from backends.relax.kernel import Kernel, Stage
from backends.relax.loops import (
    BufferLoad,
    Expr,
    Stmt,
    allocate,
    bind,
    i64,
    known,
    local,
    loop,
    over_vectors,
    parallel,
    product,
    sequence,
    vectorized,
)
from optimizer.target import Cpu

MOST_PIXELS = 14


def lower(kernel: Kernel, cpu: Cpu) -> Stmt | None:
    """See `backends.cpu.schedule.Rule`."""
    stage = kernel.stages[0]
    if stage.kind != "depthwise":
        return None
    return with_epilogue(kernel, cpu, lambda epilogue: _Nest(stage, epilogue, Tiles(cpu)).build())


class _Nest:
    """Builds the loop nest of one depthwise convolution."""

    def __init__(self, stage: Stage, epilogue: Epilogue, tiles: Tiles) -> None:
        self.stage = stage
        self.epilogue = epilogue
        self.tiles = tiles
        self.taps = Taps.of(stage)
        self.data, self.weights = stage.operand(4), stage.operand(3)
        self.dtype = str(stage.buffer.dtype)
        self.lanes = tiles.lanes(self.dtype)
        self.staged = local([tiles.cpu.vector_registers * self.lanes], self.dtype, "staged")
        self.most = min(MOST_PIXELS, tiles.cpu.vector_registers // 2 - 1)

    def build(self) -> Stmt:
        n, rows, _, channels = (a.extent for a in self.stage.spatial)

        def task(index: Expr) -> Stmt:
            image, y = tirx.floordiv(index, rows), tirx.floormod(index, rows)
            row = over_vectors(channels, self.lanes, lambda first, lanes: self._row(image, y, first, lanes))
            return allocate([self.staged], row)

        return sequence([parallel(product([n, rows]), task)])

    def _row(self, image: Expr, y: Expr, first: Expr, lanes: int) -> Stmt:
        out_width = self.stage.spatial[2].extent
        size, width = known(out_width), known(self.data.shape[2])
        at = partial(self._tile, image, y, first, lanes)
        if size is None or width is None:
            row = OpenRow(self.taps, out_width, self.data.shape[2], at, self.most)
            sizes = [self.most, -(-self.most // 2), -(-self.most // 4)]
            if sizes[-1] < row.left + row.right:
                return thin_ends(row, self._interior(at))
            return thick_ends(row, sizes, partial(self.tiles.step_cycles, vectors=1))
        tile = -(-size // -(-size // self.most))
        statements = []
        for start, count, interior in edges(self.taps, size, width, tile):
            if interior:
                run = partial(self._at, start, tile, at)
                statements.append(loop(count // tile, run, name="tile"))
            else:
                statements.append(at(start, count, partial(self._inside, start, width)))
        return sequence(statements)

    def _at(self, start: int, tile: int, at: TileAt, index: Expr) -> Stmt:
        return at(i64(start) + index * tile, tile)

    def _inside(self, start: int, width: int, pixel: int, tap: int) -> bool:
        return self.taps.inside(start + pixel, tap, width)

    def _interior(self, at: TileAt) -> Callable[[Expr, Expr], Stmt]:
        """Pixels of which all taps lie inside, and of which only the run knows how many they are."""

        def interior(first: Expr, count: Expr) -> Stmt:
            whole = tirx.floordiv(count, self.most)
            done = whole * self.most
            return sequence(
                [
                    loop(whole, lambda t: at(first + t * self.most, self.most), name="tile"),
                    remainder(count - done, first + done, self.most, at),
                ]
            )

        return lambda first, count: bind([count], lambda c: interior(first, c[0]))

    def _tile(
        self,
        image: Expr,
        y: Expr,
        first: Expr,
        lanes: int,
        start: Expr | int,
        pixels: int,
        inside: Inside = Reach.INSIDE,
    ) -> Stmt:
        taps = self.taps
        tile = RegisterTile(pixels, 1, lanes, self.dtype)

        def window_row(ry: Expr) -> Stmt:
            row = y * taps.sh + ry * taps.dh - taps.ph
            if inside is Reach.UNKNOWN:
                return edge_row(row, ry)
            statements = []
            for t in range(taps.kw):
                weight = BufferLoad(self.weights, [ry, i64(t), span(first, lanes)])
                for p in range(pixels):
                    if inside is not Reach.INSIDE and not inside(p, t):
                        continue
                    x = (i64(start) + p) * taps.sw + (t * taps.dw - taps.pw)
                    statements.append(tile.add(p, 0, self._element(image, row, x, first, lanes) * weight))
            return sequence(statements)

        def edge_row(row: Expr, ry: Expr) -> Stmt:
            """One pixel, of whose taps only the run knows which lie inside."""
            begin, count = taps.column_range(i64(start), self.data.shape[2])

            def tap(t: Expr) -> Stmt:
                x = i64(start) * taps.sw + t * taps.dw - taps.pw
                weight = BufferLoad(self.weights, [ry, t, span(first, lanes)])
                return tile.add(0, 0, self._element(image, row, x, first, lanes) * weight)

            return sequence([loop(count, tap, start=begin, name="rx")])

        begin, count = taps.row_range(y, self.data.shape[1], self.stage.spatial[1].extent)

        def finish(p: Expr, offset: Expr) -> Stmt:
            def one(lane: Expr) -> Stmt:
                value = BufferLoad(self.staged, [offset + lane])
                return self.epilogue.store([image, y, i64(start) + p, first + lane], value)

            return sequence([vectorized(lanes, one)])

        body = loop(count, window_row, start=begin, name="ry")
        return allocate(tile.buffers, sequence([*tile.zero(), body, *tile.finish(self.staged, finish)]))

    def _element(self, image: Expr, row: Expr, x: Expr, first: Expr, lanes: int) -> Expr:
        """Neighbouring channels of a pixel, in the type of the sums."""
        load = BufferLoad(self.data, [image, row, x, span(first, lanes)])
        return load if str(self.data.dtype) == self.dtype else converted(load, self.dtype, lanes)
