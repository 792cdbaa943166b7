"""A block of queries of one head, against all keys that one of them sees. See `backends.cpu.attention`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tvm import tirx

from backends.cpu.key_bounds import key_bounds
from backends.cpu.operands import Pairs, converted, pair_rows
from backends.cpu.polynomials import exp_of_nonpositive, expand
from backends.cpu.register_tile import RegisterTile, span, wide
from backends.cpu.transposition import in_squares, transposed
from backends.relax.loops import (
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
    sequence,
    simplify,
    substitute,
    vectorized,
)

if TYPE_CHECKING:
    from backends.cpu.attention import AttentionNest

__all__ = ["QueryBlock"]


def _element(buffer: Var, at: Expr) -> Expr:
    return BufferLoad(buffer, [at])


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
        self.operands = nest.operands
        self.steps = int(self.operands.steps(nest.size))
        self.queries = local([self.steps * width], self.operands.dtype, "queries")
        self.weights = local([nest.block_keys * width], "float32", "weights")
        self.sums = local([nest.value_size * width], "float32", "sums")
        self.value_step = float(str(nest.parts.output.annotations.get("tersor.scale", 1.0)))
        self.largest, self.before, self.shift, self.total, self.factor = (
            local([width], "float32", name) for name in ("largest", "before", "shift", "total", "factor")
        )
        sizes = (width, nest.value_size) if isinstance(self.operands, Pairs) else ()
        self.pairs = [local([self.operands.steps(nest.block_keys) * size], "int32", "pairs") for size in sizes]

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
        return allocate([self.queries, self.weights, self.sums, *self.pairs, *small], body)

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
        clear = None
        if self.partial:
            zero = tirx.const(0, self.operands.dtype)
            clear = loop(self.steps, lambda d: self._each(lambda at: BufferStore(self.queries, zero, [at]), d))

        def query(i: Expr) -> TensorLoad:
            return substitute(self.parts.query, {**self.point, self.nest.row.var: self.first + i})

        def square(i: Expr, d: Expr) -> Stmt:
            def store(c: int, column: Expr) -> Stmt:
                return BufferStore(self.queries, column, [span((d + c) * self.width + i, self.lanes)])

            return transposed(
                self.lanes, lambda r: self.operands.vector(query(i + r), d, self.lanes), store, self.operands.dtype
            )

        def single(i: Expr, d: Expr) -> Stmt:
            return BufferStore(self.queries, self.operands.lane(query(i), d), [d * self.width + i])

        return sequence([clear, in_squares(self.valid, self.steps, self.lanes, square, single)])

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

        def rescale(at: Expr) -> Stmt:
            """What was summed so far is scaled; where no key was seen yet, exponents are taken from 0."""
            now = _element(self.largest, at)
            finite = tirx.Select(tirx.EQ(now, minus_infinity), zero, now)
            change = exp_of_nonpositive(_element(self.before, at) - _element(self.shift, at))
            return sequence(
                [
                    BufferStore(self.shift, finite, [at]),
                    BufferStore(self.factor, change, [at]),
                    BufferStore(self.total, _element(self.total, at) * _element(self.factor, at), [at]),
                ]
            )

        def masked(key: Expr) -> Stmt:
            return self._each_query(key, start, lambda at, i, score: self._note(at, i, score))

        return sequence(
            [
                self._each(lambda at: BufferStore(self.before, _element(self.largest, at), [at])),
                self._scores(start, count),
                loop(count, masked, name="key"),
                self._each(rescale),
                self._weigh(start, count),
                self._sum(start, count),
            ]
        )

    def _weigh(self, start: Expr, count: int | Expr) -> Stmt:
        """The weights of a block of keys in the place of their scores, and their sums."""

        def weigh(key: Expr) -> Stmt:
            def one(at: Expr, i: Expr, score: Expr) -> Stmt:
                weight = exp_of_nonpositive(_element(self.weights, at) - _element(self.shift, i))
                total = _element(self.total, i) + _element(self.weights, at)
                return sequence([BufferStore(self.weights, weight, [at]), BufferStore(self.total, total, [i])])

            return self._each_query(key, start, one)

        return loop(count, weigh, name="key")

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
            at = dict(zip((a.var for a in self.parts.masked.spatial), (*self.place, row, start + key), strict=True))

            def own(node: TensorLoad) -> Expr | None:
                return BufferLoad(self.weights, [place]) if node.source.same_as(raw) else None

            return body(place, query, expand(substitute(self.parts.masked.value, at, own)))

        return sequence(
            [
                vectorized(self.lanes, lambda lane, o=v * self.lanes: one(o, lane))  # type: ignore[misc]
                for v in range(self.vectors)
            ]
        )

    def _scores(self, start: Expr, count: int | Expr) -> Stmt:
        """The products of keys and queries, into `weights`."""

        def tile(first: Expr, rows: int) -> Stmt:
            def factor(r: int, d: Expr) -> Expr:
                at = {**self.point, self.nest.row.var: self.first, self.nest.column.var: start + first + r}
                return self.operands.element(substitute(self.parts.key, at), d)

            return self._tile(first, rows, self.steps, self.queries, factor, self.weights, scaled=False)

        return self._tiles(count, self.nest.tile_keys, tile)

    def _sum(self, start: Expr, count: int | Expr) -> Stmt:
        """The values, weighed, onto `sums`."""
        batch, head, row, element = (axis.var for axis in self.parts.context.spatial)
        key = self.parts.context.reduction[0].var
        fixed = {**dict(zip((batch, head), self.place, strict=True)), row: self.first}
        size, weights = self.nest.value_size, self.weights
        paired = None

        def value(k: Expr, e: Expr) -> Expr:
            return substitute(self.parts.value, {**fixed, element: e, key: start + k})

        if self.pairs:
            weights, values = self.pairs

            def some(k: Expr, first: Expr, n: int) -> Expr:
                return BufferLoad(self.parts.value.source, [*value(k, first).indices[:-1], span(first, n)])

            def weight(k: Expr, first: Expr, n: int) -> Expr:
                return converted(BufferLoad(self.weights, [span(k * self.width + first, n)]), "bfloat16", n)

            paired = sequence(
                [
                    pair_rows(weights, weight, count, self.width, self.lanes),
                    pair_rows(values, some, count, size, self.lanes),
                ]
            )

        def tile(first: Expr, rows: int) -> Stmt:
            def factor(r: int, k: Expr) -> Expr:
                return BufferLoad(values, [k * size + first + r]) if self.pairs else value(k, first + r)

            return self._tile(first, rows, self.operands.steps(count), weights, factor, self.sums, scaled=True)

        return sequence([paired, self._tiles(size, self.nest.tiles.tile_rows(size, self.vectors), tile)])

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
            return sequence([multiply(r, v, wide(factor(r, k), self.lanes), loads[v]) for r, v in cells])

        def multiply(r: int, v: int, a: Expr, b: Expr) -> Stmt:
            total = self.operands.add(BufferLoad(tile.buffers[r], [own[v]]), a, b)
            return BufferStore(tile.buffers[r], total, [own[v]])

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
        zero, step = tirx.const(0, "float32"), tirx.const(self.value_step, "float32")

        def share(at: Expr) -> Stmt:
            total = BufferLoad(self.total, [at])
            return BufferStore(self.factor, tirx.Select(tirx.EQ(total, zero), zero, step / total), [at])

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
                value = converted(column, str(output.buffer.dtype), self.lanes)
                return BufferStore(output.buffer, value, place(i + c, span(e, self.lanes)))

            return transposed(self.lanes, load, store)

        def single(i: Expr, e: Expr) -> Stmt:
            result = BufferLoad(self.sums, [e * self.width + i]) * BufferLoad(self.factor, [i])
            return BufferStore(output.buffer, converted(result, str(output.buffer.dtype), 1), place(i, e))

        return sequence([self._each(share), in_squares(self.valid, self.nest.value_size, self.lanes, square, single)])
