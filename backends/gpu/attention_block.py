"""What the threads of a block do for some queries of one head; see `backends.gpu.attention`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tvm import tirx
from tvm.tirx import BufferStore, Expr, Stmt, Var

from backends.gpu.attention_rows import Rows
from backends.gpu.attention_tile import AttentionTile
from backends.gpu.block_product import outer_product
from backends.gpu.launch import barrier
from backends.gpu.operands import divides
from backends.gpu.threads import (
    cast,
    gather,
    holds,
    i32,
    named,
    narrow,
    ramp,
    registers,
    repeat,
    scatter,
    shared,
    wide_index,
    zeros,
)
from backends.relax.loops import TensorLoad, allocate, i64, sequence, simplify, substitute

if TYPE_CHECKING:
    from backends.gpu.attention import AttentionParts

__all__ = ["AttentionBlock"]

_SUM = "float32"
_NOTHING = float("-inf")


class AttentionBlock:
    """Builds what the threads of a block do."""

    def __init__(self, parts: AttentionParts, tile: AttentionTile) -> None:
        self.parts, self.tile = parts, tile
        self.batch, self.head, self.row, self.column = parts.scores.spatial
        names = ("queries", "factor", "weights", "exchange")
        self.queries, self.factor, self.weights, self.exchange = (
            shared(size, _SUM, name) for size, name in zip(tile.parts, names, strict=True)
        )
        rows = tile.thread_rows
        self.scores = registers(rows * tile.thread_keys, _SUM, "scores")
        self.sums = registers(rows * tile.thread_values, _SUM, "sums")
        self.largest, self.total = registers(rows, _SUM, "largest"), registers(rows, _SUM, "total")
        self.scale = registers(rows, _SUM, "scale")

    def build(self, batch: Expr, head: Expr, first: Expr, keys: tuple[Expr, Expr], thread: Expr) -> Stmt:
        """The statement.

        Args:
            batch: B.
            head: H.
            first: the first query.
            keys: the first key that is looked at, and the one behind the last.
            thread: which thread.
        """
        thread, tile = narrow(thread), self.tile
        self.point = {self.batch.var: batch, self.head.var: head}
        self.first, self.y, self.x = first, tirx.floordiv(thread, tile.across), tirx.floormod(thread, tile.across)
        parts = self.parts
        query, key = ((load, self.parts.scores.spatial[axis].var) for load, axis in ((parts.query, 2), (parts.key, 3)))
        value = (parts.value, parts.context.reduction[0].var)
        context = dict(zip((a.var for a in parts.context.spatial[:2]), (batch, head), strict=True))
        loaders = [
            Rows(*query, self.point, tile.rows, tile.size, tile.threads, thread),
            Rows(*key, self.point, tile.keys, tile.size, tile.threads, thread),
            Rows(*value, context, tile.keys, tile.values, tile.threads, thread, end=tile.value_size),
        ]
        begin = simplify(tirx.floordiv(keys[0], i64(tile.keys)))
        end = simplify(tirx.floordiv(keys[1] + (tile.keys - 1), i64(tile.keys)))

        def run(bounds: list[Expr]) -> Stmt:
            return self._run(loaders, *bounds)

        memory = [self.queries, self.factor, self.weights, self.exchange]
        own = [self.scores, self.sums, self.largest, self.total, self.scale, *(loader.held for loader in loaders)]
        return allocate([*memory, *own], named([first, begin, end], run))

    def _run(self, loaders: Sequence[Rows], first: Expr, begin: Expr, end: Expr) -> Stmt:
        tile = self.tile
        queries, keys, values = loaders
        self.first = first
        count = narrow(simplify(end - begin))

        def place(index: Expr) -> Expr:
            return simplify((begin + wide_index(index)) * tile.keys)

        def step(index: Expr) -> Stmt:
            start = place(index)
            return sequence(
                [
                    barrier(),
                    keys.keep_transposed(self.factor, tile.key_pitch),
                    values.fetch(start, self.column.extent),
                    barrier(),
                    self._scores(),
                    self._masked(start),
                    self._exchange_largest(),
                    barrier(),
                    values.keep(self.factor, tile.values),
                    self._weigh(),
                    holds([index + 1 < count], keys.fetch(place(index + 1), self.column.extent)),
                    barrier(),
                    self._add(),
                ]
            )

        starts = [(self.largest, _NOTHING), (self.total, 0.0)]
        return sequence(
            [
                *(scatter(b, zeros(_SUM, value=v), r) for b, v in starts for r in range(tile.thread_rows)),
                *_cleared(self.sums, tile.thread_rows * tile.thread_values),
                queries.fetch(first, self.row.extent),
                queries.keep_transposed(self.queries, tile.row_pitch),
                holds([i32(0) < count], keys.fetch(place(i32(0)), self.column.extent)),
                repeat(count, step, "step"),
                self._finish(),
            ]
        )

    def _scores(self) -> Stmt:
        """Of the thread's queries and keys."""
        tile = self.tile
        a, b = registers(tile.thread_rows, _SUM, "a"), registers(tile.thread_keys, _SUM, "b")

        def at(d: Expr) -> Stmt:
            row = gather(self.queries, d * tile.row_pitch + self.y * tile.thread_rows, tile.thread_rows)
            column = gather(self.factor, d * tile.key_pitch + self.x * tile.thread_keys, tile.thread_keys)
            reads = [scatter(a, row, 0, tile.thread_rows), scatter(b, column, 0, tile.thread_keys)]
            return sequence([*reads, *outer_product(self.scores, a, b, tile.thread_rows, tile.thread_keys)])

        clear = _cleared(self.scores, tile.thread_rows * tile.thread_keys)
        return allocate([a, b], sequence([*clear, repeat(tile.size, at, "d")]))

    def _masked(self, start: Expr) -> Stmt:
        """Scores after scale and masks; minus infinity where there is no such query or key."""
        tile = self.tile
        scores, row, column = self.parts.scores.buffer, self.row.extent, self.column.extent
        axes = [a.var for a in self.parts.masked.spatial]
        batch, head = self.point[self.batch.var], self.point[self.head.var]
        statements = []
        for r in range(tile.thread_rows):
            query = simplify(self.first + wide_index(self.y * tile.thread_rows + r))
            for k in range(tile.thread_keys):
                key, place = simplify(start + wide_index(self.x * tile.thread_keys + k)), r * tile.thread_keys + k
                point = dict(zip(axes, (batch, head, query, key), strict=True))

                def load(node: TensorLoad, place: int = place) -> Expr | None:
                    return gather(self.scores, place) if node.source.same_as(scores) else None

                value = cast(substitute(self.parts.masked.value, point, load), _SUM)
                exists = [
                    None if divides(tile.rows, row) else query < row,
                    None if divides(tile.keys, column) else key < column,
                ]
                nothing = scatter(self.scores, zeros(_SUM, value=_NOTHING), place)
                statements.append(holds(exists, scatter(self.scores, value, place), nothing))
        return sequence(statements)

    def _exchange_largest(self) -> Stmt:
        """The largest of a thread's scores of each query, to the others that share it."""
        tile = self.tile
        statements = []
        for r in range(tile.thread_rows):
            largest = gather(self.scores, r * tile.thread_keys)
            for k in range(1, tile.thread_keys):
                largest = tirx.Max(largest, gather(self.scores, r * tile.thread_keys + k))
            statements.append(scatter(self.exchange, largest, self._shared_place(r)))
        return sequence(statements)

    def _shared_place(self, r: int) -> Expr:
        return self.x * self.tile.rows + self.y * self.tile.thread_rows + r

    def _together(self, combine: Callable[[Expr, Expr], Expr], target: Var) -> Stmt:
        """Combines into `target` what the threads that share a query have exchanged."""
        tile = self.tile

        def other(x: Expr) -> Stmt:
            start = x * tile.rows + self.y * tile.thread_rows
            return sequence(
                [
                    scatter(target, combine(gather(target, r), gather(self.exchange, start + r)), r)
                    for r in range(tile.thread_rows)
                ]
            )

        return sequence([repeat(tile.across, other, "other")])

    def _weigh(self) -> Stmt:
        """The exponentials against the largest score so far; what was summed up before is scaled to it."""
        tile = self.tile
        statements: list[Stmt | None] = [
            scatter(self.scale, gather(self.largest, r), r) for r in range(tile.thread_rows)
        ]
        statements.append(self._together(tirx.Max, self.largest))
        for r in range(tile.thread_rows):
            largest = gather(self.largest, r)
            finite = tirx.Select(tirx.EQ(largest, zeros(_SUM, value=_NOTHING)), zeros(_SUM), largest)
            statements.append(scatter(self.scale, tirx.exp(gather(self.scale, r) - finite), r))
            statements.append(scatter(self.total, gather(self.total, r) * gather(self.scale, r), r))
            for k in range(tile.thread_keys):
                place = r * tile.thread_keys + k
                statements.append(scatter(self.scores, tirx.exp(gather(self.scores, place) - finite), place))
                statements.append(scatter(self.total, gather(self.total, r) + gather(self.scores, place), r))
                weight = (self.x * tile.thread_keys + k) * tile.row_pitch + self.y * tile.thread_rows + r
                statements.append(scatter(self.weights, gather(self.scores, place), weight))
            for e in range(tile.thread_values):
                place = r * tile.thread_values + e
                statements.append(scatter(self.sums, gather(self.sums, place) * gather(self.scale, r), place))
        return sequence(statements)

    @property
    def _width(self) -> int:
        """Neighbours in a row of values that a thread has."""
        return math.gcd(4, self.tile.thread_values)

    def _add(self) -> Stmt:
        """The values of a step, weighed."""
        tile, width = self.tile, self._width
        a, b = registers(tile.thread_rows, _SUM, "a"), registers(tile.thread_values, _SUM, "b")

        def at(k: Expr) -> Stmt:
            row = gather(self.weights, k * tile.row_pitch + self.y * tile.thread_rows, tile.thread_rows)
            reads = [scatter(a, row, 0, tile.thread_rows)]
            for c in range(0, tile.thread_values, width):
                place = k * tile.values + c * tile.across + self.x * width
                reads.append(scatter(b, gather(self.factor, place, width), c, width))
            return sequence([*reads, *outer_product(self.sums, a, b, tile.thread_rows, tile.thread_values)])

        return allocate([a, b], sequence([repeat(tile.keys, at, "k")]))

    def _finish(self) -> Stmt:
        """The sums of all threads that share a query, and the results divided by them."""
        tile = self.tile
        rows = range(tile.thread_rows)
        return sequence(
            [
                barrier(),
                *(scatter(self.exchange, gather(self.total, r), self._shared_place(r)) for r in rows),
                barrier(),
                *(scatter(self.total, zeros(_SUM), r) for r in rows),
                self._together(lambda a, b: a + b, self.total),
                *(self._store(r) for r in rows),
            ]
        )

    def _store(self, r: int) -> Stmt:
        tile, width, output = self.tile, self._width, self.parts.output
        query = simplify(self.first + wide_index(self.y * tile.thread_rows + r))
        batch, head = self.point[self.batch.var], self.point[self.head.var]
        lead = [batch, query, head] if int(output.annotations["tersor.packed"]) else [batch, head, query]  # type: ignore[call-overload]
        dtype, total = str(output.buffer.dtype), gather(self.total, r)
        lanes = width if dtype == _SUM and tile.value_size % width == 0 else 1
        statements = []
        for c in range(0, tile.thread_values, width):
            for lane in range(0, width, lanes):
                element = wide_index(c * tile.across + self.x * width + lane)
                own = gather(self.sums, r * tile.thread_values + c + lane, lanes)
                divisor = tirx.Select(tirx.EQ(total, zeros(_SUM)), zeros(_SUM, value=1.0), total)
                value = own / (tirx.Broadcast(divisor, lanes) if lanes > 1 else divisor)
                store = BufferStore(output.buffer, cast(value, dtype, lanes), [*lead, ramp(element, lanes)])
                exists = None if tile.values == tile.value_size else element < tile.value_size
                statements.append(holds([exists], store))
        return holds([None if divides(tile.rows, self.row.extent) else query < self.row.extent], sequence(statements))


def _cleared(buffer: Var, size: int) -> list[Stmt]:
    width = math.gcd(4, size)
    return [scatter(buffer, zeros(_SUM, width), i, width) for i in range(0, size, width)]
