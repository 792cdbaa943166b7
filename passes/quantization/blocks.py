"""Matrices of 4-bit codes with a scale for each block of rows.

K: rows, along which a product sums up; N: columns, one for each output; G: blocks of rows.
Everything here works on weights as a matrix `[K, N]`, whatever the operator that they are from.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import ml_dtypes
import numpy as np
import numpy.typing as npt

__all__ = [
    "SCALE_TYPES",
    "Blocks",
    "Codes",
    "Floats",
    "Grid",
    "Quantized",
    "Tile",
    "column_slices",
    "in_threads",
    "joined",
    "output_energy",
    "round_to",
]

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int8]
Part = TypeVar("Part")

SCALE_TYPES: dict[str, type[np.generic]] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}
"""What scales can be stored as."""

_SMALLEST = {"float32": 2.0**-126, "float16": 2.0**-14, "bfloat16": 2.0**-126}
"""The least normal numbers of these types."""
_ROWS, _COLUMNS = 512, 4096
"""Parts of a matrix that are multiplied at a time."""
_TILE = 1 << 16
"""Elements of a part of a matrix that is gone through very often."""
_CHUNK = 1 << 18
"""Elements of a matrix that are worked on at once: they and a few like them stay in a second-level cache."""


@dataclass(frozen=True)
class Grid:
    """The numbers that 4 bits can stand for.

    Attributes:
        symmetric: INT4 from -8 to 7 without a zero point; else UINT4 from 0 to 15 with one.
        scale_type: A name of `SCALE_TYPES`.
    """

    symmetric: bool = True
    scale_type: str = "float32"

    @property
    def lowest(self) -> int:
        """The smallest code."""
        return -8 if self.symmetric else 0

    @property
    def highest(self) -> int:
        """The largest code."""
        return 7 if self.symmetric else 15

    @property
    def largest_weight(self) -> float:
        """The largest weight: scales of larger ones could not be stored, or the square of their error in float32."""
        return 2e5 if self.scale_type == "float16" else 1e18

    def storable(self, scales: Floats) -> Floats:
        """The nearest scales that can be stored, none of them zero."""
        type_ = SCALE_TYPES[self.scale_type]
        stored = scales.astype(type_).astype(np.float32)
        return np.maximum(stored, np.float32(_SMALLEST[self.scale_type]))


@dataclass(frozen=True)
class Blocks:
    """The rows of a matrix in blocks of neighbours.

    Attributes:
        rows: K.
        starts: The first row of each block.
        size: Rows of a block that is no last one.
    """

    rows: int
    starts: tuple[int, ...]
    size: int

    @classmethod
    def of(cls, rows: int, size: int, part: int | None = None) -> Blocks:
        """Blocks of `size` rows, the last one of a part with what is left.

        Args:
            rows: K.
            size: 0 for a single block.
            part: No block reaches over a multiple of it: the channels of one position of a convolution's kernel.
        """
        if not size:
            return cls(rows, (0,), rows)
        part = part or rows
        starts = (first + start for first in range(0, rows, part) for start in range(0, part, size))
        return cls(rows, tuple(starts), size)

    @functools.cached_property
    def of_row(self) -> npt.NDArray[np.intp]:
        """The block of each row `[K]`."""
        return np.repeat(np.arange(len(self.starts)), np.diff([*self.starts, self.rows]))

    def tiles(self, columns: int) -> Iterator[Tile]:
        """A matrix with so many columns in parts that stay in a cache, each of whole blocks."""
        longest = int(np.diff([*self.starts, self.rows]).max(initial=1))
        width = min(max(_TILE // longest, 32), 1024)
        height = max(1, _TILE // (longest * width))
        for first in range(0, len(self.starts), height):
            ends = [*self.starts[first : first + height + 1], self.rows][: height + 1]
            for left in range(0, columns, width):
                yield Tile(slice(first, first + height), tuple(ends), slice(left, left + width))

    def slices(self) -> list[slice]:
        """The rows of each block."""
        return [slice(*bounds) for bounds in zip(self.starts, (*self.starts[1:], self.rows), strict=True)]

    def largest(self, values: Floats) -> Floats:
        """The largest value of each block: `[K, N]` to `[G, N]`."""
        return np.maximum.reduceat(values, self.starts, axis=0)

    def total(self, values: Floats) -> Floats:
        """The sum of each block: `[K, N]` to `[G, N]`."""
        return np.add.reduceat(values, self.starts, axis=0)


@dataclass(frozen=True)
class Tile:
    """A part of a matrix.

    Attributes:
        blocks: Its blocks.
        ends: The first row of each of them, and the row behind the last.
        columns: Its columns.
    """

    blocks: slice
    ends: tuple[int, ...]
    columns: slice

    @property
    def rows(self) -> slice:
        """Of its blocks."""
        return slice(self.ends[0], self.ends[-1])

    def boxed(self, part: Floats) -> Floats:
        """Its rows `[rows, N]` as `[blocks, rows of the longest, N]`; what is missing of a shorter one is zero."""
        lengths = np.diff(self.ends)
        if (lengths == lengths[0]).all():
            return np.ascontiguousarray(part).reshape(len(lengths), lengths[0], -1)
        result = np.zeros((len(lengths), lengths.max(), part.shape[1]), np.float32)
        for index, length in enumerate(lengths):
            start = self.ends[index] - self.ends[0]
            result[index, :length] = part[start : start + length]
        return result


@dataclass(frozen=True)
class Quantized:
    """A matrix of codes.

    Attributes:
        codes: `[K, N]`.
        scales: `[G, N]`, rounded to what the grid can store.
        zeros: The zero points `[G, N]`; `None` on a symmetric grid.
        blocks: The rows of a scale.
    """

    codes: Codes
    scales: Floats
    zeros: Codes | None
    blocks: Blocks

    def steps(self) -> Floats:
        """The codes less the zero points, `[K, N]`."""
        codes = self.codes if self.zeros is None else self.codes - self.zeros[self.blocks.of_row]
        return codes.astype(np.float32)

    def dequantized(self) -> Floats:
        """The matrix `[K, N]` that the codes stand for."""
        result = self.steps()
        result *= self.scales[self.blocks.of_row]
        return result

    def replaced(self, where: npt.NDArray[np.bool_], other: Quantized) -> Quantized:
        """The blocks `[G, N]` of another matrix where that is wanted, and this one's where not."""
        zeros = None if self.zeros is None or other.zeros is None else np.where(where, other.zeros, self.zeros)
        codes = np.where(where[self.blocks.of_row], other.codes, self.codes)
        return Quantized(codes, np.where(where, other.scales, self.scales), zeros, self.blocks)


def joined(parts: Sequence[Quantized]) -> Quantized:
    """Matrices of the same blocks side by side."""
    zeros = [part.zeros for part in parts if part.zeros is not None]
    return Quantized(
        np.concatenate([part.codes for part in parts], axis=1),
        np.concatenate([part.scales for part in parts], axis=1),
        np.concatenate(zeros, axis=1) if zeros else None,
        parts[0].blocks,
    )


def round_to(weights: Floats, scales: Floats, zeros: Codes | None, blocks: Blocks, grid: Grid) -> Quantized:
    """The nearest codes under given scales and zero points.

    Args:
        weights: `[K, N]`.
        scales: `[G, N]`, storable.
        zeros: `[G, N]`, or `None` on a symmetric grid.
        blocks: The rows of a scale.
        grid: The codes.
    """
    codes = np.empty(weights.shape, np.int8)
    for columns in column_slices(weights):
        scaled = weights[:, columns] / scales[:, columns][blocks.of_row]
        np.rint(scaled, out=scaled)
        if zeros is not None:
            scaled += zeros[:, columns][blocks.of_row]
        codes[:, columns] = np.clip(scaled, grid.lowest, grid.highest, out=scaled)
    return Quantized(codes, scales, zeros, blocks)


def column_slices(weights: Floats) -> Iterator[slice]:
    """Slices of the columns of a matrix that are small enough for a cache."""
    rows, columns = weights.shape
    step = max(16, _CHUNK // max(rows, 1))
    return (slice(first, first + step) for first in range(0, columns, step))


def in_threads(work: Callable[[Part], None], parts: Iterable[Part]) -> None:
    """Do something for each part; most of it is numpy, which lets others compute meanwhile."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(work, parts):  # an error of a part is raised here
            pass


def output_energy(weights: Floats, gram: Floats) -> float:
    """The squares of the product with the inputs that `gram` is from, summed up.

    ‖X W‖² is the sum of the elements of W ∘ (XᵀX W).

    Args:
        weights: W, `[K, N]`: those of a layer, or how far others are off them.
        gram: XᵀX, `[K, K]`.
    """
    total = 0.0
    for first in range(0, weights.shape[1], _COLUMNS):
        part = weights[:, first : first + _COLUMNS]
        # XᵀX is symmetric: what stands below the squares of its diagonal counts as much as what stands above.
        for top in range(0, len(gram), _ROWS):
            rows, after = slice(top, top + _ROWS), slice(top + _ROWS, None)
            total += float(np.vdot(part[rows], gram[rows, rows] @ part[rows]))
            total += 2 * float(np.vdot(part[rows], gram[rows, after] @ part[after]))
    return total
