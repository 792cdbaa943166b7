"""A block of queries of one head, against all keys that one of them sees. See `backends.cpu.attention`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tvm import tirx

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
    sequence,
    simplify,
    substitute,
    vectorized,
)
from backends.cpu.polynomials import expand
from backends.cpu.register_tile import RegisterTile, span, wide
from backends.cpu.transposition import transposed

if TYPE_CHECKING:
    from backends.cpu.attention import AttentionNest

__all__ = ["QueryBlock"]


class QueryBlock:
    """A block of queries: `vectors` vectors from `first` on, of which `valid` exist (all when it is `None`)."""

    def __init__(
        self, nest: AttentionNest, point: dict[Var, Expr], first: Expr, vectors: int, valid: Expr | None
    ) -> None:
        self.nest = nest
        self.parts = nest.parts
        self.point = point
        self.place = (point[nest.batch.var], point[nest.head.var])
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
        """The statement."""
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
        row, depth = self.nest.row.var, self.nest.depth.var

        def square(i: Expr, d: Expr) -> Stmt:
            def load(r: int) -> Expr:
                at = {**self.point, row: self.first + i + r}
                *lead, _ = (substitute(index, at) for index in self.parts.query.indices)
                return BufferLoad(self.parts.query.source, [*lead, span(d, self.lanes)])

            def store(c: int, column: Expr) -> Stmt:
                return BufferStore(self.queries, column, [span((d + c) * self.width + i, self.lanes)])

            return transposed(self.lanes, load, store)

        def single(i: Expr, d: Expr) -> Stmt:
            element = substitute(self.parts.query, {**self.point, row: self.first + i, depth: d})
            return BufferStore(self.queries, element, [d * self.width + i])

        return sequence([clear, self._crosswise(self.nest.size, square, single)])

    def _crosswise(self, size: int, square: Callable[[Expr, Expr], Stmt], single: Callable[[Expr, Expr], Stmt]) -> Stmt:
        """Visit all existing queries and `size` elements of each: in squares of a vector's size as far as they go."""
        lanes = self.lanes
        whole = size - size % lanes
        groups = simplify(tirx.floordiv(self.valid, i64(lanes)))

        def elements(i: Expr, start: int) -> Stmt:
            def some(first: Expr, n: int) -> Stmt:
                return sequence([vectorized(n, lambda lane: single(i, start + first + lane))])

            return over_vectors(size - start, lanes, some)

        done = simplify(groups * lanes)
        squares = loop(
            groups, lambda g: sequence([loop(whole // lanes, lambda c: square(g * lanes, c * lanes), name="column")])
        )
        narrow = loop(done, lambda i: elements(i, whole), name="query") if whole < size else None
        rest = loop(simplify(self.valid - done), lambda i: elements(done + i, 0), name="query")
        return sequence([squares if whole else None, narrow, rest])

    def _sweep(self) -> list[Stmt | None]:
        """All blocks of keys that one of the queries sees."""
        block, keys = self.nest.block_keys, self.nest.column.extent
        low, high = key_bounds(self.parts.masked, self.first, simplify(self.first + self.valid - 1), self.place)
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
        return [*self.place, row, column]

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

        def place(i: Expr, e: Expr) -> list[Expr]:
            return [batch, self.first + i, head, e] if packed else [batch, head, self.first + i, e]

        def square(i: Expr, e: Expr) -> Stmt:
            factor = BufferLoad(self.factor, [span(i, self.lanes)])

            def load(r: int) -> Expr:
                return BufferLoad(self.sums, [span((e + r) * self.width + i, self.lanes)]) * factor

            def store(c: int, column: Expr) -> Stmt:
                return BufferStore(output.buffer, column, place(i + c, span(e, self.lanes)))

            return transposed(self.lanes, load, store)

        def single(i: Expr, e: Expr) -> Stmt:
            result = BufferLoad(self.sums, [e * self.width + i]) * BufferLoad(self.factor, [i])
            return BufferStore(output.buffer, result, place(i, e))

        return sequence([self._each(share), self._crosswise(self.nest.value_size, square, single)])
