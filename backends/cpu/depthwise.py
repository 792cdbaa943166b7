"""The rule for depthwise convolutions: vectors of channels, several neighbouring pixels at a time.

The data is [N, H, W, C], the weights [KH, KW, C]. One task computes one row of output pixels. Padding is treated as
in `conv2d`.
"""

from __future__ import annotations

from tvm import tirx

from backends.cpu.conv2d import Taps, edges
from backends.cpu.epilogue import Epilogue
from backends.cpu.heavy import with_epilogue
from backends.cpu.operands import converted
from backends.cpu.register_tile import RegisterTile, remainder, span
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
    simplify,
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
        if size is None or width is None:
            return self._symbolic_row(image, y, first, lanes)
        tile = -(-size // -(-size // self.most))
        statements = []
        for start, count, interior in edges(self.taps, size, width, tile):
            if interior:
                statements.append(
                    loop(
                        count // tile,
                        lambda t, s=start: self._tile(image, y, first, lanes, i64(s) + t * tile, tile, True),  # type: ignore[misc]
                        name="tile",
                    )
                )
            else:
                statements.append(self._tile(image, y, first, lanes, start, count, False))
        return sequence(statements)

    def _symbolic_row(self, image: Expr, y: Expr, first: Expr, lanes: int) -> Stmt:
        """A width that only the run knows: tiles where all taps lie inside, and the pixels at the edges singly."""
        taps, out_width, width = self.taps, self.stage.spatial[2].extent, self.data.shape[2]
        low = tirx.Min(i64(-(-taps.pw // taps.sw)), out_width)
        last = width - 1 - ((taps.kw - 1) * taps.dw - taps.pw)
        high = tirx.Max(low, tirx.Min(out_width, tirx.floordiv(last, taps.sw) + 1))

        def tile(start: Expr, count: int) -> Stmt:
            return self._tile(image, y, first, lanes, start, count, True)

        def edge(x: Expr) -> Stmt:
            return self._tile(image, y, first, lanes, x, 1, False)

        def row(bound: list[Expr]) -> Stmt:
            low, high = bound
            whole = tirx.floordiv(high - low, self.most)
            done = low + whole * self.most
            return sequence(
                [
                    loop(low, edge, name="edge"),
                    loop(whole, lambda t: tile(low + t * self.most, self.most), name="tile"),
                    remainder(high - done, done, self.most, tile),
                    loop(out_width - high, lambda x: edge(high + x), name="edge"),
                ]
            )

        return bind([simplify(low), simplify(high)], row)

    def _tile(
        self, image: Expr, y: Expr, first: Expr, lanes: int, start: Expr | int, pixels: int, interior: bool
    ) -> Stmt:
        taps = self.taps
        tile = RegisterTile(pixels, 1, lanes, self.dtype)

        def window_row(ry: Expr) -> Stmt:
            row = y * taps.sh + ry * taps.dh - taps.ph
            width = known(self.data.shape[2])
            if not interior and (width is None or not isinstance(start, int)):
                return edge_row(row, ry)
            statements = []
            for t in range(taps.kw):
                weight = BufferLoad(self.weights, [ry, i64(t), span(first, lanes)])
                for p in range(pixels):
                    if (
                        not interior
                        and isinstance(start, int)
                        and width is not None
                        and not taps.inside(start + p, t, width)
                    ):
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
