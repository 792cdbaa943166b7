"""How an attention is cut into blocks and threads, chosen by an estimate of its time; see docs/gpu-model.md."""

from __future__ import annotations

from dataclasses import dataclass
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
    """

    down: int
    thread_rows: int
    thread_keys: int
    size: int
    value_size: int

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
    def thread_values(self) -> int:
        """Elements of a result's row that a thread has."""
        return -(-self.value_size // self.across)

    @property
    def values(self) -> int:
        """Elements of a result's row, rounded up to what the threads have."""
        return self.thread_values * self.across

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
        factor = max(self.size * self.key_pitch, self.keys * self.values)
        return self.size * self.row_pitch, factor, self.keys * self.row_pitch, self.across * self.rows

    @property
    def shared_bytes(self) -> int:
        """Of a block."""
        return ELEMENT_BYTES * sum(self.parts)

    @property
    def registers(self) -> int:
        """Of a thread: its scores, its results, what is on its way from memory, and three numbers for each row."""
        held = -(-self.keys * max(self.size, self.values) // self.threads)
        sums = self.thread_rows * (self.thread_keys + self.thread_values + 3)
        return sums + held + self.thread_rows + max(self.thread_keys, self.thread_values) + _OTHER_REGISTERS

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
    return estimate_blocks(sizes, tile, gpu, _step_cycles(tile, gpu))


def estimate_blocks(sizes: AttentionSizes, tile: Block, gpu: Gpu, busy: float, *, ahead: int = 1) -> Estimate:
    """Of an attention: waves of blocks, and the device's memory; the longer of the two.

    Args:
        sizes: What is computed.
        tile: Of a block.
        gpu: The device.
        busy: Cycles of a step of a block that has a multiprocessor to itself.
        ahead: Steps whose keys and values are on their way meanwhile.
    """
    heads, rows, keys = (_UNKNOWN_ROWS if n is None else max(1, n) for n in (sizes.heads, sizes.rows, sizes.keys))
    blocks = heads * -(-rows // tile.rows)
    resident = max(1, occupancy(gpu, tile.threads, tile.shared_bytes, tile.registers))
    steps = max(1, round(sizes.share * -(-keys // tile.keys)))
    read = heads * (rows * sizes.size + keys * (sizes.size + sizes.value_size)) * sizes.element
    least = float(read + heads * rows * sizes.value_size * sizes.element)
    compute = step_seconds(gpu, blocks, resident, steps, busy, ahead=ahead)
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
    reads = tile.size * 2 + tile.keys * (1 + -(-tile.thread_values // 4))
    softmax = tile.thread_rows * (12 * tile.thread_keys + tile.across + tile.thread_values)
    return max(
        warps * products * gpu.lanes / fma_lanes(gpu),
        warps * issue_limit(products + reads + softmax),
        ELEMENT_BYTES * tile.keys * (tile.size + tile.value_size) / L2_BYTES_A_CYCLE,
    )


def best_attention_tile(sizes: AttentionSizes, gpu: Gpu) -> AttentionTile | None:
    """The tile with the least estimated time; `None` if heads are too large for the GPU's shared memory."""
    tiles = [
        AttentionTile(down, thread_rows, thread_keys, sizes.size, sizes.value_size)
        for down in (2, 4, 8, 16)
        for thread_rows in (1, 2, 4)
        for thread_keys in (1, 2, 4)
    ]
    fitting = [tile for tile in tiles if tile.fits(gpu)]
    if not fitting:
        return None
    return min(fitting, key=lambda t: (estimate_attention(sizes, t, gpu).seconds, t.shared_bytes))
