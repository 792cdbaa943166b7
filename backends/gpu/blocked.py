"""Which of the two blocked products is used: on plain cores, or on tensor cores where the architecture has them."""

from __future__ import annotations

from backends.gpu.block_product import BlockProduct
from backends.gpu.operands import Factor, Result
from backends.gpu.tensor_instructions import PRODUCTS
from backends.gpu.tensor_product import TensorProduct
from backends.gpu.tensor_tile import TensorTile, best_tensor_tile, estimate_tensor
from backends.gpu.tile_model import ALIKE, Sizes, Tile, best_tile, estimate
from optimizer.gpus import Gpu

__all__ = ["best_of", "blocked"]


def best_of(sizes: Sizes, gpu: Gpu, rows_together: int = 1) -> Tile | TensorTile:
    """The tile of a product, of the kind that its type and its layout allow.

    Elements that have to be loaded one by one cost tensor cores as much as plain ones: these are taken where they would
    be faster.

    Args:
        sizes: of the product.
        gpu: the architecture.
        rows_together: how many rows of the right factor lie side by side; four of bytes as tensor cores want them.
    """
    plain = best_tile(sizes, gpu)
    fitting = rows_together == 1 or (rows_together == 4 and sizes.element == 1)
    if not (gpu.tensor_cores and gpu.async_copies and sizes.dtype in PRODUCTS and fitting):
        return plain
    tile = best_tensor_tile(sizes, gpu)
    if not any(sizes.singly):
        return tile
    seconds = estimate_tensor(sizes, tile, gpu).seconds
    return tile if seconds <= ALIKE * estimate(sizes, plain, gpu).seconds else plain


def blocked(left: Factor, right: Factor, result: Result, tile: Tile | TensorTile) -> BlockProduct | TensorProduct:
    """What builds the threads' work."""
    if isinstance(tile, TensorTile):
        return TensorProduct(left, right, result, tile)
    return BlockProduct(left, right, result, tile)
