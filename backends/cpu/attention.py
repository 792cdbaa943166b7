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

bfloat16 is multiplied in pairs along the reduced axis (`backends.cpu.operands`); softmax and sums are float32, and the
weights are rounded once.

Queries too few to fill half a vector are another matter: see `backends.cpu.few_queries`; so are bytes: see
`backends.cpu.byte_attention`.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx

from backends.cpu.few_queries import FewQueries
from backends.cpu.operands import operands_of
from backends.cpu.query_block import QueryBlock
from backends.cpu.tiles import Tiles
from backends.relax.kernel import Axis, Kernel, Stage
from backends.relax.loops import (
    Expr,
    IfThenElse,
    Stmt,
    TensorLoad,
    i64,
    known,
    parallel,
    sequence,
    simplify,
    unflatten,
)
from optimizer.target import Cpu

_KIND = "attention"
_PARTS = ("masked", "context", "output")
_L1_SHARE = 0.5
"""How much of the first-level cache the weights of a block may take."""

_PARALLEL_FLOPS = 200_000


@dataclass(frozen=True)
class AttentionParts:
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
    def query(self) -> TensorLoad:
        """An element of the queries, in the axes of `scores`."""
        return _load(self.scores.value.b.a)

    @property
    def key(self) -> TensorLoad:
        """An element of the keys, in the axes of `scores`."""
        return _load(self.scores.value.b.b)

    @property
    def value(self) -> TensorLoad:
        """An element of the values, in the axes of `context`."""
        return _load(self.context.value.b.b)


def lower(kernel: Kernel, cpu: Cpu) -> Stmt | None:
    """See `backends.cpu.schedule.Rule`."""
    parts = take_apart(kernel)
    return None if parts is None else AttentionNest(parts, Tiles(cpu)).build()


def take_apart(kernel: Kernel) -> AttentionParts | None:
    """The attention that a kernel is; `None` if it is none."""
    stages = {stage.kind: stage for stage in kernel.stages}
    if _KIND not in stages:
        return None
    return AttentionParts(*(stages[name] for name in (_KIND, *(f"{_KIND}.{part}" for part in _PARTS))))


class AttentionNest:
    """Builds the loop nest of one attention.

    Attributes:
        block: What computes a block of queries.
    """

    block: type[QueryBlock] = QueryBlock

    def __init__(self, parts: AttentionParts, tiles: Tiles) -> None:
        self.parts = parts
        self.tiles = tiles
        self.lanes = tiles.lanes()
        self.batch, self.head, self.row, self.column = parts.scores.spatial
        self.depth = parts.scores.reduction[0]
        self.size = _static(self.depth)
        self.value_size = _static(parts.context.spatial[3])
        self.operands = operands_of(str(parts.key.source.dtype), tiles.cpu)
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
        """The statement."""
        rows = known(self.row.extent)
        most = max(1, self.lanes // 2)  # so many that do lie along a vector take about as long
        if rows is not None:
            return FewQueries(self, rows).build() if rows <= most else self.many()
        return IfThenElse(self.row.extent <= most, FewQueries(self, most).build(), self.many())

    def many(self) -> Stmt:
        """For queries that fill vectors."""
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
                return self.block(self, point, first, vectors, left).build()

            full = self.block(self, point, first, self.widest, None)
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
        return sequence([parallel(tasks, task, worthwhile=self.worthwhile())])

    def worthwhile(self) -> bool:
        """Whether the threads are worth starting."""
        flops = 2 * (self.size + self.value_size)
        for axis in (self.batch, self.head, self.row, self.column):
            extent = known(axis.extent)
            if extent is None:
                return True
            flops *= extent
        return flops >= _PARALLEL_FLOPS


def _load(element: Expr) -> TensorLoad:
    """What is loaded, without its conversion to float32 and a zero point that is taken off."""
    if isinstance(element, tirx.Cast):
        return _load(element.value)
    return _load(element.a) if isinstance(element, tirx.Sub) else element


def _static(axis: Axis) -> int:
    size = known(axis.extent)
    assert size is not None, "the emitter asks for known sizes of keys and values"
    return size
