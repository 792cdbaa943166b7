"""Attention on tensor cores: what the warps of a block do for some queries of one head.

Letters as in `backends.gpu.attention`. Each warp has 16 queries, which stay in its registers as fragments, and goes
over the keys in steps (Dao, FlashAttention-2, 2023): no warp waits for another's scores. While a step is computed, the
keys and values of the next one come to shared memory by asynchronous copies:

    keys[K, D + 8]    values[K, E + 8]      of two steps; the eight elements keep the rows of a matrix in other banks
    queries[rows, D + 8]                    before the first step, in the place of the second

1. Scores are products of the queries' fragments and the keys': 16 x 8 sums, of which a thread has, of its rows t / 4
   and t / 4 + 8, the columns 2 * (t % 4) and the next (PTX ISA, matrix fragments for mma.m16n8k16).
2. The four threads of a row exchange its largest score; exponentials and sums are float32. What was summed before is
   scaled when a larger score turns up.
3. The exponentials of two products side by side are, rounded to 16 bits, just what a thread has of the left fragment of
   16 x 16: they go from scores to weights of the values without leaving its registers.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tvm import tirx
from tvm.tirx import BufferLoad, BufferStore, Expr, Stmt, Var

from backends.gpu.launch import barrier
from backends.gpu.operands import copied, divides
from backends.gpu.tensor_attention_tile import ROWS, TensorAttentionTile
from backends.gpu.tensor_instructions import commit, copy, matrices, multiply, pair, quad, wait
from backends.gpu.tensor_product import flat_index
from backends.gpu.threads import (
    cast,
    gather,
    holds,
    i32,
    named,
    narrow,
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

__all__ = ["TensorAttention"]

_SUM = "float32"
_NOTHING = float("-inf")
_LINES = 2
"""Rows of a product that a thread has."""


class TensorAttention:
    """Builds what the threads of a block do."""

    def __init__(self, parts: AttentionParts, tile: TensorAttentionTile) -> None:
        self.parts, self.tile, self.dtype = parts, tile, str(parts.key.source.dtype)
        self.batch, self.head, self.row, self.column = parts.scores.spatial
        self.memory = shared(tile.shared_words, "uint32", "tile")
        self.queries = registers(tile.depth // 4, "uint32", "queries")
        self.scores = registers(tile.keys // 2, _SUM, "scores")
        self.weights = registers(tile.keys // 4, "uint32", "weights")
        self.sums = registers(tile.values // 2, _SUM, "sums")
        self.largest, self.total = registers(_LINES, _SUM, "largest"), registers(_LINES, _SUM, "total")
        self.scale = registers(_LINES, _SUM, "scale")

    def build(self, batch: Expr, head: Expr, first: Expr, keys: tuple[Expr, Expr], thread: Expr) -> Stmt:
        """See `backends.gpu.attention_block.AttentionBlock.build`."""
        thread, tile, parts = narrow(thread), self.tile, self.parts
        self.point = {self.batch.var: batch, self.head.var: head}
        warp, self.lane = tirx.floordiv(thread, i32(32)), tirx.floormod(thread, i32(32))
        self.own_row = warp * ROWS
        self.quarter = tirx.floormod(self.lane, i32(4)) * 2
        context = dict(zip((a.var for a in parts.context.spatial[:2]), (batch, head), strict=True))
        value = (parts.value, parts.context.reduction[0].var, context)
        copiers = [
            _Lines(parts.query, self.row.var, self.point, (tile.rows, tile.size, tile.depth), self, thread),
            _Lines(parts.key, self.column.var, self.point, (tile.keys, tile.size, tile.depth), self, thread),
            _Lines(*value, (tile.keys, tile.value_size, tile.values), self, thread),
        ]
        begin = simplify(tirx.floordiv(keys[0], i64(tile.keys)))
        end = simplify(tirx.floordiv(keys[1] + (tile.keys - 1), i64(tile.keys)))
        down = wide_index(self.own_row + tirx.floordiv(self.lane, i32(4)))
        values = [begin, end, simplify(first + down), simplify(first + down + 8)]

        def run(named_values: list[Expr]) -> Stmt:
            begin, end, *self.lines = named_values
            return self._run(copiers, first, begin, end)

        own = [self.queries, self.scores, self.weights, self.sums, self.largest, self.total, self.scale]
        return allocate([self.memory, *own], named(values, run))

    def _run(self, copiers: list[_Lines], first: Expr, begin: Expr, end: Expr) -> Stmt:
        tile = self.tile
        queries, keys, values = copiers
        count = narrow(simplify(end - begin))

        def fetch(index: Expr) -> Stmt:
            start = simplify((begin + wide_index(index)) * tile.keys)
            stage = tirx.truncmod(index, i32(2)) * tile.stage_words
            copies = [
                keys.copy(start, self.column.extent, stage, tile.key_pitch),
                values.copy(start, self.column.extent, stage + tile.keys * tile.key_pitch, tile.value_pitch),
            ]
            return sequence([holds([index < count], sequence(copies)), commit()])

        def step(index: Expr) -> Stmt:
            stage = tirx.truncmod(index, i32(2)) * tile.stage_words
            start = simplify((begin + wide_index(index)) * tile.keys)
            return sequence(
                [
                    wait(0),
                    barrier(),
                    fetch(index + 1),
                    self._score(stage),
                    named([simplify(start + wide_index(self.quarter))], lambda at: self._mask(at[0])),
                    self._weigh(),
                    self._add(stage + tile.keys * tile.key_pitch),
                ]
            )

        starts = [(self.largest, _NOTHING, _LINES), (self.total, 0.0, _LINES), (self.sums, 0.0, tile.values // 2)]
        return sequence(
            [
                *(scatter(b, zeros(_SUM, value=v), i) for b, v, size in starts for i in range(size)),
                queries.copy(first, self.row.extent, i32(tile.query_word), tile.key_pitch),
                fetch(i32(0)),
                wait(0),
                barrier(),
                *self._read_queries(),
                barrier(),
                repeat(count, step, "step"),
                self._finish(),
            ]
        )

    def _read_queries(self) -> list[Stmt]:
        """The fragments of the warp's queries."""
        tile = self.tile
        own, half = tirx.floormod(self.lane, i32(16)), tirx.floordiv(self.lane, i32(16))
        word = tile.query_word + (self.own_row + own) * tile.key_pitch + half * 4
        return [matrices(self.queries, d * 4, self.memory, word + d * 8) for d in range(tile.depth // 16)]

    def _score(self, stage: Expr) -> Stmt:
        """Products of the warp's queries and the keys of a step, 16 keys at a time."""
        tile, b = self.tile, registers(4, "uint32", "b")
        line = tirx.floordiv(self.lane, i32(16)) * 8 + tirx.floormod(self.lane, i32(8))
        half = tirx.floormod(tirx.floordiv(self.lane, i32(8)), i32(2))
        word = stage + line * tile.key_pitch + half * 4
        statements = [scatter(self.scores, zeros(_SUM), i) for i in range(tile.keys // 2)]
        for key in range(0, tile.keys, 16):
            for d in range(tile.depth // 16):
                statements.append(matrices(b, 0, self.memory, word + (key * tile.key_pitch + d * 8)))
                statements += self._multiply(self.scores, key // 2, self.queries, d * 4, b)
        return allocate([b], sequence(statements))

    def _add(self, stage: Expr) -> Stmt:
        """The values of a step, weighed, 16 elements of them at a time."""
        tile, b = self.tile, registers(4, "uint32", "b")
        own, half = tirx.floormod(self.lane, i32(16)), tirx.floordiv(self.lane, i32(16))
        word = stage + own * tile.value_pitch + half * 4
        statements: list[Stmt] = []
        for key in range(tile.keys // 16):
            for e in range(0, tile.values, 16):
                at = word + (key * 16 * tile.value_pitch + e // 2)
                statements.append(matrices(b, 0, self.memory, at, turned=True))
                statements += self._multiply(self.sums, e // 2, self.weights, key * 4, b)
        return allocate([b], sequence(statements))

    def _multiply(self, sums: Var, at: int, a: Var, a_at: int, b: Var) -> list[Stmt]:
        """16 x 16 by 16 x 16: two instructions."""
        return [multiply(self.dtype, sums, at + n * 4, a, a_at, b, n * 2) for n in range(2)]

    def _mask(self, key: Expr) -> Stmt:
        """Scores after scale and masks; minus infinity where there is no such query or key."""
        tile, row, column = self.tile, self.row.extent, self.column.extent
        axes, scores = [a.var for a in self.parts.masked.spatial], self.parts.scores.buffer
        batch, head = self.point[self.batch.var], self.point[self.head.var]
        statements = []
        for place in range(tile.keys // 2):
            line, own = place // 2 % 2, simplify(key + (place // 4 * 8 + place % 2))
            point = dict(zip(axes, (batch, head, self.lines[line], own), strict=True))

            def load(node: TensorLoad, place: int = place) -> Expr | None:
                return gather(self.scores, place) if node.source.same_as(scores) else None

            value = cast(substitute(self.parts.masked.value, point, load), _SUM)
            exists = [
                None if divides(tile.rows, row) else self.lines[line] < row,
                None if divides(tile.keys, column) else own < column,
            ]
            nothing = scatter(self.scores, zeros(_SUM, value=_NOTHING), place)
            statements.append(holds(exists, scatter(self.scores, value, place), nothing))
        return sequence(statements)

    def _weigh(self) -> Stmt:
        """The exponentials against the largest score so far; what was summed up before is scaled to it."""
        tile, places = self.tile, range(self.tile.keys // 2)
        statements: list[Stmt] = []
        for line in range(_LINES):
            own = [p for p in places if p // 2 % 2 == line]
            statements.append(scatter(self.scale, gather(self.largest, line), line))
            for p in own:
                statements.append(
                    scatter(self.largest, tirx.Max(gather(self.largest, line), gather(self.scores, p)), line)
                )
            statements.append(quad("max", self.largest, line))
            largest = gather(self.largest, line)
            finite = tirx.Select(tirx.EQ(largest, zeros(_SUM, value=_NOTHING)), zeros(_SUM), largest)
            statements.append(scatter(self.scale, tirx.exp(gather(self.scale, line) - finite), line))
            statements.append(scatter(self.total, gather(self.total, line) * gather(self.scale, line), line))
            for p in own:
                statements.append(scatter(self.scores, tirx.exp(gather(self.scores, p) - finite), p))
                statements.append(scatter(self.total, gather(self.total, line) + gather(self.scores, p), line))
        for p in range(tile.values // 2):
            statements.append(scatter(self.sums, gather(self.sums, p) * gather(self.scale, p // 2 % 2), p))
        for word in range(tile.keys // 4):
            statements.append(
                scatter(
                    self.weights,
                    pair(self.dtype, gather(self.scores, word * 2), gather(self.scores, word * 2 + 1)),
                    word,
                )
            )
        return sequence(statements)

    def _finish(self) -> Stmt:
        """The results: sums divided by the sums of their weights."""
        tile, output = self.tile, self.parts.output
        batch, head = self.point[self.batch.var], self.point[self.head.var]
        dtype = str(output.buffer.dtype)
        statements: list[Stmt] = []
        for line, query in enumerate(self.lines):
            lead = [batch, query, head] if int(output.annotations["tersor.packed"]) else [batch, head, query]  # type: ignore[call-overload]
            total = gather(self.total, line)
            statements.append(quad("sum", self.total, line))
            inverse = tirx.Select(tirx.EQ(total, zeros(_SUM)), zeros(_SUM, value=1.0), zeros(_SUM, value=1.0) / total)
            stores: list[Stmt] = [scatter(self.scale, inverse, line)]
            for place in (p for p in range(tile.values // 2) if p // 2 % 2 == line):
                element = wide_index(self.quarter + (place // 4 * 8 + place % 2))
                value = cast(gather(self.sums, place) * gather(self.scale, line), dtype)
                inside = None if tile.values == tile.value_size else element < tile.value_size
                statements_of = BufferStore(output.buffer, value, [*lead, element])
                stores.append(holds([inside], statements_of))
            exists = None if divides(tile.rows, self.row.extent) else query < self.row.extent
            statements.append(holds([exists], sequence(stores)))
        return sequence(statements)


class _Lines:
    """Asks for rows of a tensor to come to shared memory; elements of odd rows come one by one."""

    def __init__(
        self,
        load: TensorLoad,
        line: Var,
        point: dict[Var, Expr],
        sizes: tuple[int, int, int],
        block: TensorAttention,
        thread: Expr,
    ) -> None:
        """`line` is the axis that counts rows; `sizes`: how many rows, their elements, and those after rounding up."""
        self.load, self.line, self.point, self.memory = load, line, point, block.memory
        rows, self.size, padded = sizes
        self.lanes = math.gcd(copied(load.source.shape[-1], block.dtype), self.size)
        self.dtype, together = block.dtype, max(2, self.lanes)  # at least a word of shared memory
        across, threads = padded // together, block.tile.threads
        self.padded = padded > self.size
        self.spots: list[tuple[Expr, Expr, Expr | None]] = []
        for begin in range(0, rows * across, threads):
            place = thread + begin
            row, element = tirx.floordiv(place, i32(across)), tirx.floormod(place, i32(across)) * together
            self.spots.append((row, element, place < rows * across if begin + threads > rows * across else None))

    def copy(self, start: Expr, total: Expr, word: Expr, pitch: int) -> Stmt:
        """The rows from `start` on; zeros where there are none."""
        statements = []
        for row, element, own in self.spots:
            line = simplify(start + wide_index(row))
            lead = [substitute(i, {**self.point, self.line: line}) for i in self.load.indices[:-1]]
            to = word + row * pitch + tirx.floordiv(element, i32(2))
            if self.lanes == 1:
                both = [self._element(lead, element + i, line < total) for i in range(2)]
                statements.append(holds([own], scatter(self.memory, pair(self.dtype, *both), to)))
                continue
            place = flat_index(BufferLoad(self.load.source, [*lead, wide_index(element)]))
            found = [line < total, *([element < self.size] if self.padded else [])]
            statements.append(
                holds([own], copy(self.memory, to, self.load.source, place, 2 * self.lanes, tirx.all(*found)))
            )
        return sequence(statements)

    def _element(self, lead: list[Expr], element: Expr, exists: Expr) -> Expr:
        """One that no copy can take, through a register."""
        value = cast(BufferLoad(self.load.source, [*lead, wide_index(element)]), _SUM)
        return tirx.if_then_else(tirx.all(exists, element < self.size), value, zeros(_SUM))
