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
from typing import Any

import numpy as np
import numpy.typing as npt

from passes.quantization.blocks import Codes, Floats, Grid, Quantized

__all__ = ["Elimination", "gptq"]

_DAMPING = 0.01
"""Part of the mean of the diagonal that is added to it, as in the paper."""
_ROWS = 16
"""Rows that are rounded one after the other, between updates of those that follow."""
_COLUMNS = 2048
"""Columns at a time: these rows of them stay in a second-level cache."""
_LEAF = 256
"""Rows of a matrix that LAPACK factorizes as a whole."""
_SINGLE_FROM = 4096
"""Rows from which the inverse is computed in single precision: two matrices in double precision would take 16 K² bytes
more. What is added to the diagonal keeps it well-conditioned enough, mostly."""


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
    def of(cls, gram: Floats, rows: int) -> Elimination:
        """From XᵀX `[K, K]`.

        What few rows say of how inputs go together is chance, mostly: with fewer rows than columns, there are even
        errors that XᵀX does not see at all, and GPTQ would make as large as they can be. So what stands beside the
        diagonal is taken for smaller, by K / (K + rows): with few rows GPTQ becomes rounding to nearest. Of inputs
        whose energies fall like 1/k, what was lost on all that there could be was, beside RTN, 0.61 and not 1.33 with
        half as many rows as columns, 0.53 and not 0.66 with 4/3 as many, and the same from eight times as many on.

        With the rows and columns turned round, L Lᵀ is the matrix itself as R Rᵀ with an upper triangular R: U = R⁻¹.

        Args:
            gram: XᵀX.
            rows: Of X.
        """
        order = np.argsort(-np.diagonal(gram), kind="stable")
        certain = rows / (rows + len(gram))
        if len(gram) >= _SINGLE_FROM:
            try:
                return cls(order, _factor(gram, order, certain, np.float32))
            except np.linalg.LinAlgError:  # single precision took it for indefinite
                pass
        return cls(order, _factor(gram, order, certain, np.float64))


def _factor(gram: Floats, order: npt.NDArray[np.intp], certain: float, type_: type[np.floating[Any]]) -> Floats:
    turned = gram[np.ix_(order[::-1], order[::-1])].astype(type_, copy=False)
    diagonal = np.einsum("ii->i", turned)
    kept = diagonal.copy()
    turned *= type_(certain)
    diagonal[:] = kept
    diagonal[diagonal <= 0] = 1  # an input that was always zero
    diagonal += _DAMPING * diagonal.mean()
    _invert_factor(turned)
    return np.asarray(turned[::-1, ::-1], np.float32)


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
        rest = weights[order, columns]
        rounding = _Rounding(rest, factor, block_of, scales, zeros, grid, np.empty(rest.shape, np.int8))
        rounding.run(0, len(rest))
        codes[order, columns] = rounding.codes
    return Quantized(codes, start.scales, start.zeros, start.blocks)


@dataclass(frozen=True, eq=False)
class _Rounding:
    """Rows in their order, rounded one after the other.

    No function inside a function: one that calls itself keeps what it sees until the next collection of garbage, and
    that is hundreds of megabytes here.

    Attributes:
        rest: The rows; overwritten with the errors that were made up for.
        factor: See `Elimination`.
        block_of: The block of each row.
        scales: Of each block.
        zeros: Its zero points.
        grid: The codes.
        codes: The result.
    """

    rest: Floats
    factor: Floats
    block_of: npt.NDArray[np.intp]
    scales: Floats
    zeros: Codes | None
    grid: Grid
    codes: Codes

    def run(self, first: int, last: int) -> None:
        """Half of the rows at a time, and of these half: what the first half leaves to make up for is one product."""
        rest, factor = self.rest, self.factor
        if last - first > _ROWS:
            middle = (first + last) // 2
            self.run(first, middle)
            rest[middle:last] -= factor[first:middle, middle:last].T @ rest[first:middle]
            self.run(middle, last)
            return
        for row in range(first, last):
            block = self.block_of[row]
            zeros = None if self.zeros is None else self.zeros[block]
            self.codes[row], nearest = _nearest(rest[row], self.scales[block], zeros, self.grid)
            np.subtract(rest[row], nearest, out=rest[row])
            rest[row] /= factor[row, row]
            rest[row + 1 : last] -= factor[row, row + 1 : last, None] * rest[row]


def _invert_factor(matrix: npt.NDArray[np.floating[Any]]) -> None:
    """Overwrite a positive definite matrix with the inverse of its lower Cholesky factor, by halves.

    What stands above the diagonal is not read, and is zero afterwards. Nearly all of it are products of matrices, which
    are several times faster than a Cholesky factorization in one piece.
    """
    size = len(matrix)
    if size <= _LEAF:
        matrix[:] = np.tril(np.linalg.inv(np.linalg.cholesky(matrix)))
        return
    half = size // 2
    first, below, last = matrix[:half, :half], matrix[half:, :half], matrix[half:, half:]
    _invert_factor(first)
    below[:] = below @ first.T
    last -= below @ below.T
    _invert_factor(last)
    below[:] = -(last @ (below @ first))
    matrix[:half, half:] = 0


def _nearest(row: Floats, scales: Floats, zeros: Codes | None, grid: Grid) -> tuple[Floats, Floats]:
    """The codes of a row, and what they stand for."""
    codes = np.rint(row / scales)
    if zeros is None:
        np.clip(codes, grid.lowest, grid.highest, out=codes)
        return codes, codes * scales
    codes += zeros
    np.clip(codes, grid.lowest, grid.highest, out=codes)
    return codes, (codes - zeros) * scales
