"""Round to nearest (RTN), and the same with scales that are searched for.

`round_to_nearest` takes the scale from the largest weight of a block, so that no weight is off by more than half a
step. `search_scales` lets the largest weights be off by more, if the squared error of the block becomes smaller for it.
"""

from __future__ import annotations

import numpy as np

from passes.quantization.blocks import Blocks, Codes, Floats, Grid, Quantized, Tile, in_threads, round_to

__all__ = ["round_to_nearest", "search_scales"]

_SHRINKING = tuple(1.0 - 0.025 * step for step in range(20))
_ROUNDS = 6


def round_to_nearest(weights: Floats, blocks: Blocks, grid: Grid) -> Quantized:
    """Codes under the scales that span each block.

    Args:
        weights: `[K, N]`, finite.
        blocks: The rows of a scale.
        grid: The codes.
    """
    scales, zeros = _spanning(-blocks.largest(-weights), blocks.largest(weights), grid, 1.0)
    return round_to(weights, scales, zeros, blocks, grid)


def search_scales(weights: Floats, blocks: Blocks, grid: Grid, importance: Floats | None = None) -> Quantized:
    """Codes under the scales that have the smallest squared error in each block, of those tried.

    The span of a block is shrunk by steps of 2.5%; to the best, the scale is then fitted by least squares and the codes
    are rounded again, `_ROUNDS` times. A block is never worse than `round_to_nearest`.

    Args:
        weights: `[K, N]`, finite.
        blocks: The rows of a scale.
        grid: The codes.
        importance: What the squared error of each row counts `[K]`; each the same when not given.
    """
    columns = weights.shape[1]
    scales = np.empty((len(blocks.starts), columns), np.float32)
    zeros = None if grid.symmetric else np.empty(scales.shape, np.int8)

    def search(tile: Tile) -> None:
        importances = None if importance is None else tile.boxed(importance[tile.rows, None])
        boxed = tile.boxed(weights[tile.rows, tile.columns])
        found = _search(boxed, importances, grid)
        scales[tile.blocks, tile.columns] = found[0]
        if zeros is not None and found[1] is not None:
            zeros[tile.blocks, tile.columns] = found[1]

    in_threads(search, blocks.tiles(columns))
    return round_to(weights, scales, zeros, blocks, grid)


def _spanning(lowest: Floats, highest: Floats, grid: Grid, part: float) -> tuple[Floats, Codes | None]:
    """Scales, and zero points, under which the codes span a part of each block's range.

    Args:
        lowest: The least weights of the blocks `[G, N]`.
        highest: The largest.
        grid: The codes.
        part: Of the range, at most 1.
    """
    if grid.symmetric:
        # 7.5 and not 7 steps: what is rounded to 8 and cut to 7 is off by half a step, like everything else at most.
        largest = np.maximum(highest, -lowest)
        scales = np.where(largest > 0, largest * np.float32(part / 7.5), np.float32(1))
        return grid.storable(scales), None
    highest = np.maximum(highest, 0) * np.float32(part)
    lowest = np.maximum(-lowest, 0) * np.float32(part)
    span = highest + lowest
    scales = grid.storable(np.where(span > 0, span / np.float32(15), np.float32(1)))
    return scales, np.clip(np.rint(lowest / scales), 0, 15).astype(np.int8)


def _search(boxed: Floats, importances: Floats | None, grid: Grid) -> tuple[Floats, Codes | None]:
    """The best scales and zero points of blocks `[G, rows, N]`; rows of zeros are those of a block that is shorter."""
    lowest, highest = boxed.min(axis=1), boxed.max(axis=1)
    scales, zeros = _spanning(lowest, highest, grid, 1.0)
    least = _lost(boxed, importances, _steps(boxed, scales, zeros, grid), scales)

    def consider(found: Floats, points: Codes | None) -> None:
        nonlocal scales, zeros, least
        lost = _lost(boxed, importances, _steps(boxed, found, points, grid), found)
        better = lost < least
        scales, least = np.where(better, found, scales), np.minimum(lost, least)
        if zeros is not None and points is not None:
            zeros = np.where(better, points, zeros)

    for part in _SHRINKING[1:]:
        consider(*_spanning(lowest, highest, grid, part))
    for _ in range(_ROUNDS):
        steps = _steps(boxed, scales, zeros, grid)
        counted = steps if importances is None else steps * importances
        square = np.einsum("grn,grn->gn", counted, steps)
        fitted = np.einsum("grn,grn->gn", counted, boxed) / np.maximum(square, np.float32(1e-30))
        # The scales with the smallest squared error under the same codes.
        consider(grid.storable(np.where((square > 0) & (fitted > 0), fitted, scales)), zeros)
    return scales, zeros


def _steps(boxed: Floats, scales: Floats, zeros: Codes | None, grid: Grid) -> Floats:
    """The nearest codes, less the zero points."""
    steps = boxed / scales[:, None]
    np.rint(steps, out=steps)
    low, high = np.float32(grid.lowest), np.float32(grid.highest)
    if zeros is None:
        np.clip(steps, low, high, out=steps)
    else:
        np.maximum(steps, (low - zeros)[:, None], out=steps)
        np.minimum(steps, (high - zeros)[:, None], out=steps)
    return steps


def _lost(boxed: Floats, importances: Floats | None, steps: Floats, scales: Floats) -> Floats:
    """The squared error of each block; `steps` are overwritten."""
    steps *= scales[:, None]
    steps -= boxed
    if importances is None:
        return np.asarray(np.einsum("grn,grn->gn", steps, steps))
    np.square(steps, out=steps)
    steps *= importances
    return np.asarray(steps.sum(axis=1))
