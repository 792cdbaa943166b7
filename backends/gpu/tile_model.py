"""Tiles from a GPU's memory hierarchy, and how long a product takes with them: an estimate, see docs/gpu-model.md."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from optimizer.gpus import Gpu

__all__ = [
    "ALIKE",
    "ELEMENT_BYTES",
    "L2_BYTES_A_CYCLE",
    "PADDING",
    "REGISTER_SHARE",
    "STATIC_BYTES",
    "Estimate",
    "Sizes",
    "Tile",
    "best_tile",
    "estimate",
    "fma_lanes",
    "issue_limit",
    "memory_bytes",
    "occupancy",
    "row_group",
    "step_seconds",
]

PADDING = 4
"""Elements behind a row of a tile, so that the threads that store a column of it meet fewer of the same bank."""

ELEMENT_BYTES = 4
"""Bytes of an element in shared memory and of a sum."""
STATIC_BYTES = 48 << 10
"""Of shared memory a block can have without asking for more when it is launched."""
_OTHER_REGISTERS = 32
"""Of a thread: addresses, counters, conditions."""
REGISTER_SHARE = 0.65
"""Of a thread's registers that tiles may take: the compiler needs some to move things around."""
_UNKNOWN_ROWS = 512
_UNKNOWN_COLUMNS = 512
_UNKNOWN_DEPTH = 512
_L2_SHARE = 0.75
"""Of the second-level cache that factors keep while blocks pass by."""
_SHARED_BYTES_A_CYCLE = 128
"""Shared memory gives a multiprocessor so many bytes a cycle (CUDA programming guide: 32 banks of 4 bytes)."""
L2_BYTES_A_CYCLE = 28.0
"""The second-level cache gives a multiprocessor so many: 60% of the peak (A100 white paper: 5,120 bytes a cycle for 108
of them)."""
_LATENCY_CYCLES = 500.0
"""From a load of memory to its data (Jia et al., Dissecting the Ampere GPU Architecture through Microbenchmarking)."""
ALIKE = 1.05
"""Of two tiles whose times differ by less, the larger one is taken: it asks less of the caches."""
_SCHEDULERS = 4
"""Of a multiprocessor; each starts an instruction of a warp a cycle."""
_STEP_INSTRUCTIONS = 24
"""Of a thread in a step of a product, besides loads and arithmetic: conditions, addresses, the barrier."""
_LOAD_INSTRUCTIONS = 8
"""To bring a vector from memory to shared memory: its condition, its address, the load and the stores."""
_FMA_LANES = {"sm_80": 64, "sm_86": 128, "sm_89": 128, "sm_90": 128}
"""Sums of products that a multiprocessor starts each cycle."""


@dataclass(frozen=True)
class Sizes:
    """What is multiplied: batches of [rows, depth] x [depth, columns]; a symbolic size is `None`.

    Attributes:
        batches: products that share nothing.
        rows, columns, depth: of each.
        element: bytes of an element of the factors and the result.
        dtype: of the arithmetic.
        left_bytes: of the left factor in memory, where it is not rows x depth elements (a convolution's image).
        singly: whether the elements of the left and of the right factor have to be loaded one by one.
    """

    batches: int | None
    rows: int | None
    columns: int | None
    depth: int | None
    element: int = 4
    dtype: str = "float32"
    left_bytes: int | None = None
    singly: tuple[bool, bool] = (False, False)

    def guessed(self) -> tuple[int, int, int, int]:
        """All of them, guesses in place of those that only the run knows."""
        return (
            max(1, self.batches or 1),
            max(1, _UNKNOWN_ROWS if self.rows is None else self.rows),
            max(1, _UNKNOWN_COLUMNS if self.columns is None else self.columns),
            max(1, _UNKNOWN_DEPTH if self.depth is None else self.depth),
        )


@dataclass(frozen=True)
class Tile:
    """What a block computes, and how its threads share it; see `backends.gpu.block_product`.

    Attributes:
        rows, columns: of the result.
        depth: of a step.
        thread_rows, thread_columns: of a thread.
    """

    rows: int
    columns: int
    depth: int
    thread_rows: int
    thread_columns: int

    @property
    def threads(self) -> int:
        """Of a block."""
        return self.rows // self.thread_rows * (self.columns // self.thread_columns)

    @property
    def shared_elements(self) -> int:
        """Two pairs of tiles, or the rows of sums that are stored at a time."""
        pairs = 2 * self.depth * (self.rows + PADDING + self.columns)
        return max(pairs, self.rows // (self.thread_rows // min(4, self.thread_rows)) * self.columns)

    @property
    def shared_bytes(self) -> int:
        """Of a block."""
        return ELEMENT_BYTES * self.shared_elements

    @property
    def registers(self) -> int:
        """Of a thread: its sums, its rows and columns of a step, and what is on its way from memory."""
        on_the_way = -(-self.depth * (self.rows + self.columns) // self.threads)
        sums = self.thread_rows * self.thread_columns
        return sums + self.thread_rows + self.thread_columns + on_the_way + _OTHER_REGISTERS

    def fits(self, gpu: Gpu) -> bool:
        """Whether a block can run."""
        return (
            gpu.lanes <= self.threads <= min(gpu.threads, 256)
            and self.shared_bytes <= min(gpu.shared_bytes, STATIC_BYTES)
            and self.registers <= REGISTER_SHARE * gpu.registers
            and self.registers * self.threads <= gpu.registers_each
        )


@dataclass(frozen=True)
class Estimate:
    """How long a kernel takes: an estimate, never a measurement.

    Attributes:
        seconds: of all, the start included.
        flops: operations.
        traffic_bytes: that pass between the device's memory and its second-level cache.
        least_bytes: the same if everything passed once.
        occupancy: resident threads of a multiprocessor, of those that it can hold.
        bound: "compute", "memory", "shared" or "launch": what takes longest.
    """

    seconds: float
    flops: float
    traffic_bytes: float
    least_bytes: float
    occupancy: float
    bound: str


def occupancy(gpu: Gpu, threads: int, shared_bytes: int, registers: int) -> int:
    """Blocks that a multiprocessor holds at a time (CUDA programming guide, hardware multithreading).

    Registers are given to warps in units of 256, shared memory to blocks in units of 128 bytes and one KiB more.
    """
    warps = -(-threads // gpu.lanes)
    a_warp = -(-registers * gpu.lanes // 256) * 256
    each = -(-(shared_bytes + 1024) // 128) * 128
    return max(
        0,
        min(
            gpu.threads_each // threads,
            gpu.blocks_each,
            gpu.registers_each // (a_warp * warps),
            gpu.shared_bytes_each // each,
        ),
    )


def estimate(sizes: Sizes, tile: Tile, gpu: Gpu) -> Estimate:
    """Of a product with a tile: waves of blocks, and the device's memory; the longer of the two."""
    batches, rows, columns, depth = sizes.guessed()
    steps = -(-depth // tile.depth)
    blocks = batches * -(-rows // tile.rows) * -(-columns // tile.columns)
    resident = max(1, occupancy(gpu, tile.threads, tile.shared_bytes, tile.registers))
    stored = tile.rows * tile.columns * ELEMENT_BYTES / L2_BYTES_A_CYCLE
    least, moved = memory_bytes(sizes, tile.rows, gpu)
    parts = {
        "compute": step_seconds(gpu, blocks, resident, steps, _step_cycles(tile, gpu), stored),
        "memory": moved / gpu.memory_bytes_a_second,
    }
    longest = max(parts, key=lambda name: parts[name])
    return Estimate(
        gpu.launch_seconds + parts[longest],
        2.0 * batches * rows * columns * depth,
        moved,
        least,
        min(1.0, resident * tile.threads / gpu.threads_each),
        longest if parts[longest] > gpu.launch_seconds else "launch",
    )


def fma_lanes(gpu: Gpu) -> int:
    """Sums of products that a multiprocessor starts each cycle."""
    return _FMA_LANES.get(gpu.name, gpu.lanes * _SCHEDULERS)


def issue_limit(instructions: float) -> float:
    """Cycles in which a multiprocessor starts so many instructions of each thread of a warp."""
    return instructions / _SCHEDULERS


def step_seconds(
    gpu: Gpu, blocks: int, resident: int, steps: int, busy: float, stored: float = 0.0, ahead: int = 1
) -> float:
    """Of blocks that take so many steps, in waves of as many as the device holds at a time.

    While one block waits for what its next step needs, the others of the multiprocessor go on. The first tiles come,
    and the results go, while nothing is multiplied.

    Args:
        gpu: the device.
        blocks: in all.
        resident: of a multiprocessor.
        steps: of a block.
        busy: cycles of a step of a block that has a multiprocessor to itself.
        stored: cycles in which a block's results go.
        ahead: steps for which a tile is asked for before it is needed.
    """
    clock = gpu.flops["float32"] / (2 * fma_lanes(gpu) * gpu.multiprocessors)
    whole, rest = divmod(blocks, gpu.multiprocessors * resident)

    def wave(count: int) -> float:
        if not count:
            return 0.0
        return steps * max(count * busy, _LATENCY_CYCLES / ahead + busy) + 2 * _LATENCY_CYCLES + stored * count

    return (whole * wave(resident) + wave(-(-rest // gpu.multiprocessors))) / clock


def _step_cycles(tile: Tile, gpu: Gpu) -> float:
    """Of a step of a block that has a multiprocessor to itself: what of it is busiest.

    What several threads of a warp read from one place of shared memory is read once.
    """
    warps = tile.threads / gpu.lanes
    sums = tile.thread_rows * tile.thread_columns
    across = min(gpu.lanes, tile.columns // tile.thread_columns)
    down = max(1, gpu.lanes // across)
    vectors = [
        (n / min(4, n), min(4, n), threads) for n, threads in ((tile.thread_rows, down), (tile.thread_columns, across))
    ]
    reads = sum(count for count, _, _ in vectors)
    moved = sum(
        count * max(1.0, width * ELEMENT_BYTES * threads / _SHARED_BYTES_A_CYCLE) for count, width, threads in vectors
    )
    loads = tile.depth * (tile.rows + tile.columns) / 4 / tile.threads
    issued = tile.depth * (sums + reads + 1) + _STEP_INSTRUCTIONS + _LOAD_INSTRUCTIONS * loads
    return max(
        warps * tile.depth * sums * gpu.lanes / fma_lanes(gpu),
        warps * (tile.depth * moved + 5 * loads),
        warps * issue_limit(issued),
        tile.depth * (tile.rows + tile.columns) * ELEMENT_BYTES / L2_BYTES_A_CYCLE,
    )


def _least_bytes(sizes: Sizes) -> float:
    batches, rows, columns, depth = sizes.guessed()
    left = rows * depth * sizes.element if sizes.left_bytes is None else sizes.left_bytes
    return float(batches * (left + (depth * columns + rows * columns) * sizes.element))


def row_group(sizes: Sizes, tile_rows: int, gpu: Gpu) -> int:
    """How many rows of blocks run before the next column of blocks: as many as the second-level cache keeps.

    A block's rows then come from memory once, and the right factor once for each such group; one row of blocks a group
    is enough where the whole right factor stays in the cache.
    """
    _, rows, columns, depth = sizes.guessed()
    kept = _L2_SHARE * gpu.l2_bytes
    if depth * columns * sizes.element <= kept:
        return 1
    down = -(-rows // tile_rows)
    most = max(1, int(kept / 2) // (tile_rows * depth * sizes.element))
    groups = -(-down // most)
    return -(-down // groups)


def memory_bytes(sizes: Sizes, tile_rows: int, gpu: Gpu) -> tuple[float, float]:
    """What has to pass between the device's memory and its second-level cache, and what does; see `row_group`."""
    batches, rows, columns, depth = sizes.guessed()
    least, right = _least_bytes(sizes), depth * columns * sizes.element
    if right <= _L2_SHARE * gpu.l2_bytes:
        return least, least
    passes = -(-rows // (tile_rows * row_group(sizes, tile_rows, gpu)))
    return least, least + batches * (passes - 1) * right


_SHAPES = tuple(
    Tile(rows, columns, depth, thread_rows, thread_columns)
    for rows in (8, 16, 32, 64, 128)
    for columns in (16, 32, 64, 128)
    for depth in (8, 16, 32)
    for thread_rows in (1, 2, 4, 8)
    for thread_columns in (2, 4, 8)
    if rows * columns >= 64 * thread_rows * thread_columns
)


@lru_cache(maxsize=4096)
def best_tile(sizes: Sizes, gpu: Gpu) -> Tile:
    """The tile with the least estimated time."""
    fitting = [t for t in _SHAPES if t.fits(gpu)]
    seconds = {t: estimate(sizes, t, gpu).seconds for t in fitting}
    least = min(seconds.values())
    alike = [t for t in fitting if seconds[t] <= ALIKE * least]
    return max(alike, key=lambda t: (t.rows * t.columns, -t.depth, -seconds[t]))
