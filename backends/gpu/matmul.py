"""The rule for matrix products: a block of threads computes a tile of one product (`backends.gpu.block_product`).

Letters: R rows that share one B, N columns, K the reduced axis, P panels of W columns. B lies as [P, K, W] where it is
a constant, else as [K, N]. All blocks lie along one axis of the grid, so that those that run at a time share what
they read (`Order`).
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx
from tvm.tirx import BufferLoad

from backends.gpu.blocked import best_of, blocked
from backends.gpu.epilogue import Epilogue
from backends.gpu.heavy import with_epilogue
from backends.gpu.launch import Ids, Launch
from backends.gpu.operands import Factor, Order, Result, element_bytes, singly
from backends.gpu.tensor_tile import TensorTile
from backends.gpu.threads import block_places
from backends.gpu.tile_model import Sizes, row_group
from backends.relax.kernel import Kernel, Stage
from backends.relax.loops import Expr, Stmt, TensorLoad, Var, i64, known, product, simplify, substitute, unflatten, uses
from backends.relax.product_parts import Product
from optimizer.gpus import Gpu

__all__ = ["lower", "sizes_of", "take_apart"]


def lower(kernel: Kernel, gpu: Gpu) -> list[Launch] | None:
    """See `backends.gpu.schedule.Rule`."""
    parts = take_apart(kernel.stages[0])
    if parts is None:
        return None
    return with_epilogue(kernel, gpu, lambda epilogue: _launch(parts, epilogue, gpu))


def take_apart(stage: Stage) -> Product[TensorLoad] | None:
    """The product that a stage is; `None` if it is none."""
    if stage.kind != "matmul" or len(stage.reduction) != 1:
        return None
    factors = factors_of(stage)
    if factors is None:
        return None
    left, right = factors
    (depth,) = stage.reduction
    if not left.indices[-1].same_as(depth.var) or any(uses(i, depth.var) for i in left.indices[:-1]):
        return None
    parts = Product.of(stage, left, right)
    if parts is None or (parts.rows_together == 1 and not right.indices[-2].same_as(depth.var)):
        return None
    return parts


def factors_of(stage: Stage) -> tuple[TensorLoad, TensorLoad] | None:
    """The loads that are multiplied and added up, without the casts that widen them."""
    if not isinstance(stage.value, tirx.Add) or not isinstance(stage.value.b, tirx.Mul):
        return None
    factors = [f.value if isinstance(f, tirx.Cast) else f for f in (stage.value.b.a, stage.value.b.b)]
    if not all(isinstance(f, TensorLoad) for f in factors):
        return None
    return factors[0], factors[1]


def sizes_of(parts: Product[TensorLoad]) -> Sizes:
    """What the tile model needs to know."""
    dtype = str(parts.left.expr_ty())
    sizes = [known(product([a.extent for a in axes])) for axes in (parts.batch, parts.rows)]
    columns, depth = known(parts.column.extent), known(parts.depth.extent)
    element, runs = element_bytes(dtype), (parts.left.source.shape[-1], parts.right.source.shape[-1])
    left, right = (singly(run, dtype) for run in runs)
    right = right or (element == 1 and parts.rows_together == 1)
    return Sizes(sizes[0], sizes[1], columns, depth, element, dtype, singly=(left, right))


def _launch(parts: Product[TensorLoad], epilogue: Epilogue, gpu: Gpu) -> Launch:
    sizes = sizes_of(parts)
    tile = best_of(sizes, gpu, parts.rows_together)
    words = isinstance(tile, TensorTile)
    extents = [a.extent for a in parts.rows]
    rows, columns = product(extents), parts.column.extent
    order = Order.of(rows, columns, tile, row_group(sizes, tile.rows, gpu))
    batches = [a.extent for a in parts.batch]

    def body(block: Ids, thread: Ids) -> Stmt:
        return block_places(block[0], [*batches, *order.extents], lambda place: one(place, thread[0]))

    def one(place: list[Expr], thread: Expr) -> Stmt:
        *which, group, block_column, own = place
        point = {a.var: b for a, b in zip(parts.batch, which, strict=True)}

        def at(row: Expr) -> dict[Var, Expr]:
            return {**point, **{a.var: c for a, c in zip(parts.rows, unflatten(row, extents), strict=True)}}

        result = Result(rows, columns, parts.depth.extent, lambda row: [at(row)[a.var] for a in parts.lead], epilogue)
        block_product = blocked(_left(parts, rows, at), _right(parts, point, words=words), result, tile)
        return block_product.build(order.row(group, own), block_column, thread)

    return Launch("matmul", (product([*batches, *order.extents]), i64(1), i64(1)), (tile.threads, 1, 1), body)


def _left(parts: Product[TensorLoad], rows: Expr, at: Callable[[Expr], dict[Var, Expr]]) -> Factor:
    source, dtype = parts.left.source, str(parts.left.expr_ty())

    def place(row: Expr, _lanes: int) -> list[Expr]:
        point = at(row)
        return [simplify(substitute(i, point)) for i in parts.left.indices[:-1]]

    def load(lead: list[Expr], k: Expr, _lanes: int) -> tuple[Expr, list[Expr]]:
        return BufferLoad(source, [*lead, k]), []

    return Factor(dtype, source.shape[-1], rows, place, load)


def _right(parts: Product[TensorLoad], point: dict[Var, Expr], *, words: bool) -> Factor:
    """B; of rows that lie side by side, `words` of all of them or single elements."""
    source, dtype, width, rows = parts.right.source, str(parts.right.expr_ty()), parts.width, parts.rows_together
    tail = 3 if width else 2
    lead = [simplify(substitute(i, point)) for i in parts.right.indices[:-tail]]

    def place(column: Expr, lanes: int) -> list[Expr]:
        panel = [] if width is None else [simplify(tirx.floordiv(column, i64(width)))]
        own = column if width is None else tirx.floormod(column, i64(width))
        return [*panel, simplify(tirx.floordiv(own, i64(lanes)))]

    def load(at: list[Expr], k: Expr, lanes: int) -> tuple[Expr, list[Expr]]:
        *panel, own = at
        if rows == 1 or words:
            return BufferLoad(source, [*lead, *panel, k, own * (lanes * rows)]), []
        down, beside = tirx.floordiv(k, i64(rows)), tirx.floormod(k, i64(rows))
        return BufferLoad(source, [*lead, *panel, down, own * rows + beside]), []

    lines = parts.column.extent if width is None else simplify(source.shape[-3] * width)
    return Factor(dtype, source.shape[-1] if rows == 1 or words else 1, lines, place, load, rows if words else 1)
