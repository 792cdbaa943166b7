"""GPTQ (Frantar et al. 2022).

GPTQ rounds the rows of a matrix one after the other, and lets the rows that are left make up for the error, so that
the product with the layer's own inputs X changes least: all that it has to know of them is XᵀX. Rows are taken in
the order of their inputs' energy ("activation order"); scales are set before, so that the blocks stay blocks of
neighbours ("static groups") and no input has to be gathered.

Coordinate descent on codes and scales after it (as in QuantEase, Behdin et al. 2023) lowers this error further, but was
tried and left out: it takes three times as long, and the perplexity of a decoder on other text came out the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from passes.quantization.blocks import Codes, Floats, Grid, Quantized

__all__ = ["Elimination", "gptq"]

_DAMPING = 0.01
"""Part of the mean of the diagonal that is added to it, as in the paper."""
_ROWS = 32
"""Rows between two updates of all that follow."""
_COLUMNS = 2048
"""Columns at a time: these rows of them stay in a second-level cache."""


@dataclass(frozen=True)
class Elimination:
    """How an error in one row is made up for by the rows after it; the same for all layers that read the same inputs.

    Attributes:
        order: The rows in the order of their inputs' energy `[K]`.
        factor: The upper triangular U with UᵀU the inverse of XᵀX in this order `[K, K]`.
    """

    order: npt.NDArray[np.intp]
    factor: Floats

    @classmethod
    def of(cls, gram: Floats) -> Elimination:
        """From XᵀX `[K, K]`.

        With the rows and columns turned round, L Lᵀ is the matrix itself as R Rᵀ with an upper triangular R: U = R⁻¹.
        """
        order = np.argsort(-np.diagonal(gram), kind="stable")
        turned = gram[np.ix_(order[::-1], order[::-1])].astype(np.float64)
        diagonal = np.einsum("ii->i", turned)
        diagonal[diagonal <= 0] = 1  # an input that was always zero
        diagonal += _DAMPING * diagonal.mean()
        lower = np.asarray(np.linalg.cholesky(turned), np.float64)
        del turned, diagonal  # 8 K² bytes
        _invert_lower(lower)
        return cls(order, lower[::-1, ::-1].astype(np.float32))


def gptq(weights: Floats, elimination: Elimination, start: Quantized, grid: Grid) -> Quantized:
    """Codes under given scales that keep the product.

    Args:
        weights: `[K, N]`.
        elimination: From the layer's inputs.
        start: Its scales and zero points are used.
        grid: The codes.
    """
    order, factor = elimination.order, elimination.factor
    block_of = start.blocks.of_row[order]
    codes = np.empty(weights.shape, np.int8)
    for first in range(0, weights.shape[1], _COLUMNS):
        columns = slice(first, first + _COLUMNS)
        scales = start.scales[:, columns]
        zeros = None if start.zeros is None else start.zeros[:, columns]
        codes[order, columns] = _rounded(weights[order, columns], factor, block_of, scales, zeros, grid)
    return Quantized(codes, start.scales, start.zeros, start.blocks)


def _rounded(
    rest: Floats, factor: Floats, block_of: npt.NDArray[np.intp], scales: Floats, zeros: Codes | None, grid: Grid
) -> Codes:
    """Codes of rows in their order; the rows are overwritten with what is left to make up for."""
    codes = np.empty(rest.shape, np.int8)
    errors = np.empty((_ROWS, rest.shape[1]), np.float32)
    for first in range(0, len(rest), _ROWS):
        last = min(first + _ROWS, len(rest))
        for row in range(first, last):
            block = block_of[row]
            codes[row], nearest = _nearest(rest[row], scales[block], None if zeros is None else zeros[block], grid)
            error = np.divide(rest[row] - nearest, factor[row, row], out=errors[row - first])
            rest[row + 1 : last] -= factor[row, row + 1 : last, None] * error
        rest[last:] -= factor[first:last, last:].T @ errors[: last - first]
    return codes


def _invert_lower(matrix: npt.NDArray[np.float64]) -> None:
    """Invert a lower triangular matrix in place, by halves: a sixth of the work of a general inverse."""
    size = len(matrix)
    if size <= _ROWS:
        matrix[:] = np.tril(np.linalg.inv(matrix))
        return
    half = size // 2
    _invert_lower(matrix[:half, :half])
    _invert_lower(matrix[half:, half:])
    below = matrix[half:, :half]
    below[:] = -matrix[half:, half:] @ (below @ matrix[:half, :half])


def _nearest(row: Floats, scales: Floats, zeros: Codes | None, grid: Grid) -> tuple[Floats, Floats]:
    """The codes of a row, and what they stand for."""
    codes = np.rint(row / scales)
    if zeros is None:
        np.clip(codes, grid.lowest, grid.highest, out=codes)
        return codes, codes * scales
    codes += zeros
    np.clip(codes, grid.lowest, grid.highest, out=codes)
    return codes, (codes - zeros) * scales
