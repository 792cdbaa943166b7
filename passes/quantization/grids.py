"""Grids of 256 numbers or fewer: `x` is stored as `round(x / scale) + zero_point`.

These are ONNX's `QuantizeLinear` (ties to even, saturating) and `DequantizeLinear`. Zero is always on a grid, so that
padding and masks stay exact. See Jacob et al., Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference (2018), section 2.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Grid", "Kind", "channel_scales", "quantize_channels"]

Array = npt.NDArray[Any]

_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
"""A scale of zero divides by zero, and one below this is flushed to zero by processors that do so."""


@dataclass(frozen=True)
class Kind:
    """A family of grids.

    Attributes:
        signed: `int8` if true, else `uint8`.
        symmetric: Whether zero is at the middle code: 0 of `int8`, 128 of `uint8`.
        reduce_range: Whether to use 7 of the 8 bits. Sums of two products then fit into 16 bits, which processors
            without VNNI saturate at.
    """

    signed: bool
    symmetric: bool
    reduce_range: bool = False

    @property
    def codes(self) -> tuple[int, int]:
        """The smallest and the largest code. A symmetric grid leaves the smallest of a type out."""
        bits = 7 if self.reduce_range else 8
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if self.signed else (0, 2**bits - 1)
        return (low + 1, high) if self.symmetric else (low, high)

    @property
    def middle(self) -> int:
        """The code of zero on a symmetric grid."""
        return sum(self.codes) // 2

    @property
    def dtype(self) -> type[np.int8 | np.uint8]:
        """Of the codes."""
        return np.int8 if self.signed else np.uint8

    def over(self, low: float, high: float) -> Grid:
        """The grid that reaches from `low` to `high`, as near as it can be; wider where zero lies outside.

        Args:
            low: Finite.
            high: Finite, at least `low`.
        """
        first, last = self.codes
        low, high = min(0.0, low), max(0.0, high)
        if self.symmetric:
            return Grid(_scale(max(-low, high) / (last - self.middle)), self.middle, self)
        scale = _scale((high - low) / (last - first))
        return Grid(scale, int(np.clip(np.rint(first - low / scale), first, last)), self)


@dataclass(frozen=True)
class Grid:
    """A scale and a zero point.

    Attributes:
        scale: The distance of neighbours; a positive float32.
        zero_point: The code of zero.
        kind: The codes there are.
    """

    scale: float
    zero_point: int
    kind: Kind

    @property
    def low(self) -> float:
        """The smallest number on the grid."""
        return (self.kind.codes[0] - self.zero_point) * self.scale

    @property
    def high(self) -> float:
        """The largest number on the grid."""
        return (self.kind.codes[1] - self.zero_point) * self.scale

    def quantize(self, x: Array) -> Array:
        """Codes of `x`, in `x`'s shape. What lies outside of the grid gets its end.

        `QuantizeLinear` knows the codes of the type only, so with a reduced range it gives codes beyond these.
        """
        kind = np.iinfo(self.kind.dtype)
        codes = np.rint(x.astype(np.float32) / np.float32(self.scale)) + np.float32(self.zero_point)
        return np.asarray(np.clip(codes, kind.min, kind.max).astype(self.kind.dtype))

    def dequantize(self, codes: Array) -> Array:
        """The numbers that codes stand for, float32."""
        return (codes.astype(np.int32) - self.zero_point).astype(np.float32) * np.float32(self.scale)


def channel_scales(weight: Array, axis: int | None, kind: Kind) -> Array:
    """The scale of each channel of a weight, with which the largest of its elements gets the largest code.

    Args:
        weight: Finite floats.
        axis: Of the channels; `None` for one scale for all.
        kind: Of a symmetric grid.

    Returns:
        `[channels]` or `[]`, float32. A channel of zeros has the scale 1.
    """
    others = None if axis is None else tuple(i for i in range(weight.ndim) if i != axis)
    largest = np.abs(weight).max(axis=others, initial=0.0).astype(np.float64)
    scales = np.maximum(largest / (kind.codes[1] - kind.middle), _SMALLEST_SCALE)
    return np.asarray(np.where(largest > 0, scales, 1.0), np.float32)


def quantize_channels(weight: Array, scales: Array, axis: int | None, kind: Kind) -> Array:
    """Codes of a weight on symmetric grids; see `channel_scales`."""
    along = [1] * weight.ndim
    if axis is not None:
        along[axis] = -1
    first, last = kind.codes
    codes = np.rint(weight.astype(np.float32) / scales.reshape(along if axis is not None else ())) + kind.middle
    return np.asarray(np.clip(codes, first, last).astype(kind.dtype))


def _scale(exact: float) -> float:
    return float(np.float32(max(exact, _SMALLEST_SCALE))) if exact > 0 else 1.0
