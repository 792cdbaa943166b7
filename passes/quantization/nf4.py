"""NF4, 4-bit NormalFloat, with double quantization (Dettmers et al. 2023, QLoRA).

The codes stand for 16 numbers that weights of a normal distribution fall on about equally often, scaled by the largest
weight of a block. The scales are quantized too: less their mean, to 8 bits with a scale for each 256 of them.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from passes.quantization.blocks import Blocks, Floats, column_slices

__all__ = ["SCALES_PER_BLOCK", "NormalFloats", "codebook", "normal_float"]

SCALES_PER_BLOCK = 256
"""Scales that share a scale."""


@functools.cache
def codebook() -> Floats:
    """The 16 numbers, ascending, from -1 to 1, with an exact 0.

    They are quantiles of the normal distribution: 8 evenly spaced probabilities from 1/2 down for the negative half
    and 9 up for the positive one, without the second 0 (QLoRA, section 3). The outermost probability is the mean of
    1 - 1/32 and 1 - 1/30, the middles of the last of 16 and of 15 equal parts.
    """
    outermost = 1 - (1 / 32 + 1 / 30) / 2
    quantile = NormalDist().inv_cdf
    positive = [quantile(p) for p in np.linspace(0.5, outermost, 9)[1:]]
    negative = [-quantile(p) for p in np.linspace(outermost, 0.5, 8)[:-1]]
    values = np.array([*negative, 0.0, *positive]) / positive[-1]
    return values.astype(np.float32)


@dataclass(frozen=True)
class NormalFloats:
    """A matrix as NF4.

    Attributes:
        codes: Indices into the codebook `[K, N]`.
        scale_codes: The scales `[G, N]`, less their mean, in 8 bits.
        scale_scales: One for each 256 of them, in the order of memory.
        mean: Of the scales.
        blocks: The rows of a scale.
    """

    codes: npt.NDArray[np.uint8]
    scale_codes: npt.NDArray[np.int8]
    scale_scales: Floats
    mean: np.float32
    blocks: Blocks

    def scales(self) -> Floats:
        """The scales `[G, N]`, dequantized."""
        return _dequantized(self.scale_codes, self.scale_scales, self.mean)

    def dequantized(self) -> Floats:
        """The matrix `[K, N]` that the codes stand for."""
        return codebook()[self.codes] * self.scales()[self.blocks.of_row]


def normal_float(weights: Floats, blocks: Blocks) -> NormalFloats:
    """The nearest codes.

    Args:
        weights: `[K, N]`, finite.
        blocks: The rows of a scale.
    """
    largest = blocks.largest(np.abs(weights))
    mean = largest.mean()
    flat = (largest - mean).reshape(-1)
    starts = np.arange(0, flat.size, SCALES_PER_BLOCK)
    spans = (np.maximum.reduceat(np.abs(flat), starts) / 127).astype(np.float32)
    spans[spans == 0] = 1
    scale_codes = np.rint(flat / np.repeat(spans, SCALES_PER_BLOCK)[: flat.size]).astype(np.int8).reshape(largest.shape)
    # What the codes are rounded to is what they will be multiplied with.
    scales = _dequantized(scale_codes, spans, mean)
    scales = np.where(scales == 0, np.float32(np.inf), scales)
    middles = (codebook()[1:] + codebook()[:-1]) / 2
    codes = np.empty(weights.shape, np.uint8)
    for columns in column_slices(weights):
        codes[:, columns] = np.searchsorted(middles, weights[:, columns] / scales[:, columns][blocks.of_row])
    return NormalFloats(codes, scale_codes, spans, mean, blocks)


def _dequantized(codes: npt.NDArray[np.int8], scales: Floats, mean: np.float32) -> Floats:
    flat = codes.reshape(-1).astype(np.float32)
    return (flat * np.repeat(scales, SCALES_PER_BLOCK)[: flat.size] + mean).reshape(codes.shape)
