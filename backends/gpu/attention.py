"""The rule for attention: one pass over the keys in shared memory, with no matrix of scores.

Letters: B batch, H heads, S queries, T keys, D size of a query and key, E size of a value. A block computes some
queries of one head (`backends.gpu.attention_tile`). For each step of keys it computes the scores, their exponentials
against the largest score so far, and the sums that these weigh the values with; what was summed before is scaled when a
larger score turns up (Milakov and Gimelshein, Online normalizer calculation for softmax, 2018; Dao, FlashAttention-2,
2023). Memory traffic is linear in T: keys and values pass by once a block.

    queries[D, rows]    stays in shared memory
    keys[D, keys]       of a step, and afterwards in the same place values[keys, E]; while one is multiplied, the other
                        is on its way from memory to registers
    weights[keys, rows] the exponentials, from the threads that compute them to those that multiply with them

Of heads that are too large for that, keys and values come in pieces of 32 or 64 elements: scores are summed piece by
piece, and the weights multiply one piece of the values after the other. Queries stay where there is room for them, or
come in pieces, too, with those of each step's keys.

A thread has some queries and, of these, some keys' scores and some elements of the results. The 16 threads that share
queries exchange their largest scores through shared memory; sums stay apart until the end.

What becomes of a score (scale, cap, masks) is whatever the emitter's expression says. A condition `key <= f(query)` or
`key >= f(query)` in it bounds the keys that a block looks at.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx

from backends.cpu.key_bounds import key_bounds
from backends.gpu.attention_block import AttentionBlock
from backends.gpu.attention_tile import AttentionSizes, AttentionTile, best_attention_tile
from backends.gpu.launch import Ids, Launch
from backends.gpu.operands import singly
from backends.gpu.tensor_attention import TensorAttention
from backends.gpu.tensor_attention_tile import TensorAttentionTile, best_tensor_attention_tile
from backends.gpu.threads import block_places
from backends.relax.kernel import Kernel, Stage
from backends.relax.loops import Expr, Stmt, TensorLoad, i64, known, product, simplify, uses
from optimizer.gpus import Gpu

__all__ = ["AttentionParts", "lower", "sizes_of", "tile_of"]

_KIND = "attention"


@dataclass(frozen=True)
class AttentionParts:
    """An attention taken apart.

    Attributes:
        scores: [B, H, S, T], a sum over D of a product of a query's element and a key's.
        masked: the same after scale and masks.
        context: [B, H, S, E], a sum over T of a weight times a value's element.
        output: what is stored: [B, S, H, E] or [B, H, S, E].
        query, key: elements, in the axes of `scores`.
        value: an element, in the axes of `context`.
    """

    scores: Stage
    masked: Stage
    context: Stage
    output: Stage
    query: TensorLoad
    key: TensorLoad
    value: TensorLoad

    @classmethod
    def of(cls, kernel: Kernel) -> AttentionParts | None:
        """The attention that a kernel is; `None` if it is none that the rule knows."""
        stages = {stage.kind: stage for stage in kernel.stages if stage.kind}
        names = [_KIND, *(f"{_KIND}.{part}" for part in ("masked", "context", "output"))]
        if any(name not in stages for name in names):
            return None
        scores, masked, context, output = (stages[name] for name in names)
        loads = [_load(e) for e in (scores.value.b.a, scores.value.b.b, context.value.b.b)]
        depths = [scores.reduction[0].var, scores.reduction[0].var, context.spatial[3].var]
        for load, depth in zip(loads, depths, strict=True):
            if load is None or not load.indices[-1].same_as(depth) or any(uses(i, depth) for i in load.indices[:-1]):
                return None
        query, key, value = (load for load in loads if load is not None)
        return cls(scores, masked, context, output, query, key, value)


def lower(kernel: Kernel, gpu: Gpu) -> list[Launch] | None:
    """See `backends.gpu.schedule.Rule`."""
    parts = AttentionParts.of(kernel)
    if parts is None or not kernel.is_output(parts.output.buffer):
        return None
    tile = tile_of(parts, gpu)
    return None if tile is None else [_launch(parts, tile)]


def tile_of(parts: AttentionParts, gpu: Gpu) -> AttentionTile | TensorAttentionTile | None:
    """The tile, of the kind that the type and the layout allow; `None` where there is none."""
    sizes = sizes_of(parts)
    if sizes is None:
        return None
    on_tensor_cores = best_tensor_attention_tile(sizes, gpu) if _suits_tensor_cores(parts, gpu) else None
    return on_tensor_cores or best_attention_tile(sizes, gpu)


def _suits_tensor_cores(parts: AttentionParts, gpu: Gpu) -> bool:
    """Whether all factors are of 16 bits."""
    sources = [load.source for load in (parts.query, parts.key, parts.value)]
    (dtype, *others) = {str(source.dtype) for source in sources}
    return gpu.tensor_cores and gpu.async_copies and not others and dtype in ("float16", "bfloat16")


def sizes_of(parts: AttentionParts) -> AttentionSizes | None:
    """What the tile model needs to know; `None` where heads have no known size."""
    batch, head, row, column = parts.scores.spatial
    size, value_size = known(parts.scores.reduction[0].extent), known(parts.context.spatial[3].extent)
    if size is None or value_size is None:
        return None
    heads, rows, keys = known(product([batch.extent, head.extent])), known(row.extent), known(column.extent)
    high = key_bounds(parts.masked, i64(0), i64(0), (i64(0), i64(0)))[1]
    dtype = str(parts.key.source.dtype)
    element = 2 if dtype in ("float16", "bfloat16") else 4
    loads = (parts.query, parts.key, parts.value)
    alone = any(singly(run, dtype) for run in (size, value_size, *(load.source.shape[-1] for load in loads)))
    return AttentionSizes(heads, rows, keys, size, value_size, 1.0 if high is None else 0.5, element, alone)


def _launch(parts: AttentionParts, tile: AttentionTile | TensorAttentionTile) -> Launch:
    batch, head, row, column = parts.scores.spatial
    blocks = simplify(tirx.floordiv(row.extent + (tile.rows - 1), i64(tile.rows)))

    def body(block: Ids, thread: Ids) -> Stmt:
        extents = [batch.extent, head.extent, blocks]
        return block_places(block[0], extents, lambda place: one(place, thread[0]))

    def one(coordinates: list[Expr], thread: Expr) -> Stmt:
        image, own, place = coordinates
        first = simplify(place * tile.rows)
        last = tirx.Min(first + (tile.rows - 1), row.extent - 1)
        low, high = key_bounds(parts.masked, first, last, (image, own))
        begin: Expr = i64(0) if low is None else tirx.Max(i64(0), low)
        end: Expr = column.extent if high is None else tirx.Max(i64(0), tirx.Min(column.extent, high))
        block = TensorAttention(parts, tile) if isinstance(tile, TensorAttentionTile) else AttentionBlock(parts, tile)
        return block.build(image, own, first, (begin, end), thread)

    grid = (product([batch.extent, head.extent, blocks]), i64(1), i64(1))
    return Launch(_KIND, grid, (tile.threads, 1, 1), body)


def _load(element: Expr) -> TensorLoad | None:
    """What is loaded, without its conversion to float32."""
    found = element.value if isinstance(element, tirx.Cast) else element
    return found if isinstance(found, TensorLoad) else None
