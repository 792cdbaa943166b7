"""What the threads of a block do for some queries of one head; see `backends.gpu.attention`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from tvm import tirx
from tvm.tirx import BufferStore, Expr, Stmt, Var

from backends.gpu.attention_rows import Rows
from backends.gpu.attention_tile import AttentionTile
from backends.gpu.block_product import outer_product
from backends.gpu.launch import barrier
from backends.gpu.operands import divides
from backends.gpu.threads import (
    Place,
    cast,
    gather,
    holds,
    i32,
    named,
    narrow,
    ramp,
    registers,
    repeat,
    repeat_in_groups,
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
        self.loaders = [
            Rows(*query, self.point, tile.rows, tile.key_piece, tile.threads, thread, tile.size),
            Rows(*key, self.point, tile.keys, tile.key_piece, tile.threads, thread, tile.size),
            Rows(*value, context, tile.keys, tile.value_piece, tile.threads, thread, tile.value_size),
        ]
        begin = simplify(tirx.floordiv(keys[0], i64(tile.keys)))
        end = simplify(tirx.floordiv(keys[1] + (tile.keys - 1), i64(tile.keys)))

        def run(bounds: list[Expr]) -> Stmt:
            return self._run(*bounds)

        memory = [self.queries, self.factor, self.weights, self.exchange]
        own = [self.scores, self.sums, self.largest, self.total, self.scale, *(loader.held for loader in self.loaders)]
        return allocate([*memory, *own], named([first, begin, end], run))

    def _run(self, first: Expr, begin: Expr, end: Expr) -> Stmt:
        tile = self.tile
        self.first = first
        count = narrow(simplify(end - begin))

        def place(index: Expr) -> Expr:
            return simplify((begin + wide_index(index)) * tile.keys)

        def step(index: Expr) -> Stmt:
            return self._step(place(index), holds([index + 1 < count], self._fetch(place(index + 1), 0)))

        starts = [(self.largest, _NOTHING), (self.total, 0.0)]
        return sequence(
            [
                *(scatter(b, zeros(_SUM, value=v), r) for b, v in starts for r in range(tile.thread_rows)),
                *_cleared(self.sums, tile.thread_rows * tile.thread_values),
                *(self._keep_queries(piece) for piece in range(tile.key_pieces) if tile.stays),
                holds([i32(0) < count], self._fetch(place(i32(0)), 0)),
                repeat(count, step, "step"),
                self._finish(),
            ]
        )

    def _keep_queries(self, piece: int) -> Stmt:
        """A piece of the queries, which stay."""
        queries, tile = self.loaders[0], self.tile
        fetch = queries.fetch(self.first, self.row.extent, piece)
        return sequence([fetch, queries.keep_transposed(self.queries, tile.row_pitch, piece * tile.key_piece)])

    def _fetch(self, start: Expr, piece: Place) -> Stmt:
        """A piece of the keys from `start` on, and of the queries if they do not stay."""
        queries, keys, _ = self.loaders
        fetch = keys.fetch(start, self.column.extent, piece)
        return fetch if self.tile.stays else sequence([fetch, queries.fetch(self.first, self.row.extent, piece)])

    def _step(self, start: Expr, following: Stmt) -> Stmt:
        """The keys from `start` on, and their values; `following` fetches what the next step begins with.

        What a thread has of the sums has to be known, so the pieces of values are written out; those of keys are a
        loop, whose addresses take fewer registers.
        """
        tile, values = self.tile, self.loaders[2]
        pieces = tile.value_pieces

        def fetch(piece: int) -> Stmt:
            return values.fetch(start, self.column.extent, piece)

        return sequence(
            [
                *_cleared(self.scores, tile.thread_rows * tile.thread_keys),
                repeat(tile.key_pieces - 1, lambda c: self._scores(c, self._fetch(start, c + 1)), "piece"),
                self._scores(i32(tile.key_pieces - 1), fetch(0)),
                self._masked(start),
                self._exchange_largest(),
                *(self._values(c, fetch(c + 1) if c + 1 < pieces else following) for c in range(pieces)),
            ]
        )

    def _scores(self, piece: Expr, following: Stmt) -> Stmt:
        """Of the thread's queries and keys, what a piece of their elements adds; what follows is fetched meanwhile."""
        tile = self.tile
        queries, keys, _ = self.loaders
        a, b = registers(tile.thread_rows, _SUM, "a"), registers(tile.thread_keys, _SUM, "b")
        first = self.y * tile.thread_rows + (piece * (tile.key_piece * tile.row_pitch) if tile.stays else 0)

        def at(d: Expr) -> Stmt:
            row = gather(self.queries, d * tile.row_pitch + first, tile.thread_rows)
            column = gather(self.factor, d * tile.key_pitch + self.x * tile.thread_keys, tile.thread_keys)
            reads = [scatter(a, row, 0, tile.thread_rows), scatter(b, column, 0, tile.thread_keys)]
            return sequence([*reads, *outer_product(self.scores, a, b, tile.thread_rows, tile.thread_keys)])

        return sequence(
            [
                barrier(),
                keys.keep_transposed(self.factor, tile.key_pitch),
                None if tile.stays else queries.keep_transposed(self.queries, tile.row_pitch),
                following,
                barrier(),
                allocate([a, b], sequence([repeat_in_groups(tile.key_piece, at, "d")])),
            ]
        )

    def _values(self, piece: int, following: Stmt) -> Stmt:
        """A piece of the values of a step, weighed; what follows is fetched meanwhile."""
        tile, values = self.tile, self.loaders[2]
        return sequence(
            [
                barrier(),
                values.keep(self.factor, tile.value_piece),
                self._weigh() if piece == 0 else None,
                following,
                barrier(),
                self._add(piece),
            ]
        )

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
            for place in self._places(r):
                statements.append(scatter(self.sums, gather(self.sums, place) * gather(self.scale, r), place))
        return sequence(statements)

    def _places(self, r: int) -> list[int]:
        """Where the sums of a row of the thread lie: piece by piece."""
        tile = self.tile
        pieces = range(
            r * tile.thread_piece, tile.thread_rows * tile.thread_values, tile.thread_rows * tile.thread_piece
        )
        return [first + e for first in pieces for e in range(tile.thread_piece)]

    @property
    def _width(self) -> int:
        """Neighbours in a row of values that a thread has."""
        return math.gcd(4, self.tile.thread_piece)

    def _add(self, piece: int) -> Stmt:
        """The piece that lies in shared memory."""
        tile, width = self.tile, self._width
        a, b = registers(tile.thread_rows, _SUM, "a"), registers(tile.thread_piece, _SUM, "b")
        first = piece * tile.thread_rows * tile.thread_piece

        def at(k: Expr) -> Stmt:
            row = gather(self.weights, k * tile.row_pitch + self.y * tile.thread_rows, tile.thread_rows)
            reads = [scatter(a, row, 0, tile.thread_rows)]
            for c in range(0, tile.thread_piece, width):
                place = k * tile.value_piece + c * tile.across + self.x * width
                reads.append(scatter(b, gather(self.factor, place, width), c, width))
            return sequence([*reads, *outer_product(self.sums, a, b, tile.thread_rows, tile.thread_piece, first)])

        return allocate([a, b], sequence([repeat_in_groups(tile.keys, at, "k")]))

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
        for e, place in enumerate(self._places(r)):
            if e % lanes:
                continue
            piece, c = divmod(e, tile.thread_piece)
            before = piece * tile.value_piece + c // width * width * tile.across + c % width
            element = wide_index(self.x * width + before)
            own = gather(self.sums, place, lanes)
            divisor = tirx.Select(tirx.EQ(total, zeros(_SUM)), zeros(_SUM, value=1.0), total)
            value = own / (tirx.Broadcast(divisor, lanes) if lanes > 1 else divisor)
            store = BufferStore(output.buffer, cast(value, dtype, lanes), [*lead, ramp(element, lanes)])
            whole = (piece + 1) * tile.value_piece <= tile.value_size
            statements.append(holds([None if whole else element < tile.value_size], store))
        return holds([None if divides(tile.rows, self.row.extent) else query < self.row.extent], sequence(statements))


def _cleared(buffer: Var, size: int) -> list[Stmt]:
    width = math.gcd(4, size)
    return [scatter(buffer, zeros(_SUM, width), i, width) for i in range(0, size, width)]
