"""How an attention is cut into blocks and threads, chosen by an estimate of its time; see docs/gpu-model.md."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from backends.gpu.tile_model import (
    ELEMENT_BYTES,
    L2_BYTES_A_CYCLE,
    PADDING,
    REGISTER_SHARE,
    STATIC_BYTES,
    Estimate,
    fma_lanes,
    issue_limit,
    occupancy,
    step_seconds,
)
from optimizer.gpus import Gpu

__all__ = ["AttentionSizes", "AttentionTile", "best_attention_tile", "estimate_attention", "estimate_blocks"]

_ACROSS = 16
"""Threads that share a row of queries: half a warp, so that a warp reads two groups of queries and one of keys."""
_PIECES = (32, 64)
"""Elements of keys and values that shared memory may have at a time, where heads are larger."""
_LOAD_INSTRUCTIONS = 2.0
"""To bring an element of a vector of four from memory to shared memory."""
_UNKNOWN_ROWS = 512
_OTHER_REGISTERS = 40
"""Of a thread: addresses, counters, conditions, and what the expression of a score takes."""


@dataclass(frozen=True)
class AttentionSizes:
    """What is computed; a symbolic size is `None`.

    Attributes:
        heads: of all batch elements.
        rows: queries of a head.
        keys: of a head.
        size: elements of a query and of a key.
        value_size: of a value.
        share: of the keys that a query sees, on average: 0.5 where later ones are masked.
        element: bytes of an element in memory.
        singly: whether elements of 16 bits have to be loaded one by one for tensor cores.
    """

    heads: int | None
    rows: int | None
    keys: int | None
    size: int
    value_size: int
    share: float = 1.0
    element: int = 4
    singly: bool = False


@dataclass(frozen=True)
class AttentionTile:
    """A block: `down` x 16 threads, each with some queries, keys of a step, and elements of the result.

    Attributes:
        down: rows of threads.
        thread_rows: queries of a thread.
        thread_keys: keys of a thread in a step.
        size, value_size: as in `AttentionSizes`.
        piece: most elements of a step's keys or values that are in shared memory at a time; 0 for all.
        stays: whether the queries stay in shared memory; else they come in pieces, too, anew in every step.
        vector: elements that are loaded at once.
    """

    down: int
    thread_rows: int
    thread_keys: int
    size: int
    value_size: int
    piece: int = 0
    stays: bool = True
    vector: int = 4

    across = _ACROSS

    @property
    def threads(self) -> int:
        """Of a block."""
        return self.down * self.across

    @property
    def rows(self) -> int:
        """Queries of a block."""
        return self.down * self.thread_rows

    @property
    def keys(self) -> int:
        """Of a step."""
        return self.across * self.thread_keys

    @property
    def key_piece(self) -> int:
        """Elements of a key, and of a query, that are multiplied at a time."""
        return min(self.size, self.piece or self.size)

    @property
    def key_pieces(self) -> int:
        """Of a key."""
        return -(-self.size // self.key_piece)

    @property
    def thread_piece(self) -> int:
        """Elements of a value's piece that a thread has."""
        return -(-min(self.value_size, self.piece or self.value_size) // self.across)

    @property
    def value_piece(self) -> int:
        """Elements of a value that are weighed at a time, rounded up to what the threads have."""
        return self.thread_piece * self.across

    @property
    def value_pieces(self) -> int:
        """Of a value."""
        return -(-self.value_size // self.value_piece)

    @property
    def thread_values(self) -> int:
        """Elements of a result's row that a thread has."""
        return self.value_pieces * self.thread_piece

    @property
    def row_pitch(self) -> int:
        """Elements from one element of the queries to the next in shared memory."""
        return self.rows + PADDING

    @property
    def key_pitch(self) -> int:
        """The same of the keys."""
        return self.keys + PADDING

    @property
    def parts(self) -> tuple[int, int, int, int]:
        """Elements of shared memory for queries, keys or values, weights, and what the threads of a row exchange."""
        queries = self.key_piece * (self.key_pieces if self.stays else 1)
        factor = max(self.key_piece * self.key_pitch, self.keys * self.value_piece)
        return queries * self.row_pitch, factor, self.keys * self.row_pitch, self.across * self.rows

    @property
    def shared_bytes(self) -> int:
        """Of a block."""
        return ELEMENT_BYTES * sum(self.parts)

    @property
    def registers(self) -> int:
        """Of a thread: scores, results, what is on its way from memory with addresses of 64 bits, three for a row."""
        first = (self.keys + (0 if self.stays else self.rows)) * self.key_piece
        held = -(-max(first, self.keys * self.value_piece) // self.threads)
        sums = self.thread_rows * (self.thread_keys + self.thread_values + 3)
        arriving = held + 2 * held // self.vector
        return sums + arriving + self.thread_rows + max(self.thread_keys, self.thread_piece) + _OTHER_REGISTERS

    def fits(self, gpu: Gpu) -> bool:
        """Whether a block can run."""
        return (
            self.threads >= gpu.lanes
            and self.threads <= gpu.threads
            and self.shared_bytes <= min(gpu.shared_bytes, STATIC_BYTES)
            and self.registers <= REGISTER_SHARE * gpu.registers
            and self.registers * self.threads <= gpu.registers_each
        )


class Block(Protocol):
    """What an estimate asks of a tile."""

    @property
    def rows(self) -> int:
        """Queries of a block."""

    @property
    def keys(self) -> int:
        """Of a step."""

    @property
    def threads(self) -> int:
        """Of a block."""

    @property
    def shared_bytes(self) -> int:
        """Of a block."""

    @property
    def registers(self) -> int:
        """Of a thread."""


def estimate_attention(sizes: AttentionSizes, tile: AttentionTile, gpu: Gpu) -> Estimate:
    """Of an attention on plain cores; see `estimate_blocks`."""
    pieces = max(tile.key_pieces, tile.value_pieces)
    return estimate_blocks(sizes, tile, gpu, _step_cycles(tile, gpu), pieces=pieces)


def estimate_blocks(
    sizes: AttentionSizes, tile: Block, gpu: Gpu, busy: float, *, ahead: int = 1, pieces: int = 1
) -> Estimate:
    """Of an attention: waves of blocks, and the device's memory; the longer of the two.

    Args:
        sizes: What is computed.
        tile: Of a block.
        gpu: The device.
        busy: Cycles of a step of a block that has a multiprocessor to itself.
        ahead: Steps whose keys and values are on their way meanwhile.
        pieces: In which the keys of a step come, and its values; each is waited for.
    """
    heads, rows, keys = (_UNKNOWN_ROWS if n is None else max(1, n) for n in (sizes.heads, sizes.rows, sizes.keys))
    blocks = heads * -(-rows // tile.rows)
    resident = max(1, occupancy(gpu, tile.threads, tile.shared_bytes, tile.registers))
    steps = max(1, round(sizes.share * -(-keys // tile.keys)))
    read = heads * (rows * sizes.size + keys * (sizes.size + sizes.value_size)) * sizes.element
    least = float(read + heads * rows * sizes.value_size * sizes.element)
    compute = step_seconds(gpu, blocks, resident, steps * pieces, busy / pieces, ahead=ahead)
    memory = least / gpu.memory_bytes_a_second
    longest = max(compute, memory)
    bound = "compute" if compute >= memory else "memory"
    return Estimate(
        gpu.launch_seconds + longest,
        2.0 * sizes.share * heads * rows * keys * (sizes.size + sizes.value_size),
        least,
        least,
        min(1.0, resident * tile.threads / gpu.threads_each),
        bound if longest > gpu.launch_seconds else "launch",
    )


def _step_cycles(tile: AttentionTile, gpu: Gpu) -> float:
    """Of a step of a block that has a multiprocessor to itself."""
    warps = tile.threads / gpu.lanes
    products = tile.thread_rows * (tile.size * tile.thread_keys + tile.keys * tile.thread_values)
    reads = tile.size * 2 + tile.keys * tile.value_pieces * (1 + -(-tile.thread_piece // 4))
    softmax = tile.thread_rows * (12 * tile.thread_keys + tile.across + tile.thread_values)
    loaded = tile.keys * (tile.size + tile.value_size) + (0 if tile.stays else tile.rows * tile.size)
    loading = loaded / tile.threads * _LOAD_INSTRUCTIONS
    return max(
        warps * products * gpu.lanes / fma_lanes(gpu),
        warps * issue_limit(products + reads + softmax + loading),
        ELEMENT_BYTES * loaded / L2_BYTES_A_CYCLE,
    )


@lru_cache(maxsize=4096)
def best_attention_tile(sizes: AttentionSizes, gpu: Gpu) -> AttentionTile | None:
    """The tile with the least estimated time; `None` if heads are too large for a thread's registers.

    Of tiles that take as long, the one with the fewest pieces, then the least shared memory.
    """
    fitting = [tile for tile in _tiles(sizes) if tile.fits(gpu)]
    if not fitting:
        return None
    return min(
        fitting,
        key=lambda t: (estimate_attention(sizes, t, gpu).seconds, t.key_pieces + t.value_pieces, t.shared_bytes),
    )


def _tiles(sizes: AttentionSizes) -> Iterator[AttentionTile]:
    size, value_size = sizes.size, sizes.value_size
    vector = 1 if sizes.element < ELEMENT_BYTES else math.gcd(4, size, value_size)
    pieces = [(p, stays) for p in _PIECES if p < max(size, value_size) for stays in (True, False)]
    for down in (2, 4, 8, 16):
        for thread_rows in (1, 2, 4):
            for thread_keys in (1, 2, 4):
                for piece, stays in [(0, True), *pieces]:
                    yield AttentionTile(down, thread_rows, thread_keys, size, value_size, piece, stays, vector)
