"""The rule for 3 x 3 convolutions by Winograd's method: see `backends.relax.winograd` for the matrices.

Letters as there; the data is [N, H, W, C], the filters [P, 6, 6, C, width] in P panels. One task takes a block of
patches and some of the panels. It transforms the patches, [36, patches, C]; then, panel by panel, it multiplies them
with the filters, 36 matrix products, and transforms the results, [36, patches, width], back to pixels. Both buffers
stay in the second-level cache. The last block begins where it ends with the last patch, so that all blocks are of one
size; a run that brings the sizes of the images chooses it, as large as there is room for. The filters of a large
convolution come from memory: while the tiles of one product are computed, the next product's are asked for.
"""

from __future__ import annotations

from functools import partial

from tvm import tirx

from backends.cpu.epilogue import Epilogue
from backends.cpu.half import unrounded, widened
from backends.cpu.heavy import with_epilogue
from backends.cpu.register_tile import RegisterTile, covering, lines_ahead, span, wide
from backends.cpu.tiles import Tiles
from backends.cpu.winograd_transforms import by_columns, by_rows
from backends.relax.kernel import Kernel, Stage
from backends.relax.loops import (
    BufferLoad,
    BufferStore,
    Expr,
    IfThenElse,
    Stmt,
    allocate,
    bind,
    i64,
    known,
    local,
    loop,
    parallel,
    prefetch,
    sequence,
    simplify,
    vectorized,
)
from backends.relax.winograd import OUT, OUTPUT_MATRIX, PATCH, PATCH_MATRIX
from optimizer.target import Cpu

_POINTS = PATCH * PATCH


def lower(kernel: Kernel, cpu: Cpu) -> Stmt | None:
    """See `backends.cpu.schedule.Rule`."""
    stage = kernel.stages[0]
    if stage.kind != "winograd":
        return None
    return with_epilogue(kernel, cpu, lambda epilogue: _Nest(stage, epilogue, Tiles(cpu)).build())


class _Nest:
    """Builds the loop nest of one convolution."""

    def __init__(self, stage: Stage, epilogue: Epilogue, tiles: Tiles) -> None:
        self.epilogue = epilogue
        self.tiles = tiles
        self.lanes = tiles.lanes()
        self.dtype = str(stage.buffer.dtype)
        self.data, self.filters = stage.operand(4), stage.operand(5)
        self.pads = [int(v) for v in stage.annotations["tersor.pads"]]  # type: ignore[attr-defined]
        self.images, self.height, self.width, out = (a.extent for a in stage.spatial)
        self.out = int(out)
        self.panels, _, _, self.depth, self.panel = (int(s) for s in self.filters.shape)
        self.down, self.across = (simplify(tirx.floordiv(size + (OUT - 1), OUT)) for size in (self.height, self.width))
        self.patches = simplify(self.down * self.across * (1 if known(self.images) is None else self.images))
        """Patches that are cut into blocks: those of all images, or of one if their number is symbolic."""
        blocks, self.size = tiles.winograd_blocks(known(self.patches), self.depth, self.panel)
        self.blocks = simplify(tirx.floordiv(self.patches + (self.size - 1), self.size)) if blocks is None else blocks
        self.count: Expr = i64(self.size)
        """Patches in a block; where only the run knows, the fewest that make as many blocks as are needed."""
        # A line more than the rows need keeps the 36 planes from falling into the same sets of the cache.
        self.plane = self.size * self.depth + self.lanes
        self.result_plane = self.size * self.panel + self.lanes
        self.transformed = local([_POINTS * self.plane], "float32", "transformed")
        self.products = local([_POINTS * self.result_plane], "float32", "products")
        self.staged = local([OUT * OUT * self.lanes], "float32", "staged")
        open_sizes = known(self.data.shape[1]) is None or known(self.data.shape[2]) is None
        self.gathered = local([_POINTS * self.depth], "float32", "gathered") if open_sizes else None
        """A patch of an image of symbolic size: 36 addresses without a common stride take LLVM most of a minute."""

    def build(self) -> Stmt:
        """The statement."""
        images: Expr | int = 1 if known(self.images) is not None else self.images
        blocks = simplify(i64(images) * i64(self.blocks))

        def tasks(bound: list[Expr]) -> Stmt:
            shares, self.count = bound
            return sequence([self._tasks(blocks, shares)])

        return bind([self._shares(blocks), self._patches_in_a_block()], tasks)

    def _patches_in_a_block(self) -> Expr:
        if known(self.patches) is not None:
            return self.count
        return simplify(tirx.floordiv(self.patches + (self.blocks - 1), self.blocks))

    def _tasks(self, blocks: Expr, shares: Expr) -> Stmt:
        """All blocks, each in so many shares."""

        def task(index: Expr) -> Stmt:
            share = tirx.floormod(index, shares)
            rest = tirx.floordiv(index, shares)
            block = tirx.floormod(rest, i64(self.blocks))
            image = tirx.floordiv(rest, i64(self.blocks))
            first = simplify(tirx.Min(block * self.count, self.patches - self.count))
            begin = simplify(tirx.floordiv(share * self.panels, shares))
            end = simplify(tirx.floordiv((share + 1) * self.panels, shares))

            def body(bound: list[Expr]) -> Stmt:
                image, first, begin = bound
                panel = loop(simplify(end - begin), lambda p: self._panel(image, first, begin + p), name="panel")
                return sequence([loop(self.count, lambda t: self._transform(image, first, t), name="patch"), panel])

            own = [self.transformed, self.products, self.staged, *([] if self.gathered is None else [self.gathered])]
            return allocate(own, bind([image, first, begin], body))

        return parallel(simplify(blocks * shares), task)

    def _shares(self, blocks: Expr) -> Expr:
        """Into how many shares the panels are cut, so that every thread has work; each transforms the patches."""
        cores = self.tiles.cpu.cores
        enough = tirx.any(tirx.EQ(tirx.floormod(blocks, i64(cores)), i64(0)), blocks >= 4 * cores)
        return simplify(tirx.Select(enough, i64(1), i64(min(cores, self.panels))))

    def _place(self, image: Expr, patch: Expr) -> list[Expr]:
        """Image, row and column of a patch."""
        own = tirx.floordiv(patch, self.down * self.across) if known(self.images) is not None else image
        rest = tirx.floormod(patch, self.down * self.across)
        return [own, tirx.floordiv(rest, self.across), tirx.floormod(rest, self.across)]

    def _transform(self, image: Expr, first: Expr, t: Expr) -> Stmt:
        """B^T d B of one patch, all channels."""
        return bind(self._place(image, first + t), lambda place: self._patch(place, t))

    def _patch(self, place: list[Expr], t: Expr) -> Stmt:
        image, row, column = place
        top, left = row * OUT - self.pads[0], column * OUT - self.pads[1]
        lanes = self.lanes

        def vector(v: Expr) -> Stmt:
            channel = v * lanes
            given = RegisterTile(1, PATCH, lanes, "float32").buffers[0]
            half = RegisterTile(PATCH, PATCH, lanes, "float32")
            statements: list[Stmt] = []
            for q in range(PATCH):
                for p in range(PATCH):
                    value = self._input(image, top, left, p, q, channel)
                    statements.append(BufferStore(given, value, [span(p * lanes, lanes)]))
                taken = [BufferLoad(given, [span(p * lanes, lanes)]) for p in range(PATCH)]
                for i, value in enumerate(by_rows(PATCH_MATRIX, taken, lanes)):
                    statements.append(BufferStore(half.buffers[i], value, [span(q * lanes, lanes)]))
            for i in range(PATCH):
                taken = [BufferLoad(half.buffers[i], [span(q * lanes, lanes)]) for q in range(PATCH)]
                for j, value in enumerate(by_rows(PATCH_MATRIX, taken, lanes)):
                    at = (i * PATCH + j) * self.plane + t * self.depth + channel
                    statements.append(BufferStore(self.transformed, value, [span(at, lanes)]))
            return allocate([given, *half.buffers], sequence(statements))

        gather = None
        if self.gathered is not None:
            gather = loop(_POINTS, lambda point: self._gather(image, top, left, point), name="point")
        return sequence([gather, loop(self.depth // lanes, vector, name="vector")])

    def _input(self, image: Expr, top: Expr, left: Expr, p: int, q: int, channel: Expr) -> Expr:
        """A vector of channels of one pixel of a patch; zeros where the patch lies outside the image."""
        if self.gathered is not None:
            return BufferLoad(self.gathered, [span((p * PATCH + q) * self.depth + channel, self.lanes)])
        load = BufferLoad(self.data, [image, top + p, left + q, span(channel, self.lanes)])
        zero = wide(tirx.const(0, "float32"), self.lanes)
        return tirx.if_then_else(self._inside(top + p, left + q), widened(load), zero)

    def _inside(self, row: Expr, column: Expr) -> Expr:
        return tirx.all(row >= 0, row < self.data.shape[1], column >= 0, column < self.data.shape[2])

    def _gather(self, image: Expr, top: Expr, left: Expr, point: Expr) -> Stmt:
        """Copy all channels of one pixel of a patch."""
        row, column = top + tirx.floordiv(point, PATCH), left + tirx.floormod(point, PATCH)
        lanes = self.lanes

        def vector(v: Expr, inside: bool) -> Stmt:
            load = widened(BufferLoad(self.data, [image, row, column, span(v * lanes, lanes)]))
            value = load if inside else wide(tirx.const(0, "float32"), lanes)
            return BufferStore(self.gathered, value, [span(point * self.depth + v * lanes, lanes)])

        def vectors(inside: bool) -> Stmt:
            return sequence([loop(self.depth // lanes, lambda v: vector(v, inside), name="vector")])

        return IfThenElse(self._inside(row, column), vectors(True), vectors(False))

    def _panel(self, image: Expr, first: Expr, panel: Expr) -> Stmt:
        """The products with one panel, and the way back."""
        vectors = self.panel // self.lanes
        left = i64(self.out + self.lanes - 1) - panel * self.panel
        valid = simplify(tirx.Min(i64(vectors), tirx.floordiv(left, self.lanes)))
        if self.out % self.panel == 0:
            valid = i64(vectors)

        def back(t: Expr) -> Stmt:
            return sequence(
                [loop(valid, lambda v: self._back(image, first, t, panel * self.panel, v * self.lanes), name="vector")]
            )

        return sequence(
            [
                loop(_POINTS, lambda point: self._multiply(point, panel, vectors), name="point"),
                loop(self.count, back, name="patch"),
            ]
        )

    def _multiply(self, point: Expr, panel: Expr, vectors: int) -> Stmt:
        """One of the 36 products: [patches, C] x [C, width]."""
        if known(self.count) is None:
            lines = lines_ahead(i64(0), 1, self.panel)

            def some(start: Expr, rows: int) -> Stmt:
                return self._tile(point, panel, start, rows, vectors, lines)

            cycles = partial(self.tiles.step_cycles, vectors=vectors)
            return sequence([covering(self.count, self.tiles.tile_rows(None, vectors), cycles, some)])
        rows = self.tiles.tile_rows(self.size, vectors)
        whole, rest = divmod(self.size, rows)

        def ahead(tile: Expr) -> list[Expr]:
            return lines_ahead(tile, whole, self.panel)

        return sequence(
            [
                loop(whole, lambda r: self._tile(point, panel, r * rows, rows, vectors, ahead(r)), name="tile"),
                self._tile(point, panel, i64(whole * rows), rest, vectors, []) if rest else None,
            ]
        )

    def _tile(self, point: Expr, panel: Expr, start: Expr, rows: int, vectors: int, lines: list[Expr]) -> Stmt:
        lanes = self.lanes
        tile = RegisterTile(rows, vectors, lanes, "float32")
        at = (tirx.floordiv(point, PATCH), tirx.floormod(point, PATCH))
        following = (tirx.floordiv(point + 1, PATCH), tirx.floormod(point + 1, PATCH))

        def step(k: Expr) -> Stmt:
            factors = [BufferLoad(self.filters, [panel, *at, k, span(v * lanes, lanes)]) for v in range(vectors)]
            statements = []
            for r in range(rows):
                element = BufferLoad(self.transformed, [point * self.plane + (start + r) * self.depth + k])
                statements += [tile.add(r, v, wide(element, lanes) * factors[v]) for v in range(vectors)]
            return sequence([*(ahead(k, line) for line in lines), *statements])

        def ahead(k: Expr, line: Expr) -> Stmt:
            return prefetch(BufferLoad(self.filters, [panel, *following, k, line]))

        stores = [
            BufferStore(
                self.products,
                BufferLoad(buffer, [span(v * lanes, lanes)]),
                [span(point * self.result_plane + (start + r) * self.panel + v * lanes, lanes)],
            )
            for r, buffer in enumerate(tile.buffers)
            for v in range(vectors)
        ]
        return allocate(tile.buffers, sequence([*tile.zero(), loop(self.depth, step, name="k"), *stores]))

    def _back(self, image: Expr, first: Expr, t: Expr, channel: Expr, lane: Expr) -> Stmt:
        """A^T m A of one patch for one vector of channels, and what follows the convolution."""
        return bind(self._place(image, first + t), lambda place: self._results(place, t, channel, lane))

    def _results(self, place: list[Expr], t: Expr, channel: Expr, lane: Expr) -> Stmt:
        image, row, column = place
        lanes = self.lanes
        half = RegisterTile(OUT, PATCH, lanes, "float32")
        statements: list[Stmt | None] = []
        for j in range(PATCH):
            taken = [
                BufferLoad(
                    self.products,
                    [span((i * PATCH + j) * self.result_plane + t * self.panel + lane, lanes)],
                )
                for i in range(PATCH)
            ]
            for y, value in enumerate(by_columns(OUTPUT_MATRIX, taken, lanes)):
                statements.append(BufferStore(half.buffers[y], value, [span(j * lanes, lanes)]))
        for y in range(OUT):
            taken = [BufferLoad(half.buffers[y], [span(j * lanes, lanes)]) for j in range(PATCH)]
            for x, value in enumerate(by_columns(OUTPUT_MATRIX, taken, lanes)):
                statements.append(BufferStore(self.staged, value, [span((y * OUT + x) * lanes, lanes)]))

        def pixel(y: Expr, x: Expr, count: int) -> Stmt:
            def one(n: Expr) -> Stmt:
                value = unrounded(BufferLoad(self.staged, [(y * OUT + x) * lanes + n]), self.dtype)
                return self.epilogue.store([image, row * OUT + y, column * OUT + x, channel + lane + n], value)

            return sequence([vectorized(count, one)])

        down = _left(self.height, row)
        across = _left(self.width, column)

        def pixels(count: int) -> Stmt:
            return sequence(
                [loop(down, lambda y: sequence([loop(across, lambda x: pixel(y, x, count), name="x")]), name="y")]
            )

        rest = self.out % lanes
        stored = pixels(lanes)
        if rest:  # the last vector of channels is not full
            stored = IfThenElse(channel + lane + lanes <= self.out, stored, pixels(rest))
        return allocate(half.buffers, sequence([*statements, stored]))


def _left(size: Expr, patch: Expr) -> Expr:
    """How many of a patch's outputs lie inside the image."""
    return i64(OUT) if known(simplify(tirx.floormod(size, OUT))) == 0 else tirx.Min(i64(OUT), size - patch * OUT)
