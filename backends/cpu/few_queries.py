"""A few queries against many keys: one step of decoding. See `backends.cpu.attention`.

Too few queries to fill a vector lie along none. Every key and value is read once, as it comes from memory, for all
query heads that share it:

    scores[r, key]  = sum over d of  query[r, d] * key[key, d]      d lies along the vectors
    sums[r, e]     += weight[r, key] * value[key, e]                e does

The rows r are the queries of all heads of a group. For as many keys as a vector has lanes, the vectors of partial
products are summed and turned into one vector of scores in a tree of shuffles. While a block of keys is multiplied, the
values of these keys are asked for, and the next keys while those are summed up: memory always has something to do.

A head is cut into ranges of keys where there are fewer heads than would keep all cores busy. Each range leaves its
largest score, the sum of its weights and its weighed values; `backends.cpu.key_ranges` merges them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from tvm import tirx

from backends.cpu.across_lanes import row_sums
from backends.cpu.key_bounds import key_bounds
from backends.cpu.key_ranges import KeyRanges
from backends.cpu.operands import converted
from backends.cpu.register_tile import LINE_ELEMENTS, RegisterTile, span, wide
from backends.cpu.row_weights import weigh_row
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
    local,
    loop,
    parallel,
    prefetch,
    sequence,
    simplify,
    substitute,
    unflatten,
)

if TYPE_CHECKING:
    from backends.cpu.attention import AttentionNest

__all__ = ["FewQueries"]

_L2_SHARE = 1 / 16
"""How much of the second-level cache the keys of a block may take; their values and what is asked for come beside."""
_L1_SHARE = 0.5
"""How much of the first-level cache the keys may take that all rows are multiplied with, one after the other."""
_WIDEST = 4
"""Vectors of weighed values in registers."""


class FewQueries:
    """All queries of a model with so few, at most `most` a head."""

    def __init__(self, nest: AttentionNest, most: int) -> None:
        self.nest = nest
        self.parts = parts = nest.parts
        self.lanes = nest.lanes
        self.group = int(str(parts.scores.annotations["tersor.group"]))
        self.rows = nest.row.extent
        self.capacity = most * self.group
        self.key_lanes = math.gcd(nest.size, self.lanes)
        self.value_lanes = math.gcd(nest.value_size, self.lanes)
        fitting = int(nest.tiles.cpu.l2_bytes * _L2_SHARE) // (4 * nest.size)
        self.block = max(self.lanes, fitting // self.lanes * self.lanes)
        self.strip = max(1, int(nest.tiles.cpu.l1_bytes * _L1_SHARE) // (4 * nest.size * self.key_lanes))
        self.queries = self._table(nest.size, "queries")
        self.weights = self._table(self.block, "weights")
        self.sums = self._table(nest.value_size, "sums")
        self.largest, self.total, self.factor = (
            self._table(self.lanes, name) for name in ("largest", "total", "factor")
        )

    def _table(self, size: int, name: str) -> Var:
        """`size` elements for each row."""
        return local([self.capacity * size], "float32", name)

    def build(self) -> Stmt:
        """The statement."""
        nest = self.nest
        heads = simplify(tirx.floordiv(nest.head.extent, i64(self.group)))
        ranges = KeyRanges(self, simplify(nest.batch.extent * heads))
        extents = [nest.batch.extent, heads, ranges.count]

        def task(index: Expr) -> Stmt:
            batch, head, part = unflatten(index, extents)
            point = {nest.batch.var: batch, nest.head.var: simplify(head * self.group)}
            return self._task(point, ranges, part)

        tasks = simplify(extents[0] * extents[1] * extents[2])
        return ranges.merged(sequence([parallel(tasks, task, worthwhile=nest.worthwhile())]))

    def _task(self, point: dict[Var, Expr], ranges: KeyRanges, part: Expr) -> Stmt:
        """All queries of a group of heads against one range of keys."""
        low, high = key_bounds(self.parts.masked, i64(0), simplify(self.rows - 1), self._place(point))
        keys = self.nest.column.extent
        begin = i64(0) if low is None else tirx.min(tirx.max(low, i64(0)), keys)
        end = keys if high is None else tirx.min(tirx.max(high, i64(0)), keys)
        first, last = ranges.bounds(part, simplify(begin), simplify(end))
        blocks = simplify(tirx.floordiv(tirx.max(last - first, i64(0)) + (self.block - 1), i64(self.block)))

        def some(n: Expr) -> Stmt:
            start = simplify(first + n * self.block)
            return self._keys(point, start, simplify(tirx.min(last - start, i64(self.block))))

        body = sequence(
            [
                self._each_row(lambda head, row, r: self._begin(point, head, row, r)),
                loop(blocks, some, name="keys"),
                self._each_row(lambda head, row, r: ranges.finish(point, head, row, r, part)),
            ]
        )
        return allocate([self.queries, self.weights, self.sums, self.largest, self.total, self.factor], body)

    def _each_row(self, body: Callable[[Expr, Expr, Expr], Stmt]) -> Stmt:
        """For all rows: `body(head in the group, query, row)`."""

        def of_head(head: Expr) -> Stmt:
            return sequence(
                [loop(self.rows, lambda row: body(head, row, simplify(head * self.rows + row)), name="row")]
            )

        return sequence([loop(self.group, of_head, name="head")])

    def _begin(self, point: dict[Var, Expr], head: Expr, row: Expr, r: Expr) -> Stmt:
        zero, lanes = tirx.const(0, "float32"), self.lanes
        at = {**point, self.nest.head.var: point[self.nest.head.var] + head, self.nest.row.var: row}
        *lead, _ = (substitute(index, at) for index in self.parts.query.indices)
        n, m = self.key_lanes, self.value_lanes

        def copy(c: Expr) -> Stmt:
            value = converted(BufferLoad(self.parts.query.source, [*lead, span(c * n, n)]), "float32", n)
            return BufferStore(self.queries, value, [span(r * self.nest.size + c * n, n)])

        def clear(c: Expr) -> Stmt:
            return BufferStore(self.sums, wide(zero, m), [span(r * self.nest.value_size + c * m, m)])

        return sequence(
            [
                loop(self.nest.size // n, copy, name="part"),
                loop(self.nest.value_size // m, clear, name="part"),
                BufferStore(self.largest, wide(tirx.const(float("-inf"), "float32"), lanes), [span(r * lanes, lanes)]),
                BufferStore(self.total, wide(zero, lanes), [span(r * lanes, lanes)]),
            ]
        )

    def _keys(self, point: dict[Var, Expr], start: Expr, count: Expr) -> Stmt:
        """One block of keys."""
        batch, first = self._place(point)

        def weigh(head: Expr, row: Expr, r: Expr) -> Stmt:
            return weigh_row(self, (batch, first + head, row), r, (start, count))

        return sequence([self._scores(point, start, count), self._each_row(weigh), self._sum(point, start, count)])

    def _scores(self, point: dict[Var, Expr], start: Expr, count: Expr) -> Stmt:
        n = self.key_lanes
        whole = simplify(tirx.floordiv(count, i64(n)))
        strips = simplify(tirx.floordiv(whole + (self.strip - 1), i64(self.strip)))

        def strip(number: Expr) -> Stmt:
            first = simplify(number * self.strip)

            def of_row(head: Expr, row: Expr, r: Expr) -> Stmt:
                def full(i: Expr) -> Stmt:
                    group = simplify((first + i) * n)
                    ahead = self._ask(self.parts.value, self.nest.value_size, self._of_values(point), start + group, n)
                    products = self._products(point, lambda i: simplify(start + group + i), r, group)
                    return sequence([IfThenElse(tirx.EQ(r, i64(0)), ahead, None), products])

                return sequence([loop(simplify(tirx.min(whole - first, i64(self.strip))), full, name="group")])

            return self._each_row(of_row)

        def of_rest(key: int) -> Expr:
            return tirx.min(start + whole * n + key, start + count - 1)

        rest = self._each_row(lambda head, row, r: self._products(point, of_rest, r, simplify(whole * n)))
        return sequence(
            [loop(strips, strip, name="strip"), IfThenElse(whole * n < count, rest, None) if n > 1 else None]
        )

    def _place(self, point: dict[Var, Expr]) -> tuple[Expr, Expr]:
        """Batch element and first head."""
        return point[self.nest.batch.var], point[self.nest.head.var]

    def _of_keys(self, point: dict[Var, Expr]) -> Callable[[Expr], dict[Var, Expr]]:
        return lambda key: {**point, self.nest.row.var: i64(0), self.nest.column.var: key}

    def _of_values(self, point: dict[Var, Expr]) -> Callable[[Expr], dict[Var, Expr]]:
        batch, head, row, _ = (axis.var for axis in self.parts.context.spatial)
        fixed = {batch: point[self.nest.batch.var], head: point[self.nest.head.var], row: i64(0)}
        return lambda key: {**fixed, self.parts.context.reduction[0].var: key}

    def _element(self, load: TensorLoad, at: dict[Var, Expr], start: Expr, lanes: int) -> Expr:
        *lead, _ = (simplify(substitute(index, at)) for index in load.indices)
        return BufferLoad(load.source, [*lead, span(simplify(start), lanes)])

    def _vector(self, load: TensorLoad, at: dict[Var, Expr], start: Expr, lanes: int) -> Expr:
        return converted(self._element(load, at, start, lanes), "float32", lanes)

    def _ask(self, load: TensorLoad, size: int, at: Callable[[Expr], dict[Var, Expr]], first: Expr, count: int) -> Stmt:
        """Ask for the cache lines of so many keys or values."""
        line = LINE_ELEMENTS * (2 if str(load.source.dtype) == "bfloat16" else 1)
        starts = range(0, size, line)
        return sequence([prefetch(self._element(load, at(first + i), i64(s), 1)) for i in range(count) for s in starts])

    def _products(self, point: dict[Var, Expr], of_key: Callable[[int], Expr], r: Expr, group: Expr) -> Stmt:
        """The products of a row and a vector's number of keys, into `weights`."""
        n = self.key_lanes
        at = self._of_keys(point)
        tile = RegisterTile(n, 1, n, "float32")

        def step(c: Expr) -> Stmt:
            query = BufferLoad(self.queries, [span(r * self.nest.size + c * n, n)])
            return sequence(
                [tile.add(i, 0, self._vector(self.parts.key, at(of_key(i)), c * n, n) * query) for i in range(n)]
            )

        sums = row_sums([BufferLoad(b, [span(0, n)]) for b in tile.buffers], n)
        store = BufferStore(self.weights, sums, [span(r * self.block + group, n)])
        return allocate(tile.buffers, sequence([*tile.zero(), loop(self.nest.size // n, step, name="part"), store]))

    def _sum(self, point: dict[Var, Expr], start: Expr, count: Expr) -> Stmt:
        """The values of a block, weighed, onto `sums`."""
        vectors = self.nest.value_size // self.value_lanes
        widest = min(_WIDEST, vectors)
        most = max(r for r in range(1, self.group + 1) if r == 1 or self.nest.tiles.fits(r, widest))
        left = self.group % most

        def of_heads(row: Expr, head: Expr, heads: int, ahead: bool) -> Stmt:
            def part(first: Expr, n: int, ahead: bool) -> Stmt:
                return self._weighed(point, start, count, (head, heads, row), (first, n), ahead)

            return sequence(
                [
                    part(i64(0), widest, ahead),
                    loop(vectors // widest - 1, lambda c: part((c + 1) * widest, widest, False), name="part"),
                    part(i64(vectors - vectors % widest), vectors % widest, False) if vectors % widest else None,
                ]
            )

        def of_row(row: Expr) -> Stmt:
            return sequence(
                [
                    loop(self.group // most, lambda h: of_heads(row, h * most, most, True), name="head"),
                    of_heads(row, i64(self.group - left), left, False) if left else None,
                ]
            )

        return sequence([loop(self.rows, of_row, name="row")])

    def _weighed(
        self,
        point: dict[Var, Expr],
        start: Expr,
        count: Expr,
        rows: tuple[Expr, int, Expr],
        columns: tuple[Expr, int],
        ahead: bool,
    ) -> Stmt:
        """Some vectors of the values, weighed, onto the sums of a few heads."""
        n, size = self.value_lanes, self.nest.value_size
        (head, heads, row), (first, vectors) = rows, columns
        at = self._of_values(point)
        places = [simplify((first + v) * n) for v in range(vectors)]
        index = [simplify((head + h) * self.rows + row) for h in range(heads)]
        tile = RegisterTile(heads, vectors, n, "float32")
        cells = [(h, v) for h in range(heads) for v in range(vectors)]
        own = [span(v * n, n) for v in range(vectors)]

        def sums(h: int, v: int) -> list[Expr]:
            return [span(simplify(index[h] * size + places[v]), n)]

        def factor(h: int) -> Expr:
            return wide(BufferLoad(self.factor, [index[h] * self.lanes]), n)

        def step(k: Expr) -> Stmt:
            values = [self._vector(self.parts.value, at(start + k), place, n) for place in places]
            weights = [wide(BufferLoad(self.weights, [index[h] * self.block + k]), n) for h in range(heads)]
            adds: list[Stmt | None] = [tile.add(h, v, values[v] * weights[h]) for h, v in cells]
            if ahead:
                adds.append(self._ask(self.parts.key, self.nest.size, self._of_keys(point), start + self.block + k, 1))
            return sequence(adds)

        begin = [
            BufferStore(tile.buffers[h], BufferLoad(self.sums, sums(h, v)) * factor(h), [own[v]]) for h, v in cells
        ]
        end = [BufferStore(self.sums, BufferLoad(tile.buffers[h], [own[v]]), sums(h, v)) for h, v in cells]
        return allocate(tile.buffers, sequence([*begin, loop(count, step, name="k"), *end]))
