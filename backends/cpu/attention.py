"""The rule for attention: one pass over the keys, with no matrix of scores in memory.

Letters: B batch, H heads, S queries, T keys, D size of a query and key, E size of a value. One task computes a block of
queries of one head: for each block of keys the scores, their exponentials against the largest score so far, and the
sums that these weigh the values with; what was summed before is scaled when a larger score turns up (Milakov and
Gimelshein, Online normalizer calculation for softmax, 2018; Dao, FlashAttention-2, 2023).

Queries lie along the vectors. So keys and values are read where they are, one element for all queries of a vector, the
largest score and the sum of a query need no step across a vector, and only the block of queries and that of results,
which are small, are transposed:

    scores[key, query]  = sum over d of  key[key, d]   * queries[d, query]
    result[e, query]   += sum over k of  value[k, e]   * weight[k, query]

What becomes of a score (scale, cap, masks) is whatever the emitter's expression says. A condition `key <= f(query)` or
`key >= f(query)` in it, where f grows with the query, bounds the keys that a block of queries looks at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx

from backends.cpu.kernel import Axis, Kernel, Stage
from backends.cpu.key_bounds import key_bounds
from backends.cpu.loops import (
    BufferLoad,
    BufferStore,
    Expr,
    IfThenElse,
    Stmt,
    TensorLoad,
    Var,
    allocate,
    i64,
    known,
    local,
    loop,
    over_vectors,
    parallel,
    sequence,
    simplify,
    substitute,
    unflatten,
    vectorized,
)
from backends.cpu.polynomials import expand
from backends.cpu.register_tile import RegisterTile, span, wide
from backends.cpu.tiles import Tiles
from optimizer.target import Cpu

_KIND = "attention"
_L1_SHARE = 0.5
"""How much of the first-level cache the weights of a block may take."""

_PARALLEL_FLOPS = 200_000


@dataclass(frozen=True)
class _Parts:
    """An attention taken apart.

    Attributes:
        scores: [B, H, S, T], a sum over D of a product of a query's element and a key's.
        masked: The same after scale and masks.
        context: [B, H, S, E], a sum over T of a weight times a value's element.
        output: What is stored: [B, S, H, E] or [B, H, S, E].
    """

    scores: Stage
    masked: Stage
    context: Stage
    output: Stage

    @property
    def query(self) -> Expr:
        """An element of the queries, in the axes of `scores`."""
        return self.scores.value.b.a

    @property
    def key(self) -> Expr:
        """An element of the keys, in the axes of `scores`."""
        return self.scores.value.b.b

    @property
    def value(self) -> Expr:
        """An element of the values, in the axes of `context`."""
        return self.context.value.b.b


def lower(kernel: Kernel, cpu: Cpu) -> Stmt | None:
    """See `backends.cpu.schedule.Rule`."""
    stages = {stage.kind: stage for stage in kernel.stages}
    if _KIND not in stages:
        return None
    parts = _Parts(*(stages[name] for name in (_KIND, f"{_KIND}.masked", f"{_KIND}.context", f"{_KIND}.output")))
    return _Nest(parts, Tiles(cpu)).build()


class _Nest:
    """Builds the loop nest of one attention."""

    def __init__(self, parts: _Parts, tiles: Tiles) -> None:
        self.parts = parts
        self.tiles = tiles
        self.lanes = tiles.lanes()
        self.batch, self.head, self.row, self.column = parts.scores.spatial
        self.depth = parts.scores.reduction[0]
        self.size = _static(self.depth)
        self.value_size = _static(parts.context.spatial[3])
        self.widest = 4 if tiles.fits(5, 4) else 2
        self.tile_keys = tiles.tile_rows(known(self.column.extent), self.widest)
        self.block_keys = self._block_keys()

    def _block_keys(self) -> int:
        """A multiple of the tile that leaves no small block at the end."""
        most = int(self.tiles.cpu.l1_bytes * _L1_SHARE) // (self.widest * self.lanes * 4)
        most = max(self.tile_keys, most // self.tile_keys * self.tile_keys)
        total = known(self.column.extent)
        if total is None:
            return most
        tiles = -(-total // self.tile_keys)
        blocks = -(-tiles * self.tile_keys // most)
        return -(-tiles // blocks) * self.tile_keys

    def build(self) -> Stmt:
        width = self.widest * self.lanes
        rows = self.row.extent
        blocks = simplify(tirx.floordiv(rows + (width - 1), i64(width)))
        extents = [self.batch.extent, self.head.extent, blocks]

        def task(index: Expr) -> Stmt:
            batch, head, block = unflatten(index, extents)
            point = {self.batch.var: batch, self.head.var: head}
            first = simplify(block * width)
            left = simplify(rows - first)

            def narrow(vectors: int) -> Stmt:
                return _Block(self, point, first, vectors, left).build()

            full = _Block(self, point, first, self.widest, None)
            total = known(rows)
            if total is not None:
                rest = total % width
                if not rest:
                    return full.build()
                part = narrow(-(-rest // self.lanes))
                return part if total < width else IfThenElse(left >= width, full.build(), part)
            choice = narrow(self.widest)
            vectors = self.widest // 2
            while vectors:
                choice = IfThenElse(left <= vectors * self.lanes, narrow(vectors), choice)
                vectors //= 2
            return IfThenElse(left >= width, full.build(), choice)

        tasks = simplify(extents[0] * extents[1] * blocks)
        return sequence([parallel(tasks, task, worthwhile=self._worthwhile())])

    def _worthwhile(self) -> bool:
        flops = 2 * (self.size + self.value_size)
        for axis in (self.batch, self.head, self.row, self.column):
            extent = known(axis.extent)
            if extent is None:
                return True
            flops *= extent
        return flops >= _PARALLEL_FLOPS


class _Block:
    """A block of queries: `vectors` vectors from `first` on, of which `valid` exist (all when it is `None`)."""

    def __init__(self, nest: _Nest, point: dict[Var, Expr], first: Expr, vectors: int, valid: Expr | None) -> None:
        self.nest = nest
        self.parts = nest.parts
        self.point = point
        self.first = first
        self.vectors = vectors
        self.lanes = nest.lanes
        self.width = width = vectors * nest.lanes
        self.valid = i64(width) if valid is None else simplify(tirx.min(valid, i64(width)))
        self.partial = valid is not None
        self.queries = local([nest.size * width], "float32", "queries")
        self.weights = local([nest.block_keys * width], "float32", "weights")
        self.sums = local([nest.value_size * width], "float32", "sums")
        self.largest, self.before, self.shift, self.total, self.factor = (
            local([width], "float32", name) for name in ("largest", "before", "shift", "total", "factor")
        )

    def build(self) -> Stmt:
        minus_infinity = tirx.const(float("-inf"), "float32")
        zero = tirx.const(0, "float32")
        body = sequence(
            [
                self._pack(),
                self._each(lambda at: BufferStore(self.largest, minus_infinity, [at])),
                self._each(lambda at: BufferStore(self.total, zero, [at])),
                loop(self.nest.value_size, lambda e: self._each(lambda at: BufferStore(self.sums, zero, [at]), e)),
                *self._sweep(),
                self._unpack(),
            ]
        )
        small = [self.largest, self.before, self.shift, self.total, self.factor]
        return allocate([self.queries, self.weights, self.sums, *small], body)

    def _each(self, body: Callable[[Expr], Stmt], row: Expr | int = 0) -> Stmt:
        """For all queries: `body` of the place in row `row` of a buffer."""
        start = row * self.width
        return sequence(
            [
                vectorized(self.lanes, lambda lane, s=start + v * self.lanes: body(s + lane))  # type: ignore[misc]
                for v in range(self.vectors)
            ]
        )

    def _pack(self) -> Stmt:
        """The queries, transposed; those that do not exist are zero."""
        zero = tirx.const(0, "float32")
        clear = None
        if self.partial:
            clear = loop(self.nest.size, lambda d: self._each(lambda at: BufferStore(self.queries, zero, [at]), d))

        def query(i: Expr) -> Stmt:
            def element(start: Expr, n: int) -> Stmt:
                def one(lane: Expr) -> Stmt:
                    at = {**self.point, self.nest.row.var: self.first + i, self.nest.depth.var: start + lane}
                    return BufferStore(
                        self.queries, substitute(self.parts.query, at), [(start + lane) * self.width + i]
                    )

                return sequence([vectorized(n, one)])

            return over_vectors(self.nest.size, self.lanes, element)

        return sequence([clear, loop(self.valid, query, name="query")])

    def _sweep(self) -> list[Stmt | None]:
        """All blocks of keys that one of the queries sees."""
        block, keys = self.nest.block_keys, self.nest.column.extent
        last = simplify(self.first + self.valid - 1)
        low, high = key_bounds(self.parts.masked, self.first, last)
        whole = simplify(tirx.floordiv(keys, i64(block)))
        rest = simplify(keys - whole * block)
        begin = i64(0) if low is None else simplify(tirx.floordiv(tirx.max(low, i64(0)), i64(block)))
        end = whole
        if high is not None:
            end = simplify(tirx.min(tirx.floordiv(tirx.max(high, i64(0)) + (block - 1), i64(block)), whole))
        main = loop(
            simplify(tirx.max(end - begin, i64(0))), lambda n: self._keys((begin + n) * block, block), name="keys"
        )
        count = known(rest)
        if count == 0:
            return [main]
        tail = self._keys(simplify(whole * block), rest if count is None else count)
        if high is not None:
            tail = IfThenElse(high > whole * block, tail, None)
        return [main, tail]

    def _keys(self, start: Expr, count: int | Expr) -> Stmt:
        """One block of keys."""
        minus_infinity, zero = tirx.const(float("-inf"), "float32"), tirx.const(0, "float32")

        def load(buffer: Var, at: Expr) -> Expr:
            return BufferLoad(buffer, [at])

        def rescale(at: Expr) -> Stmt:
            """What was summed so far is scaled; where no key was seen yet, exponents are taken from 0."""
            now = load(self.largest, at)
            finite = tirx.Select(tirx.EQ(now, minus_infinity), zero, now)
            change = expand(tirx.exp(load(self.before, at) - load(self.shift, at)))
            return sequence(
                [
                    BufferStore(self.shift, finite, [at]),
                    BufferStore(self.factor, change, [at]),
                    BufferStore(self.total, load(self.total, at) * load(self.factor, at), [at]),
                ]
            )

        def masked(key: Expr) -> Stmt:
            return self._each_query(key, start, lambda at, i, score: self._note(at, i, score))

        def weigh(key: Expr) -> Stmt:
            def one(at: Expr, i: Expr, score: Expr) -> Stmt:
                return sequence(
                    [
                        BufferStore(self.weights, expand(tirx.exp(load(self.weights, at) - load(self.shift, i))), [at]),
                        BufferStore(self.total, load(self.total, i) + load(self.weights, at), [i]),
                    ]
                )

            return self._each_query(key, start, one)

        return sequence(
            [
                self._each(lambda at: BufferStore(self.before, load(self.largest, at), [at])),
                self._scores(start, count),
                loop(count, masked, name="key"),
                self._each(rescale),
                loop(count, weigh, name="key"),
                self._sum(start, count),
            ]
        )

    def _note(self, at: Expr, i: Expr, score: Expr) -> Stmt:
        """Keep a score after scale and masks, and the largest so far."""
        return sequence(
            [
                BufferStore(self.weights, score, [at]),
                BufferStore(self.largest, tirx.max(BufferLoad(self.largest, [i]), BufferLoad(self.weights, [at])), [i]),
            ]
        )

    def _each_query(self, key: Expr, start: Expr, body: Callable[[Expr, Expr, Expr], Stmt]) -> Stmt:
        """For all queries: `body` of the place of a score, that of its query, and the score after scale and masks."""
        raw = self.parts.scores.buffer

        def one(offset: int, lane: Expr) -> Stmt:
            place, query = key * self.width + offset + lane, offset + lane
            row = self.first + query
            if self.partial:  # masks have no rows for queries that do not exist
                row = tirx.min(row, self.nest.row.extent - 1)
            at = dict(zip((a.var for a in self.parts.masked.spatial), self._index(row, start + key), strict=True))

            def own(node: TensorLoad) -> Expr | None:
                return BufferLoad(self.weights, [place]) if node.source.same_as(raw) else None

            return body(place, query, expand(substitute(self.parts.masked.value, at, own)))

        return sequence(
            [
                vectorized(self.lanes, lambda lane, o=v * self.lanes: one(o, lane))  # type: ignore[misc]
                for v in range(self.vectors)
            ]
        )

    def _index(self, row: Expr, column: Expr) -> list[Expr]:
        return [self.point[self.nest.batch.var], self.point[self.nest.head.var], row, column]

    def _scores(self, start: Expr, count: int | Expr) -> Stmt:
        """The products of keys and queries, into `weights`."""
        fixed = {**self.point, self.nest.row.var: self.first}

        def tile(first: Expr, rows: int) -> Stmt:
            def factor(r: int, d: Expr) -> Expr:
                at = {**fixed, self.nest.column.var: start + first + r, self.nest.depth.var: d}
                return substitute(self.parts.key, at)

            return self._tile(first, rows, self.nest.size, self.queries, factor, self.weights, scaled=False)

        return self._tiles(count, self.nest.tile_keys, tile)

    def _sum(self, start: Expr, count: int | Expr) -> Stmt:
        """The values, weighed, onto `sums`."""
        batch, head, row, element = self.parts.context.spatial
        key = self.parts.context.reduction[0]
        fixed = {
            batch.var: self.point[self.nest.batch.var],
            head.var: self.point[self.nest.head.var],
            row.var: self.first,
        }

        def tile(first: Expr, rows: int) -> Stmt:
            def factor(r: int, k: Expr) -> Expr:
                return substitute(self.parts.value, {**fixed, element.var: first + r, key.var: start + k})

            return self._tile(first, rows, count, self.weights, factor, self.sums, scaled=True)

        rows = self.nest.tiles.tile_rows(self.nest.value_size, self.vectors)
        return self._tiles(self.nest.value_size, rows, tile)

    @staticmethod
    def _tiles(count: int | Expr, rows: int, tile: Callable[[Expr, int], Stmt]) -> Stmt:
        """Tiles of so many rows, and a smaller one, or single rows if the count is symbolic."""
        size = known(count)
        whole = simplify(tirx.floordiv(i64(count), i64(rows)))
        main = loop(whole, lambda t: tile(simplify(t * rows), rows), name="tile")
        if size is not None:
            return sequence([main, tile(i64(size - size % rows), size % rows) if size % rows else None])
        done = whole * rows
        return sequence([main, loop(simplify(count - done), lambda r: tile(simplify(done + r), 1), name="rest")])

    def _tile(
        self,
        first: Expr,
        rows: int,
        depth: int | Expr,
        columns: Var,
        factor: Callable[[int, Expr], Expr],
        target: Var,
        *,
        scaled: bool,
    ) -> Stmt:
        """`target[first + r] = sum over k of factor(r, k) * columns[k]`, for all queries; `scaled`: added to target."""
        tile = RegisterTile(rows, self.vectors, self.lanes, "float32")

        def place(row: Expr, v: int) -> Expr:
            return span(simplify(row * self.width + v * self.lanes), self.lanes)

        def step(k: Expr) -> Stmt:
            loads = [BufferLoad(columns, [place(k, v)]) for v in range(self.vectors)]
            adds = [
                tile.add(r, v, wide(factor(r, k), self.lanes) * loads[v])
                for r in range(rows)
                for v in range(self.vectors)
            ]
            return sequence(adds)

        cells = [(r, v) for r in range(rows) for v in range(self.vectors)]
        own = [span(v * self.lanes, self.lanes) for v in range(self.vectors)]
        begin: list[Stmt] = tile.zero()
        if scaled:
            begin = [
                BufferStore(
                    tile.buffers[r],
                    BufferLoad(target, [place(first + r, v)]) * BufferLoad(self.factor, [own[v]]),
                    [own[v]],
                )
                for r, v in cells
            ]
        end = [BufferStore(target, BufferLoad(tile.buffers[r], [own[v]]), [place(first + r, v)]) for r, v in cells]
        return allocate(tile.buffers, sequence([*begin, loop(depth, step, name="k"), *end]))

    def _unpack(self) -> Stmt:
        """The results, divided by the sums of the weights; a query that sees no key gets zero."""
        zero, one = tirx.const(0, "float32"), tirx.const(1, "float32")

        def share(at: Expr) -> Stmt:
            total = BufferLoad(self.total, [at])
            return BufferStore(self.factor, tirx.Select(tirx.EQ(total, zero), zero, one / total), [at])

        output = self.parts.output
        packed = bool(output.annotations.get("tersor.packed", 0))
        batch, head = self.point[self.nest.batch.var], self.point[self.nest.head.var]

        def query(i: Expr) -> Stmt:
            def element(start: Expr, n: int) -> Stmt:
                def store(lane: Expr) -> Stmt:
                    e = start + lane
                    result = BufferLoad(self.sums, [e * self.width + i]) * BufferLoad(self.factor, [i])
                    row = self.first + i
                    return BufferStore(
                        output.buffer, result, [batch, row, head, e] if packed else [batch, head, row, e]
                    )

                return sequence([vectorized(n, store)])

            return over_vectors(self.nest.value_size, self.lanes, element)

        return sequence([self._each(share), loop(self.valid, query, name="query")])


def _static(axis: Axis) -> int:
    size = known(axis.extent)
    assert size is not None, "the emitter asks for known sizes of keys and values"
    return size
