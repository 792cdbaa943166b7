"""Round to nearest (RTN), and the same with scales that are searched for.

`round_to_nearest` takes the scale from the largest weight of a block, so that no weight is off by more than half a
step. `search_scales` lets the largest weights be off by more, if the squared error of the block becomes smaller for it.
"""

from __future__ import annotations

import numpy as np

from passes.quantization.blocks import Blocks, Codes, Floats, Grid, Quantized, column_slices, joined, round_to

__all__ = ["round_to_nearest", "search_scales"]

_SHRINKING = tuple(1.0 - 0.025 * step for step in range(20))
_ROUNDS = 2


def round_to_nearest(weights: Floats, blocks: Blocks, grid: Grid) -> Quantized:
    """Codes under the scales that span each block.

    Args:
        weights: `[K, N]`, finite.
        blocks: The rows of a scale.
        grid: The codes.
    """
    scales, zeros = _spanning(weights, blocks, grid, 1.0)
    return round_to(weights, scales, zeros, blocks, grid)


def search_scales(weights: Floats, blocks: Blocks, grid: Grid, importance: Floats | None = None) -> Quantized:
    """Codes under the scales that have the smallest squared error in each block, of those tried.

    The span of a block is shrunk by steps of 2.5%; to the best, the scale is then fitted by least squares and the codes
    are rounded again, twice. A block is never worse than `round_to_nearest`.

    Args:
        weights: `[K, N]`, finite.
        blocks: The rows of a scale.
        grid: The codes.
        importance: What the squared error of each row counts `[K]`; each the same when not given.
    """
    parts = [
        _search(np.ascontiguousarray(weights[:, columns]), blocks, grid, importance)
        for columns in column_slices(weights)
    ]
    return joined(parts)


def _spanning(weights: Floats, blocks: Blocks, grid: Grid, part: float) -> tuple[Floats, Codes | None]:
    """Scales, and zero points, under which the codes span a part of each block's range."""
    if grid.symmetric:
        # 7.5 and not 7 steps: what is rounded to 8 and cut to 7 is off by half a step, like everything else at most.
        largest = blocks.largest(np.abs(weights))
        scales = np.where(largest > 0, largest * np.float32(part / 7.5), np.float32(1))
        return grid.storable(scales), None
    highest = np.maximum(blocks.largest(weights), 0) * np.float32(part)
    lowest = np.maximum(blocks.largest(-weights), 0) * np.float32(part)
    span = highest + lowest
    scales = grid.storable(np.where(span > 0, span / np.float32(15), np.float32(1)))
    return scales, np.clip(np.rint(lowest / scales), 0, 15).astype(np.int8)


def _search(weights: Floats, blocks: Blocks, grid: Grid, importance: Floats | None) -> Quantized:
    weight_of_row = None if importance is None else importance[:, None]
    best: Quantized | None = None
    least = np.empty(0, np.float32)

    def consider(candidate: Quantized) -> None:
        nonlocal best, least
        error = np.square(candidate.dequantized() - weights)
        if weight_of_row is not None:
            error *= weight_of_row
        found = blocks.total(error)
        if best is None:
            best, least = candidate, found
            return
        better = found < least
        if better.any():
            best = best.replaced(better, candidate)
            least = np.minimum(least, found)

    for part in _SHRINKING:
        consider(round_to(weights, *_spanning(weights, blocks, grid, part), blocks, grid))
    for _ in range(_ROUNDS):
        assert best is not None, "the whole span was tried"
        scales = _fitted(weights, best, grid, weight_of_row)
        consider(round_to(weights, scales, best.zeros, blocks, grid))
    assert best is not None, "the whole span was tried"
    return best


def _fitted(weights: Floats, quantized: Quantized, grid: Grid, weight_of_row: Floats | None) -> Floats:
    """The scales with the smallest squared error under the same codes."""
    blocks, steps = quantized.blocks, quantized.steps()
    counted = steps if weight_of_row is None else steps * weight_of_row
    square = blocks.total(counted * steps)
    fitted = blocks.total(counted * weights) / np.maximum(square, np.float32(1e-30))
    return grid.storable(np.where((square > 0) & (fitted > 0), fitted, quantized.scales))
