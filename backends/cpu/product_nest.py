"""Loops of a matrix product: register tiles of rows x vectors over panels of columns.

Letters: R rows that share one B, N columns, K the reduced axis, P panels of W columns. One task computes some rows of
one panel. Where the rows of A fit in the second-level cache, or where a panel (K x W) is the larger part, the panel
stays there while all rows pass by; otherwise a block of rows stays there while all panels pass by, so that A comes from
memory once. Rows and columns that do not fill a tile get tiles of their own size, so that nothing is computed twice and
no inner loop tests a bound. A step along K takes a pair of bfloat16, or four bytes (`backends.cpu.factors`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import tirx

from backends.cpu.amounts import element_bytes
from backends.cpu.byte_results import Results
from backends.cpu.epilogue import Epilogue
from backends.cpu.factors import Factors, add_product, factors_of, last_steps
from backends.cpu.operations import hidden
from backends.cpu.quads import QUAD
from backends.cpu.register_tile import RegisterTile, asks_ahead, remainder, wide
from backends.cpu.tiles import Tiles
from backends.relax import product_parts
from backends.relax.kernel import Stage
from backends.relax.loops import (
    BufferLoad,
    Expr,
    IfThenElse,
    Stmt,
    TensorLoad,
    Var,
    allocate,
    bind,
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

Asked = Sequence[Callable[[Expr], Expr]]
"""See `register_tile.asks_ahead`."""

PARALLEL_FLOPS = 400_000
"""Below this, waking the other threads costs more than they save (a parallel region takes 1-2 microseconds)."""

_ROWS_A_SHARE = 32
"""With fewer, the last tile of a thread's rows, which they do not fill, would cost too much."""

_FEW_ROWS = 4
"""With fewer rows, nothing is computed meanwhile: the processor's own prefetching keeps the memory busy."""


@dataclass(frozen=True)
class Product(product_parts.Product[Expr]):
    """A matrix product taken apart, with what the tile model asks of it."""

    @property
    def apart(self) -> int:
        """Bytes between the rows of A; 0 where it does not lie as rows, or where that is symbolic."""
        if not isinstance(self.left, TensorLoad) or not self.left.indices[-1].same_as(self.depth.var):
            return 0
        return (known(self.left.source.shape[-1]) or 0) * element_bytes(self.left.source.dtype)


def take_apart(stage: Stage) -> Product | None:
    """The product that a stage is; `None` if it is none."""
    factors = factors_of(stage) if stage.kind == "matmul" else None
    if factors is None or not isinstance(factors[1], TensorLoad) or len(stage.reduction) != 1:
        return None
    return Product.of(stage, factors[0], factors[1])


class Nest:
    """Builds the loop nest of one product."""

    def __init__(self, parts: Product, epilogue: Epilogue, tiles: Tiles) -> None:
        self.parts = parts
        self.epilogue = epilogue
        self.tiles = tiles
        self.dtype = str(epilogue.heavy.buffer.dtype)
        self.lanes = tiles.lanes(self.dtype)
        self.staged = local([tiles.cpu.vector_registers * self.lanes], self.dtype, "staged")
        self.row_extents = [a.extent for a in parts.rows]
        self.total_rows = product(self.row_extents)
        self.columns = known(parts.column.extent)
        self.factors = Factors(parts.left, parts.right, parts.depth, packed=parts.width is not None, tiles=tiles)
        self.steps = self.factors.steps
        self.width = parts.width or self._plain_width()
        weights = (self.columns or 0) * (known(self.steps) or 0)
        self.results = self._results()
        self.streamed = parts.width is not None and tiles.streamed(weights, known(self.total_rows))

    def build(self) -> Stmt:
        """The whole nest."""
        batch_extents = [a.extent for a in self.parts.batch]
        batches = product(batch_extents)
        panels = simplify(tirx.floordiv(self.parts.column.extent + (self.width - 1), self.width))
        blocks = self.tiles.row_blocks(self.total_rows, known(self.steps), self.width)
        if blocks is None and self.tiles.rows_apart(self._weight_bytes(), self.factors.together):
            blocks = self._row_shares()
        chunks = self._chunks(batches, panels)
        if blocks is not None:
            chunks = blocks if known(blocks) is not None else simplify(tirx.Max(blocks, chunks))

        def task(index: Expr) -> Stmt:
            inner = [chunks, panels] if blocks is not None else [panels, chunks]
            first, second, third = unflatten(index, [batches, *inner])
            panel, chunk = (third, second) if blocks is not None else (second, third)

            def body(place: list[Expr]) -> Stmt:
                panel, chunk, *batch = place
                point = {a.var: b for a, b in zip(self.parts.batch, batch, strict=True)}
                kept = self.results.buffers if self.results is not None else []
                return allocate([self.staged, *kept], self._panel(point, panel, chunk, chunks))

            place = [panel, chunk, *unflatten(first, batch_extents)]
            return body(place) if known(simplify(batches * panels * chunks)) is not None else bind(place, body)

        return sequence([parallel(simplify(batches * panels * chunks), task, worthwhile=self._worthwhile(batches))])

    def _results(self) -> Results | None:
        """What finishes the tiles, where that is not `_finish_row`."""
        return Results.of(self.epilogue, self.tiles, self.width)

    def _plain_width(self) -> int:
        if self.columns is None:
            return 2 * self.lanes
        return self.tiles.panel_width(known(self.total_rows), self.columns, known(self.steps) or 512, self.dtype)

    def _worthwhile(self, batches: Expr) -> bool:
        sizes = [known(batches), known(self.total_rows), self.columns, known(self.parts.depth.extent)]
        flops = 2
        for size in sizes:
            if size is None:
                return True
            flops *= size
        return flops >= PARALLEL_FLOPS

    def _weight_bytes(self) -> int | None:
        depth = known(self.parts.depth.extent)
        return None if self.columns is None or depth is None or self.parts.batch else self.columns * depth

    def _row_shares(self) -> Expr | None:
        """Into how many parts the rows are cut where each thread takes its own; `None` if they are too few."""
        cores, rows = self.tiles.cpu.cores, known(self.total_rows)
        return None if rows is not None and rows < _ROWS_A_SHARE * cores else i64(2 * cores)

    def _chunks(self, batches: Expr, panels: Expr) -> Expr:
        """Into how many parts the rows are cut, so that the threads get equal shares."""
        cores = self.tiles.cpu.cores
        tasks = known(simplify(batches * panels))
        rows = known(self.total_rows)
        if tasks is not None and (tasks % cores == 0 or tasks >= 8 * cores):
            return i64(1)
        most = 4 * cores if rows is None else max(1, rows // 8)
        return i64(min(2 * cores, most))

    def _panel(self, point: dict[Var, Expr], panel: Expr, chunk: Expr, chunks: Expr) -> Stmt:
        """Some rows of one panel."""
        first = panel * self.width
        if self.columns is None:
            rest = self.parts.column.extent - first
            full = self._sweep(point, panel, first, self.width // self.lanes, i64(self.width), chunk, chunks)
            part = self._narrow_columns(point, panel, first, rest, chunk, chunks)
            return IfThenElse(rest >= self.width, full, part)
        full_panels, rest_columns = divmod(self.columns, self.width)
        whole = (
            self._sweep(point, panel, first, self.width // self.lanes, i64(self.width), chunk, chunks)
            if full_panels
            else None
        )
        if not rest_columns:
            return sequence([whole])
        last = self._last_panel(point, panel, first, rest_columns, chunk, chunks)
        return last if whole is None else IfThenElse(panel < full_panels, whole, last)

    def _last_panel(
        self, point: dict[Var, Expr], panel: Expr, first: Expr, columns: int, chunk: Expr, chunks: Expr
    ) -> Stmt:
        if self.parts.width is not None:  # padded with zeros: whole vectors can be read
            return self._sweep(point, panel, first, -(-columns // self.lanes), i64(columns), chunk, chunks)
        vectors, rest = divmod(columns, self.lanes)
        whole = self._sweep(point, panel, first, vectors, i64(vectors * self.lanes), chunk, chunks) if vectors else None
        start = first + vectors * self.lanes
        return sequence([whole, self._narrow_columns(point, panel, start, i64(rest), chunk, chunks) if rest else None])

    def _narrow_columns(
        self, point: dict[Var, Expr], panel: Expr, first: Expr, count: Expr, chunk: Expr, chunks: Expr
    ) -> Stmt:
        """Columns of a B that is not packed and that do not fill a vector, one by one."""
        return sequence(
            [
                loop(
                    count,
                    lambda j: self._sweep(point, panel, first + j, 1, i64(1), chunk, chunks, lanes=1),
                    name="column",
                )
            ]
        )

    def _sweep(
        self,
        point: dict[Var, Expr],
        panel: Expr,
        first: Expr,
        vectors: int,
        valid: Expr,
        chunk: Expr,
        chunks: Expr,
        lanes: int | None = None,
    ) -> Stmt:
        """All rows of a chunk against `vectors` vectors of columns, of which `valid` columns exist."""
        lanes = self.lanes if lanes is None else lanes
        short = self.tiles.is_short(known(self.steps), self.factors.together)
        rows = self.tiles.tile_rows(known(self.total_rows), vectors, self.parts.apart, short=short)

        tiles = known(simplify(tirx.floordiv(tirx.floordiv(self.total_rows, rows), chunks)))  # of each chunk

        def tile(start: Expr, count: int, ahead: Asked = ()) -> Stmt:
            return self._tile(point, panel, first, start, count, vectors, lanes, valid, ahead)

        def full(index: Expr, place: Expr) -> Stmt:
            asks = self.streamed and rows >= _FEW_ROWS
            return tile(index * rows, rows, asks_ahead(place, tiles, self.width, known(self.steps)) if asks else ())

        whole = simplify(tirx.floordiv(self.total_rows, rows))
        divided = known(chunks) != 1
        begin = simplify(tirx.floordiv(chunk * whole, chunks)) if divided else i64(0)
        end = simplify(tirx.floordiv((chunk + 1) * whole, chunks)) if divided else whole
        rest = self._rest(simplify(self.total_rows - whole * rows), whole * rows, rows, tile)
        if rest is not None and divided:
            rest = IfThenElse(tirx.EQ(chunk, chunks - 1), rest, None)

        def between(bounds: list[Expr]) -> Stmt:
            begin, end = bounds
            prepared = self.results.prepared(first, valid) if self.results is not None else []
            main = loop(simplify(end - begin), lambda t: full(begin + t, t), name="tile")
            return sequence([*prepared, main, rest])

        return between([begin, end]) if known(whole) is not None else bind([begin, end], between)

    def _rest(self, count: Expr, start: Expr, rows: int, tile: Callable[[Expr, int], Stmt]) -> Stmt | None:
        """Fewer rows than a tile has: one smaller tile, or a few if their number is symbolic."""
        size = known(count)
        if size is not None:
            return tile(start, size) if size else None
        return remainder(count, start, rows, tile)

    def _tile(
        self,
        point: dict[Var, Expr],
        panel: Expr,
        first: Expr,
        start: Expr,
        rows: int,
        vectors: int,
        lanes: int,
        valid: Expr,
        ahead: Asked,
    ) -> Stmt:
        tile = RegisterTile(rows, vectors, lanes, self.dtype, add_product(self.factors.dtype, self.tiles.cpu))

        def step(k: Expr, rest: int = 0) -> Stmt:
            asked = self._asked(point, panel + 1, i64(0), [place(k) for place in ahead])
            return sequence([*asked, *self._step(tile, point, panel, first, start, k, rest)])

        def finish(r: Expr, offset: Expr) -> Stmt:
            return self._finish_row(point, simplify(start + r), first, offset, valid, lanes)

        body = [self._sum(self.steps, step)]
        if self.factors.together > 1:
            body += last_steps(self.parts.depth.extent, self.factors.together, lambda n: step(self.steps, n))
        if self.results is not None and self.results.takes(valid):
            ends = self.results.rows(tile, first, lambda r: self._lead(point, simplify(start + r)))
            return allocate(tile.buffers, sequence([*self.results.begin(tile), *body, *ends]))
        return allocate(tile.buffers, sequence([*tile.zero(), *body, *tile.finish(self.staged, finish)]))

    def _sum(self, steps: Expr, step: Callable[[Expr], Stmt]) -> Stmt | None:
        """The loop over so many steps along the reduced axis."""
        return loop(hidden(steps) if self.factors.together == QUAD else steps, step, name="k")

    def _asked(self, point: dict[Var, Expr], panel: Expr, k: Expr, places: Sequence[Expr]) -> list[Stmt]:
        """Prefetches of lines of a panel from its row `k` on; places are counted in elements of four bytes."""
        together = self.factors.together
        columns = [place * together if together > 1 else place for place in places]
        return [prefetch(self.factors.packed(point, panel, k, column)) for column in columns]

    def _step(
        self, tile: RegisterTile, point: dict[Var, Expr], panel: Expr, first: Expr, start: Expr, k: Expr, rest: int
    ) -> list[Stmt]:
        """What a tile of rows from `start` on adds up in a step; `rest`: elements of the last one."""
        begin = 0 if self.parts.width is not None else first
        count = tile.vectors
        columns = [self.factors.right(point, panel, begin + v * tile.lanes, k, tile.lanes, rest) for v in range(count)]
        statements = []
        for r in range(tile.rows):
            a = wide(self.factors.left(self._at_row(point, simplify(start + r)), k, rest), tile.lanes)
            statements += [tile.multiply(r, v, a, columns[v]) for v in range(count)]
        return statements

    def _at_row(self, point: dict[Var, Expr], row: Expr) -> dict[Var, Expr]:
        coordinates = unflatten(row, self.row_extents)
        return {**point, **{a.var: c for a, c in zip(self.parts.rows, coordinates, strict=True)}}

    def _lead(self, point: dict[Var, Expr], row: Expr) -> list[Expr]:
        """All indices of a row of the result but the last."""
        at = self._at_row(point, row)
        return [at[a.var] for a in self.parts.lead]

    def _finish_row(
        self, point: dict[Var, Expr], row: Expr, first: Expr, offset: Expr, valid: Expr, lanes: int
    ) -> Stmt:
        lead = self._lead(point, row)

        def vector(start: Expr, n: int) -> Stmt:
            def one(lane: Expr) -> Stmt:
                return self.epilogue.store(
                    [*lead, first + start + lane], BufferLoad(self.staged, [offset + start + lane])
                )

            return sequence([vectorized(n, one)])

        return over_vectors(valid, lanes, vector)
