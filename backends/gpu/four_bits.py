"""The rule for products with weights of 4 bits: the blocked product, whose right factor is decoded on its way.

Letters as in `backends.gpu.block_product`. A thread loads the word of a code, its scale and its zero point (or its
entry of the codebook), computes the weight as the emitter's expression says, and puts it in shared memory. Threads that
are neighbours have neighbouring columns, whose words and scales lie side by side; the eight codes of a word are
read by the threads of eight steps along the reduced axis, from the first-level cache. So weights come from memory once,
as 4 bits.

Where the activations are of 16 bits and have rows enough, weights are rounded to their type, and tensor cores multiply
(`backends.gpu.tensor_decoder`): as precise as the product of 16 bits that the model asks for.
"""

from __future__ import annotations

from tvm import tirx
from tvm.tirx import Expr, Stmt, Var

from backends.gpu.block_product import BlockProduct
from backends.gpu.epilogue import Epilogue
from backends.gpu.heavy import with_epilogue
from backends.gpu.launch import Ids, Launch
from backends.gpu.operands import Factor, Order, Result, singly
from backends.gpu.tensor_decoder import Computed
from backends.gpu.tensor_product import TensorProduct
from backends.gpu.tensor_tile import TensorTile, best_tensor_tile
from backends.gpu.threads import block_places
from backends.gpu.tile_model import Sizes, Tile, best_tile, row_group
from backends.relax.kernel import Kernel, Stage
from backends.relax.loops import TensorLoad, i64, known, product, simplify, substitute, unflatten, uses
from optimizer.gpus import Gpu

__all__ = ["KIND", "lower", "sizes_of", "tile_of"]

KIND = "four_bits"
_TENSOR_ROWS = 16
"""Of an instruction of a tensor core: a product of fewer rows reads weights as fast on plain cores."""


def lower(kernel: Kernel, gpu: Gpu) -> list[Launch] | None:
    """See `backends.gpu.schedule.Rule`."""
    stage = kernel.stages[0]
    if stage.kind != KIND or len(stage.reduction) != 1:
        return None
    if not isinstance(stage.value, tirx.Add) or not isinstance(stage.value.b, tirx.Mul):
        return None
    return with_epilogue(kernel, gpu, lambda epilogue: _launch(stage, epilogue, gpu))


def sizes_of(stage: Stage) -> Sizes:
    """What the tile model needs to know."""
    *lead, column = stage.spatial
    rows = known(product([a.extent for a in lead]))
    columns, depth = known(column.extent), known(stage.reduction[0].extent)
    if _half(stage) is None:
        return Sizes(1, rows, columns, depth)
    activations = stage.value.b.a
    dtype = str(activations.expr_ty())
    return Sizes(1, rows, columns, depth, 2, dtype, singly=(singly(activations.source.shape[-1], dtype), False))


def tile_of(stage: Stage, gpu: Gpu) -> Tile | TensorTile:
    """The tile, of the kind that the activations and their number allow."""
    sizes, activations = sizes_of(stage), _half(stage)
    few = sizes.rows is not None and sizes.rows < _TENSOR_ROWS
    if activations is None or few or not (gpu.tensor_cores and gpu.async_copies):
        return best_tile(sizes, gpu)
    return best_tensor_tile(sizes, gpu, decoded=True)


def _half(stage: Stage) -> TensorLoad | None:
    """The activations, if they are elements of 16 bits that lie side by side along the reduced axis."""
    value, depth = stage.value.b.a, stage.reduction[0].var
    if not isinstance(value, TensorLoad) or str(value.expr_ty()) not in ("float16", "bfloat16"):
        return None
    alone = value.indices[-1].same_as(depth) and not any(uses(i, depth) for i in value.indices[:-1])
    return value if alone else None


def _launch(stage: Stage, epilogue: Epilogue, gpu: Gpu) -> Launch:
    *lead, column = stage.spatial
    (depth,) = stage.reduction
    extents = [a.extent for a in lead]
    rows = product(extents)
    sizes = sizes_of(stage)
    tile = tile_of(stage, gpu)
    order = Order.of(rows, column.extent, tile, row_group(sizes, tile.rows, gpu))

    def body(block: Ids, thread: Ids) -> Stmt:
        return block_places(block[0], order.extents, lambda place: one(place, thread[0]))

    def one(place: list[Expr], thread: Expr) -> Stmt:
        group, block_column, own = place
        result = Result(rows, column.extent, depth.extent, lambda row: unflatten(row, extents), epilogue)
        left = _left(stage.value.b.a, [a.var for a in lead], extents, depth.var, rows)
        weights, row = stage.value.b.b, order.row(group, own)
        if isinstance(tile, TensorTile):

            def element(at: Expr, k: Expr) -> Expr:
                return substitute(weights, {column.var: at, depth.var: k})

            computed = Computed(left.dtype, column.extent, element)
            return TensorProduct(left, computed, result, tile).build(row, block_column, thread)
        right = _right(weights, column.var, depth.var, column.extent)
        return BlockProduct(left, right, result, tile).build(row, block_column, thread)

    return Launch(KIND, (product(order.extents), i64(1), i64(1)), (tile.threads, 1, 1), body)


def _left(value: Expr, lead: list[Var], extents: list[Expr], depth: Var, rows: Expr) -> Factor:
    """The activations: elements that lie side by side, or an expression of quantized ones."""
    plain = isinstance(value, TensorLoad) and value.indices[-1].same_as(depth)

    def place(row: Expr, _lanes: int) -> list[Expr]:
        return [simplify(i) for i in unflatten(row, extents)]

    def load(at: list[Expr], k: Expr, _lanes: int) -> tuple[Expr, list[Expr]]:
        return substitute(value, {**dict(zip(lead, at, strict=True)), depth: k}), []

    return Factor(str(value.expr_ty()), value.source.shape[-1] if plain else 1, rows, place, load)


def _right(value: Expr, column: Var, depth: Var, columns: Expr) -> Factor:
    """The weights, computed one by one."""

    def place(at: Expr, _lanes: int) -> list[Expr]:
        return [at]

    def load(at: list[Expr], k: Expr, _lanes: int) -> tuple[Expr, list[Expr]]:
        return substitute(value, {column: at[0], depth: k}), []

    return Factor(str(value.expr_ty()), 1, columns, place, load)
