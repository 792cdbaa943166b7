"""HQQ, half-quadratic quantization (Badri & Shaji 2023): scales and zero points without data, robust to outliers.

It minimizes the p-norm of the weights' error, p = 0.7, which lets a few weights be far off for the good of the others.
The error is split in two: what is taken for outliers (a shrinkage of the error), and the rest, for which the zero
point is a mean. Here the zero point is rounded, because ONNX stores it in 4 bits, and the scale, which the paper leaves
as it is, is fitted to the same rest by least squares. Errors are counted in steps, so that the strength of the
shrinkage does not depend on the size of the weights.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from passes.quantization.blocks import Blocks, Floats, Grid, Quantized, column_slices, in_threads, joined, round_to
from passes.quantization.rtn import round_to_nearest

__all__ = ["half_quadratic"]

_NORM = np.float32(0.7)
_STRENGTH = 10.0
_GROWTH = 1.05
_ROUNDS = 20


def half_quadratic(weights: Floats, blocks: Blocks, grid: Grid) -> Quantized:
    """Codes under the scales and zero points with the smallest p-norm of the error in each block, of those met.

    Args:
        weights: `[K, N]`, finite.
        blocks: The rows of a scale.
        grid: The codes.
    """
    found: dict[int, Quantized] = {}

    def optimize(columns: slice) -> None:
        found[columns.start] = _optimized(np.ascontiguousarray(weights[:, columns]), blocks, grid)

    in_threads(optimize, column_slices(weights))
    return joined([found[start] for start in sorted(found)])


def _optimized(weights: Floats, blocks: Blocks, grid: Grid) -> Quantized:
    best = now = round_to_nearest(weights, blocks, grid)
    error = weights - now.dequantized()
    least = blocks.total(np.abs(error) ** _NORM)
    strength = _STRENGTH
    for _ in range(_ROUNDS):
        scales = now.scales[blocks.of_row]
        rest = weights - _shrunk(error / scales, strength) * scales
        now = _fitted(rest, now, grid)
        now = round_to(weights, now.scales, now.zeros, blocks, grid)
        error = weights - now.dequantized()
        found = blocks.total(np.abs(error) ** _NORM)
        better = found < least
        if not better.any():
            break
        best, least = best.replaced(better, now), np.minimum(least, found)
        strength *= _GROWTH
    return best


def _shrunk(error: Floats, strength: float) -> Floats:
    """The outliers among errors: the minimum of |x|^p + strength / 2 · (x - error)² (Badri & Shaji 2016)."""
    size = np.abs(error)
    shrinkage = np.maximum(size, np.float32(1e-6)) ** (_NORM - 1) / np.float32(strength)
    outliers: Floats = np.sign(error) * np.maximum(size - shrinkage, np.float32(0))
    return outliers


def _fitted(weights: Floats, now: Quantized, grid: Grid) -> Quantized:
    """The zero points, then the scales, that fit weights best under the same codes."""
    blocks, zeros = now.blocks, now.zeros
    if zeros is not None:
        rows = blocks.total(np.ones((blocks.rows, 1), np.float32))
        middle = blocks.total(now.codes - weights / now.scales[blocks.of_row]) / rows
        zeros = np.clip(np.rint(middle), grid.lowest, grid.highest).astype(np.int8)
    now = dataclasses.replace(now, zeros=zeros)
    steps = now.steps()
    square = blocks.total(steps * steps)
    scales = blocks.total(steps * weights) / np.maximum(square, np.float32(1e-30))
    return dataclasses.replace(now, scales=grid.storable(np.where((square > 0) & (scales > 0), scales, now.scales)))
