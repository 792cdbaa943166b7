"""The rule for convolutions: register tiles of neighbouring pixels x vectors of output channels.

Letters as in `backends.relax.ops.conv`. The data is [N, H, W, G*C], the weights [G, P, KH, KW*C, width] in P panels.
One task computes one row of output pixels for one panel. Padding is never stored: rows of the window that lie outside
the image are left out of the loop over KH, and the tiles at the left and right edge are generated without the taps that
fall outside (`taps`; `open_row` where only the run knows the width). T channels are multiplied together
(`backends.cpu.factors`), the weights being [G, P, KH, KW * ceil(C/T), width * T]: pairs of bfloat16, four bytes.
"""

from __future__ import annotations

from functools import partial

from tvm import tirx

from backends.cpu.bfloat16 import neighbours
from backends.cpu.byte_results import Results
from backends.cpu.epilogue import Epilogue
from backends.cpu.factors import add_product, combined
from backends.cpu.heavy import with_epilogue
from backends.cpu.open_row import OpenRow, fractions, thick_ends
from backends.cpu.operations import hidden
from backends.cpu.quads import QUAD
from backends.cpu.register_tile import RegisterTile, lines_ahead, span, wide
from backends.cpu.taps import Inside, Reach, Taps, TileAt, edges
from backends.cpu.tiles import Tiles
from backends.relax.kernel import Kernel, Stage
from backends.relax.loops import (
    BufferLoad,
    Expr,
    IfThenElse,
    Stmt,
    allocate,
    i64,
    known,
    local,
    loop,
    over_vectors,
    parallel,
    prefetch,
    product,
    sequence,
    simplify,
    unflatten,
    vectorized,
)
from optimizer.target import Cpu

_WRITTEN_OUT = 8
"""Taps in a row of the window; more are a loop."""
_SIZES = 4
"""Of tiles, between which the run chooses where only it knows how many pixels are in a row."""


def lower(kernel: Kernel, cpu: Cpu) -> Stmt | None:
    """See `backends.cpu.schedule.Rule`."""
    stage = kernel.stages[0]
    if stage.kind != "conv2d":
        return None
    return with_epilogue(kernel, cpu, lambda epilogue: _Nest(stage, epilogue, Tiles(cpu)).build())


class _Nest:
    """Builds the loop nest of one convolution."""

    def __init__(self, stage: Stage, epilogue: Epilogue, tiles: Tiles) -> None:
        self.stage = stage
        self.epilogue = epilogue
        self.tiles = tiles
        self.taps = Taps.of(stage)
        self.groups = int(stage.annotations["tersor.groups"])  # type: ignore[call-overload]
        self.data, self.weights = stage.operand(4), stage.operand(5)
        self.dtype = str(stage.buffer.dtype)
        self.lanes = tiles.lanes(self.dtype)
        self.staged = local([tiles.cpu.vector_registers * self.lanes], self.dtype, "staged")
        self.panels = int(self.weights.shape[1])
        self.factor = str(self.data.dtype)
        self.together = tiles.together(self.factor)
        self.width = int(self.weights.shape[4]) // self.together
        self.results = Results.of(epilogue, tiles, self.width)
        self.depth = int(self.weights.shape[3]) // self.taps.kw
        self.channels = int(stage.reduction[-1].extent) // self.taps.kw
        self.rest = self.channels % self.together
        self.out = int(stage.spatial[3].extent) // self.groups
        weights = self.groups * self.out * self.depth * self.taps.kh * self.taps.kw
        self.streamed = tiles.streamed(weights, None)

    def build(self) -> Stmt:
        n, rows = self.stage.spatial[0].extent, self.stage.spatial[1].extent

        weight_bytes = int(product(list(self.weights.shape)))
        apart = self.tiles.rows_apart(weight_bytes, self.together)

        def task(index: Expr) -> Stmt:
            if apart:
                image, y, group, panel = unflatten(index, [n, rows, self.groups, self.panels])
            else:
                image, group, panel, y = unflatten(index, [n, self.groups, self.panels, rows])
            kept = self.results.buffers if self.results is not None else []
            return allocate([self.staged, *kept], self._row(image, group, panel, y))

        return sequence([parallel(simplify(product([n, rows]) * (self.groups * self.panels)), task)])

    def _row(self, image: Expr, group: Expr, panel: Expr, y: Expr) -> Stmt:
        """One row of pixels, one panel of channels; the last panel may have fewer vectors."""
        rest = self.out % self.width
        whole = self._pixels(image, group, panel, y, self.width) if self.out >= self.width else None
        if not rest:
            return sequence([whole])
        last = self._pixels(image, group, panel, y, rest)
        return last if whole is None else IfThenElse(panel < self.out // self.width, whole, last)

    def _pixels(self, image: Expr, group: Expr, panel: Expr, y: Expr, channels: int) -> Stmt:
        vectors = -(-channels // self.lanes)
        out_width, width = self.stage.spatial[2].extent, known(self.data.shape[2])
        size = known(out_width)
        short = self.tiles.is_short(self.taps.kh * self.taps.kw * self.depth, self.together)
        tile = self.tiles.tile_rows(size, vectors, short=short)
        first = group * self.out + panel * self.width

        def at(start: Expr | int, pixels: int, inside: Inside = Reach.INSIDE) -> Stmt:
            return self._tile(image, group, panel, y, start, pixels, vectors, channels, inside)

        prepared = self.results.prepared(first, channels) if self.results is not None else []
        if size is None or width is None:
            return sequence([*prepared, self._open_row(out_width, tile, vectors, at)])
        statements = [*prepared]
        for start, count, interior in edges(self.taps, size, width, tile):
            if interior:
                run = partial(self._interior, start, tile, at)
                statements.append(loop(count // tile, run, name="tile"))
            else:
                statements.append(at(start, count, partial(self._inside, start, width)))
        return sequence(statements)

    def _interior(self, start: int, tile: int, at: TileAt, index: Expr) -> Stmt:
        return at(i64(start) + index * tile, tile)

    def _inside(self, start: int, width: int, pixel: int, tap: int) -> bool:
        return self.taps.inside(start + pixel, tap, width)

    def _open_row(self, out_width: Expr, tile: int, vectors: int, at: TileAt) -> Stmt:
        """A width that is known only at run time."""
        weights = vectors * self.tiles.cpu.vector_bytes
        steps = self.taps.kh * self.taps.kw * self.depth
        near = steps * weights > self.tiles.cpu.l1_bytes  # a tile gets the panel from the second-level cache

        def cycles(pixels: int) -> float:
            least = weights / self.tiles.cpu.l2_bytes_a_cycle if near else 0.0
            return max(self.tiles.step_cycles(pixels, vectors), least)

        row = OpenRow(self.taps, out_width, self.data.shape[2], at, tile)
        return thick_ends(row, fractions(tile, _SIZES), cycles)

    def _tile(
        self,
        image: Expr,
        group: Expr,
        panel: Expr,
        y: Expr,
        start: Expr | int,
        pixels: int,
        vectors: int,
        channels: int,
        inside: Inside,
    ) -> Stmt:
        lanes = self.lanes
        tile = RegisterTile(pixels, vectors, lanes, self.dtype, add_product(self.factor, self.tiles.cpu))
        taps, steps = self.taps, self.depth
        leads = (isinstance(start, int) and start == 0) or (
            inside is Reach.INSIDE and taps.pw == 0
        )  # one of a row's tiles asks
        rows = known(self.stage.spatial[1].extent)
        lines = lines_ahead(y, rows, self.width) if self.streamed and leads else []

        def multiply(
            row: Expr, ry: Expr, column: Expr | int, at: Expr, depth: Expr, live: list[int], rest: int = 0
        ) -> Stmt:
            """Step `at` along KW*C: `column` is the tap's, relative to the pixel's first."""
            ahead = [self._weights([group, panel + 1, ry, depth], line) for line in lines]
            w = [self._weights([group, panel, ry, depth], v * lanes, lanes) for v in range(vectors)]
            statements = [prefetch(load) for load in ahead]
            for p in live:
                x = (i64(start) + p) * taps.sw + column - taps.pw
                value = wide(self._element(image, row, x, group, at, rest), lanes)
                statements += [tile.multiply(p, v, value, w[v]) for v in range(vectors)]
            return sequence(statements)

        def tap(row: Expr, ry: Expr, t: Expr | int, live: list[int], rest: int, at: Expr) -> Stmt:
            return multiply(row, ry, t * taps.dw, at, at + t * steps, live, rest)

        def count(steps: int) -> Expr:
            return hidden(i64(steps)) if self.together == QUAD else i64(steps)

        def channels_of(row: Expr, ry: Expr, t: Expr | int, live: list[int]) -> Stmt:
            whole = steps - 1 if self.rest else steps
            return sequence(
                [
                    loop(count(whole), partial(tap, row, ry, t, live, 0), name="c"),
                    tap(row, ry, t, live, self.rest, i64(whole)) if self.rest else None,
                ]
            )

        def window_row(ry: Expr) -> Stmt:
            row = y * taps.sh + ry * taps.dh - taps.ph
            every = list(range(pixels))
            if inside is Reach.UNKNOWN:
                begin, number = taps.column_range(i64(start), self.data.shape[2])
                return sequence([loop(number, lambda t: channels_of(row, ry, t, every), start=begin, name="rx")])
            if inside is Reach.INSIDE and self.groups == 1 and taps.dw == 1 and not self.rest:
                return sequence([loop(count(taps.kw * steps), lambda d: multiply(row, ry, 0, d, d, every), name="d")])
            if inside is Reach.INSIDE and taps.kw > _WRITTEN_OUT:
                return sequence([loop(taps.kw, lambda t: channels_of(row, ry, t, every), name="rx")])
            lives = [every if inside is Reach.INSIDE else [p for p in every if inside(p, t)] for t in range(taps.kw)]
            return sequence([channels_of(row, ry, t, live) for t, live in enumerate(lives) if live])

        begin, taps_inside = taps.row_range(y, self.data.shape[1], self.stage.spatial[1].extent)
        first = group * self.out + panel * self.width

        def finish(p: Expr, offset: Expr) -> Stmt:
            return self._finish(image, y, i64(start) + p, first, offset, channels)

        body = loop(taps_inside, window_row, start=begin, name="ry")
        if self.results is not None and self.results.takes(channels):
            ends = self.results.rows(tile, first, lambda p: [image, y, i64(start) + p])
            return allocate(tile.buffers, sequence([*self.results.begin(tile), body, *ends]))
        return allocate(tile.buffers, sequence([*tile.zero(), body, *tile.finish(self.staged, finish)]))

    def _weights(self, row: list[Expr], column: Expr | int, lanes: int = 1) -> Expr:
        """Neighbours in a row of a panel, as 32-bit lanes of several elements; or one element."""
        if self.together == 1:
            return BufferLoad(self.weights, [*row, span(column, lanes)])
        if lanes > 1:
            return neighbours(BufferLoad(self.weights, [*row, i64(0)]), i64(column * self.together), lanes)
        return BufferLoad(self.weights, [*row, i64(column * self.together)])

    def _element(self, image: Expr, row: Expr, x: Expr, group: Expr, at: Expr, rest: int) -> Expr:
        """What a step along KW*C multiplies; the steps of a group stay within a pixel.

        Args:
            image: N.
            row: H.
            x: W of the first tap.
            group: which of the groups.
            at: the step.
            rest: of how many elements, where that is less than all.
        """
        ratio = self.together
        right, channel = i64(0), group * self.channels + at * ratio
        if self.groups == 1:
            right, channel = tirx.floordiv(at, self.depth), tirx.floormod(at, self.depth) * ratio
        load = BufferLoad(self.data, [image, row, x + right, channel])
        if ratio == 1:
            return load
        if not rest:
            return neighbours(load, channel)
        others = [BufferLoad(self.data, [image, row, x + right, channel + i]) for i in range(1, rest)]
        return combined([load, *others], self.factor)

    def _finish(self, image: Expr, y: Expr, x: Expr, first: Expr, offset: Expr, channels: int) -> Stmt:
        def vector(start: Expr, n: int) -> Stmt:
            def one(lane: Expr) -> Stmt:
                return self.epilogue.store(
                    [image, y, x, first + start + lane], BufferLoad(self.staged, [offset + start + lane])
                )

            return sequence([vectorized(n, one)])

        return over_vectors(channels, self.lanes, vector)
