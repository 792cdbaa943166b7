"""Tiles of products on tensor cores, chosen by an estimate of their time; see docs/gpu-model.md."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil

from backends.gpu.tile_model import (
    ALIKE,
    L2_BYTES_A_CYCLE,
    REGISTER_SHARE,
    STATIC_BYTES,
    Estimate,
    Sizes,
    fma_lanes,
    issue_limit,
    memory_bytes,
    occupancy,
    step_seconds,
)
from optimizer.gpus import Gpu

__all__ = ["GATHERING", "TensorTile", "best_tensor_tile", "estimate_tensor", "gathered"]

_PADDING_BYTES = 16
"""Behind a row of a tile: the eight rows of a matrix then lie in different banks."""
_PADDING_WORDS = 8
"""Behind a row of words of bytes: the four rows that a warp reads then lie in different banks."""
_RESULT = 2
"""Bytes of an element of the result, at least."""
_OTHER_REGISTERS = 48
_DECODING = 5
"""Instructions for a weight of 4 bits: shift, mask, conversion, scale, and half of a conversion to 16 bits."""
GATHERING = 16
"""Instructions for an element that is loaded by itself: its place, its conditions, the load, and its part of a word."""


@dataclass(frozen=True)
class TensorTile:
    """What a block computes, and how its warps share it; see `backends.gpu.tensor_product`.

    Attributes:
        rows, columns: of the result.
        depth: of a step.
        warp_rows, warp_columns: of a warp.
        stages: steps whose factors are in shared memory or on their way to it.
        element: bytes of an element of the factors, 2 or 1.
    """

    rows: int
    columns: int
    depth: int
    warp_rows: int
    warp_columns: int
    stages: int
    element: int = 2

    @property
    def threads(self) -> int:
        """Of a block."""
        return 32 * (self.rows // self.warp_rows) * (self.columns // self.warp_columns)

    @property
    def left_pitch(self) -> int:
        """Words from a row of the left factor's tile to the next."""
        return (self.depth * self.element + _PADDING_BYTES) // 4

    @property
    def right_rows(self) -> int:
        """Of the right factor's tile; four rows of bytes lie side by side in words."""
        return self.depth if self.element == 2 else self.depth // 4

    @property
    def right_pitch(self) -> int:
        """Words from a row of the right factor's tile to the next."""
        return (self.columns * 2 + _PADDING_BYTES) // 4 if self.element == 2 else self.columns + _PADDING_WORDS

    @property
    def stage_words(self) -> int:
        """Of both tiles of a stage."""
        return self.rows * self.left_pitch + self.right_rows * self.right_pitch

    @property
    def shared_words(self) -> int:
        """Of a block: the stages, or all sums, which take their place."""
        return max(self.stages * self.stage_words, self.rows * self.columns)

    @property
    def shared_bytes(self) -> int:
        """Of a block."""
        return 4 * self.shared_words

    @property
    def registers(self) -> int:
        """Of a thread: its sums and its fragments."""
        sums = self.warp_rows * self.warp_columns // 32
        return sums + self.warp_rows // 4 + self.warp_columns // 4 + _OTHER_REGISTERS

    def fits(self, gpu: Gpu, held: int = 0) -> bool:
        """Whether a block can run whose threads hold so many elements in registers besides."""
        registers = self.registers + held
        return (
            self.threads <= min(gpu.threads, 256)
            and self.shared_bytes <= min(gpu.shared_bytes, STATIC_BYTES)
            and registers <= REGISTER_SHARE * gpu.registers
            and registers * self.threads <= gpu.registers_each
        )


def gathered(sizes: Sizes, tile: TensorTile) -> float:
    """Elements that a thread loads one by one in a step, and holds in registers meanwhile."""
    left, right = sizes.singly
    return tile.depth * (left * tile.rows + right * tile.columns) / tile.threads


def estimate_tensor(sizes: Sizes, tile: TensorTile, gpu: Gpu, *, decoded: bool = False) -> Estimate:
    """Of a product with a tile: waves of blocks, and the device's memory; the longer of the two.

    If `decoded`, the right factor is computed on its way (`backends.gpu.tensor_decoder`).
    """
    batches, rows, columns, depth = sizes.guessed()
    blocks = batches * -(-rows // tile.rows) * -(-columns // tile.columns)
    registers = tile.registers + ceil(gathered(sizes, tile))
    resident = max(1, occupancy(gpu, tile.threads, tile.shared_bytes, registers))
    stored = tile.rows * tile.columns * _RESULT / L2_BYTES_A_CYCLE
    # The loads of a step have the steps of all stages but one to come.
    busy = _step_cycles(sizes, tile, gpu, decoded=decoded)
    compute = step_seconds(gpu, blocks, resident, -(-depth // tile.depth), busy, stored, ahead=tile.stages - 1)
    least, moved = memory_bytes(sizes, tile.rows, gpu)
    memory = moved / gpu.memory_bytes_a_second
    longest = max(compute, memory)
    bound = "compute" if compute >= memory else "memory"
    return Estimate(
        gpu.launch_seconds + longest,
        2.0 * batches * rows * columns * depth,
        moved,
        least,
        min(1.0, resident * tile.threads / gpu.threads_each),
        bound if longest > gpu.launch_seconds else "launch",
    )


def _step_cycles(sizes: Sizes, tile: TensorTile, gpu: Gpu, *, decoded: bool) -> float:
    """Of a step of a block that has a multiprocessor to itself: what of it is busiest."""
    clock = gpu.flops["float32"] / (2 * fma_lanes(gpu) * gpu.multiprocessors)
    rate = gpu.flops["int8" if tile.element == 1 else sizes.dtype] / (gpu.multiprocessors * clock)
    warps = tile.threads / gpu.lanes
    deep = tile.depth * tile.element // 32
    matrices = deep * (tile.warp_rows // 16 + tile.warp_columns // 16)
    products = deep * (tile.warp_rows // 16) * (tile.warp_columns // 8)
    left, right = sizes.singly
    copied = (0 if left else tile.rows) + (0 if right or decoded else tile.columns)
    copies = tile.depth * tile.element * copied / 16 / tile.threads
    computed = _DECODING * tile.depth * tile.columns / tile.threads if decoded else 0.0
    computed += GATHERING * gathered(sizes, tile)
    return max(
        2.0 * tile.rows * tile.columns * tile.depth / rate,
        warps * matrices * 4.0,  # 512 bytes each, 128 a cycle
        warps * issue_limit(products + 2 * matrices + 10 * copies + computed + 24),
        tile.depth * (tile.rows + tile.columns) * tile.element / L2_BYTES_A_CYCLE,
    )


_SHAPES = tuple(
    TensorTile(rows, columns, depth, warp_rows, warp_columns, stages)
    for rows in (16, 32, 64, 128)
    for columns in (32, 64, 128)
    for depth in (32, 64)
    for warp_rows in (16, 32, 64)
    for warp_columns in (16, 32, 64)
    for stages in (2, 3, 4)
    if rows % warp_rows == 0 and columns % warp_columns == 0
    if rows * columns >= 2 * warp_rows * warp_columns
)


@lru_cache(maxsize=4096)
def best_tensor_tile(sizes: Sizes, gpu: Gpu, *, decoded: bool = False) -> TensorTile:
    """The tile with the least estimated time; of tiles that take about as long, the largest.

    `decoded`: see `estimate_tensor`.
    """
    shapes = [replace(t, element=sizes.element, depth=t.depth * 2 // sizes.element) for t in _SHAPES]
    fitting = [t for t in shapes if t.fits(gpu, ceil(gathered(sizes, t)))]
    seconds = {t: estimate_tensor(sizes, t, gpu, decoded=decoded).seconds for t in fitting}
    least = min(seconds.values())
    alike = [t for t in fitting if seconds[t] <= ALIKE * least]
    return max(alike, key=lambda t: (t.rows * t.columns, t.warp_rows * t.warp_columns, -t.shared_bytes))
