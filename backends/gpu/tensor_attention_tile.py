"""Tiles of attention on tensor cores, chosen by an estimate of their time; see docs/gpu-model.md."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from backends.gpu.attention_tile import AttentionSizes, estimate_blocks
from backends.gpu.tensor_tile import GATHERING
from backends.gpu.tile_model import (
    ALIKE,
    L2_BYTES_A_CYCLE,
    STATIC_BYTES,
    Estimate,
    fma_lanes,
    issue_limit,
)
from optimizer.gpus import Gpu

__all__ = ["TensorAttentionTile", "best_tensor_attention_tile", "estimate_tensor_attention"]

ROWS = 16
"""Queries of a warp: the rows of one instruction."""
_DEPTH = 16
"""Elements of a query that one instruction takes, and keys whose values it adds up."""
_PADDING_WORDS = 4
"""Behind a row of a tile: the eight rows of a matrix then lie in different banks."""
_STAGES = 2
_OTHER_REGISTERS = 48
_REGISTER_SHARE = 0.8
"""Of a thread's registers that are counted here: a larger share than of products, since all of them are."""
_SOFTMAX_INSTRUCTIONS = 12
"""For a score: scale, condition, maximum, exponential, sum and conversion."""
_WARPS = (1, 2, 4, 8)


@dataclass(frozen=True)
class TensorAttentionTile:
    """A block of warps, each with 16 queries; see `backends.gpu.tensor_attention`.

    Attributes:
        warps: of a block.
        keys: of a step.
        size, value_size: as in `AttentionSizes`.
    """

    warps: int
    keys: int
    size: int
    value_size: int

    @property
    def threads(self) -> int:
        """Of a block."""
        return 32 * self.warps

    @property
    def rows(self) -> int:
        """Queries of a block."""
        return ROWS * self.warps

    @property
    def depth(self) -> int:
        """Elements of a query and of a key, rounded up to whole instructions."""
        return -(-self.size // _DEPTH) * _DEPTH

    @property
    def values(self) -> int:
        """The same of a value."""
        return -(-self.value_size // _DEPTH) * _DEPTH

    @property
    def key_pitch(self) -> int:
        """Words from a query or a key to the next in shared memory."""
        return self.depth // 2 + _PADDING_WORDS

    @property
    def value_pitch(self) -> int:
        """The same of values."""
        return self.values // 2 + _PADDING_WORDS

    @property
    def stage_words(self) -> int:
        """Of the keys and values of a step."""
        return self.keys * (self.key_pitch + self.value_pitch)

    @property
    def query_word(self) -> int:
        """Where the queries lie: behind the first step's keys and values, in the place of the second's."""
        return self.stage_words

    @property
    def shared_words(self) -> int:
        """Of a block."""
        return max(_STAGES * self.stage_words, self.query_word + self.rows * self.key_pitch)

    @property
    def shared_bytes(self) -> int:
        """Of a block."""
        return 4 * self.shared_words

    @property
    def registers(self) -> int:
        """Of a thread: its queries, scores, weights and sums."""
        return self.depth // 4 + self.keys // 2 + self.keys // 4 + self.values // 2 + _OTHER_REGISTERS

    @property
    def elements(self) -> int:
        """Of the keys and values of a step that a thread brings."""
        return self.keys * (self.depth + self.values) // self.threads

    def fits(self, gpu: Gpu, *, singly: bool = False) -> bool:
        """Whether a block can run; elements that come one by one are all on their way at a time."""
        return (
            self.threads <= min(gpu.threads, 256)
            and self.shared_bytes <= min(gpu.shared_bytes, STATIC_BYTES)
            and self.registers <= _REGISTER_SHARE * gpu.registers
            and self.registers + (self.elements if singly else 0) <= gpu.registers
            and self.registers * self.threads <= gpu.registers_each
        )


def estimate_tensor_attention(sizes: AttentionSizes, tile: TensorAttentionTile, gpu: Gpu) -> Estimate:
    """Of an attention on tensor cores; see `estimate_blocks`."""
    return estimate_blocks(sizes, tile, gpu, _step_cycles(sizes, tile, gpu), ahead=_STAGES - 1)


def _step_cycles(sizes: AttentionSizes, tile: TensorAttentionTile, gpu: Gpu) -> float:
    """Of a step of a block that has a multiprocessor to itself: what of it is busiest."""
    clock = gpu.flops["float32"] / (2 * fma_lanes(gpu) * gpu.multiprocessors)
    rate = gpu.flops["float16"] / (gpu.multiprocessors * clock)
    elements = tile.depth + tile.values
    matrices = tile.keys * elements // 256
    products = tile.keys * elements // 128
    loading = tile.keys * elements / tile.threads * (GATHERING if sizes.singly else 10 / 8)
    softmax = tile.keys // 2 * _SOFTMAX_INSTRUCTIONS + tile.values // 2
    return max(
        2.0 * tile.rows * tile.keys * elements / rate,
        tile.warps * matrices * 4.0,  # 512 bytes each, 128 a cycle
        tile.warps * issue_limit(products + 2 * matrices + softmax + loading + 24),
        tile.keys * elements * 2 / L2_BYTES_A_CYCLE,
    )


@lru_cache(maxsize=4096)
def best_tensor_attention_tile(sizes: AttentionSizes, gpu: Gpu) -> TensorAttentionTile | None:
    """The tile with the least estimated time; `None` if heads are too large for a thread's registers.

    Of tiles that take about as long, the largest; none has a warp without a query, where their number is known.
    """
    most = max(_WARPS) if sizes.rows is None else max(1, -(-sizes.rows // ROWS))
    tiles = [
        TensorAttentionTile(warps, keys, sizes.size, sizes.value_size)
        for warps in _WARPS
        for keys in (16, 32, 64)
        if warps <= most
    ]
    seconds = {
        tile: estimate_tensor_attention(sizes, tile, gpu).seconds
        for tile in tiles
        if tile.fits(gpu, singly=sizes.singly)
    }
    if not seconds:
        return None
    least = min(seconds.values())
    return max((t for t, took in seconds.items() if took <= ALIKE * least), key=lambda t: (t.rows, t.keys))
