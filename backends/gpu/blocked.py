"""Which of the two blocked products is used: on plain cores, or on tensor cores where the architecture has them."""

from __future__ import annotations

from tvm.tirx import Expr

from backends.gpu.block_product import BlockProduct
from backends.gpu.operands import Factor, Result, copied
from backends.gpu.tensor_instructions import PRODUCTS
from backends.gpu.tensor_product import TensorProduct
from backends.gpu.tensor_tile import TensorTile, best_tensor_tile
from backends.gpu.tile_model import Sizes, Tile, best_tile
from optimizer.gpus import Gpu

__all__ = ["best_of", "blocked"]

_WORD = 4
"""Bytes that an asynchronous copy takes at least."""


def best_of(sizes: Sizes, runs: tuple[Expr | int, Expr | int], gpu: Gpu, rows_together: int = 1) -> Tile | TensorTile:
    """The tile of a product, of the kind that its type and its layout allow.

    Args:
        sizes: of the product.
        runs: of both factors; see `Factor`.
        gpu: the architecture.
        rows_together: how many rows of the right factor lie side by side; four of bytes for tensor cores.
    """
    words = all(copied(run, sizes.dtype) * sizes.element >= _WORD for run in runs)
    fitting = rows_together == (4 if sizes.element == 1 else 1)
    if gpu.tensor_cores and gpu.async_copies and sizes.dtype in PRODUCTS and words and fitting:
        return best_tensor_tile(sizes, gpu)
    return best_tile(sizes, gpu)


def blocked(left: Factor, right: Factor, result: Result, tile: Tile | TensorTile) -> BlockProduct | TensorProduct:
    """What builds the threads' work."""
    if isinstance(tile, TensorTile):
        return TensorProduct(left, right, result, tile)
    return BlockProduct(left, right, result, tile)
