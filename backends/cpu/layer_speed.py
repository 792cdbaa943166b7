"""What the tile model says of one layer in float32 and in int8, before there is a kernel of it.

The same arithmetic as in `backends.cpu.prediction`, from declared figures alone, so that the same target gives the same
choice. What is not the same in both counts: the multiplications, of which a processor with VNNI does four at a time
with bytes; the bytes of weights and of what is read; and the rounding.
"""

from __future__ import annotations

from backends.cpu.quads import QUAD
from backends.cpu.tiles import Tiles
from backends.relax.byte_attention import FEWEST_QUERIES
from backends.relax.values import ConvShape
from optimizer.layer_speed import AttentionWork, LayerWork
from optimizer.target import Cpu

__all__ = ["attention_seconds", "predicted_seconds"]

_SOME_ROWS = 128
"""Where their number is symbolic."""
_TILE_CYCLES = 24.0
"""As in `backends.cpu.prediction`."""
_ROUNDING = 6.0
"""Operations on a vector to round it: scaled, shifted, cut off on both sides, rounded, packed."""
_RANGE = 2.0
"""More of them to find the range of a row: absolute values, the largest."""

_SOFTMAX = 24.0
"""Operations on a vector of scores: scaled, masked, the largest, the exponential, the sum."""
_PACKED = 4.0
"""More of them on bytes: rounded and laid side by side."""
_PAIRED = 3.0
"""Operations on a byte of a value to lay it beside its neighbours, for each block of queries."""
_BLOCK_VECTORS = 4
"""Vectors of queries in a block."""


def attention_seconds(work: AttentionWork, cpu: Cpu) -> tuple[float, float]:
    """In float32, and in int8 with the rounding of what the attention reads.

    Without an instruction for bytes, and for a few queries, there is no kernel of bytes: both take as long, or longer.

    Args:
        work: The attention.
        cpu: The processor.
    """
    tiles = Tiles(cpu)
    rows = _SOME_ROWS if work.rows is None else work.rows
    keys = rows if work.keys is None else work.keys
    heads, width = work.heads * (work.batch or 1), work.size + work.value_size
    lanes, pipes = tiles.lanes(), cpu.fma_pipes
    scores = heads * rows * keys / lanes / pipes
    rounding = heads * (rows * work.size + keys * width) * _ROUNDING / lanes / pipes
    float32 = scores * (width + _SOFTMAX)
    if not tiles.attends("uint8") or rows < FEWEST_QUERIES or work.size % QUAD:
        int8 = float32 + rounding
    else:
        blocks = -(-rows // (_BLOCK_VECTORS * lanes))
        paired = heads * blocks * keys * work.value_size * _PAIRED / lanes / pipes
        int8 = scores * (width / QUAD + _SOFTMAX + _PACKED) + paired + rounding
    per_second = cpu.clock * cpu.cores
    return float32 / per_second, int8 / per_second


def predicted_seconds(work: LayerWork, cpu: Cpu) -> tuple[float, float]:
    """In float32, and in int8 with the rounding of what the layer reads.

    A kernel that stores its result rounded stores a quarter of the bytes: that makes up for the rounding.

    Args:
        work: The layer.
        cpu: The processor.
    """
    tiles = Tiles(cpu)
    rows = _SOME_ROWS if work.rows is None else work.rows
    float32 = _cycles(work, tiles, "float32", 4)
    winograd = _winograd_cycles(work, tiles)
    if winograd is not None:
        float32 = min(float32, winograd)
    read = rows * work.read
    operations = _ROUNDING + (_RANGE if work.dynamic else 0.0)
    rounding = read * operations / tiles.lanes() / cpu.fma_pipes
    if work.dynamic:  # it is read once more
        rounding = max(rounding, 4 * read / cpu.l2_bytes_a_cycle)
    elif work.stored_rounded:
        rounding = 0.0
    per_second = cpu.clock * cpu.cores
    return float32 / per_second, (_cycles(work, tiles, "int8", 1) + rounding) / per_second


def _cycles(work: LayerWork, tiles: Tiles, dtype: str, size: int) -> float:
    """Of one core: the arithmetic or the traffic, whichever takes longer.

    Args:
        work: The layer.
        tiles: Of the processor.
        dtype: Of the weights.
        size: Bytes of an element that is read.
    """
    cpu, lanes = tiles.cpu, tiles.lanes()
    rows = _SOME_ROWS if work.rows is None else work.rows
    if work.columns == 1 and work.groups > 1:  # one channel each: no sums along lanes, so bytes are no faster
        arithmetic = rows * -(-work.groups // lanes) * work.depth / min(cpu.fma_pipes, cpu.load_ports)
    else:
        together = QUAD if dtype == "int8" and cpu.vnni else 1
        steps = -(-work.depth // together)
        width = tiles.panel_width(work.rows, work.columns, steps, dtype)
        vectors = width // lanes
        step = tiles.panel_cycles(rows, work.columns, steps, dtype, vectors)
        starts = -(-rows // tiles.tile_rows(rows, vectors)) * -(-work.columns // width)
        arithmetic = work.groups * (steps * step + starts * _TILE_CYCLES)
    weights = work.groups * work.depth * work.columns * size
    data = rows * (work.read * size + 4 * work.groups * work.columns)
    return max(arithmetic, weights / cpu.l3_bytes_a_cycle, data / cpu.l2_bytes_a_cycle)


def _winograd_cycles(work: LayerWork, tiles: Tiles) -> float | None:
    """By Winograd's method, where it is taken."""
    if not work.three or work.groups != 1:
        return None
    shape = ConvShape(work.images, work.height, work.width, work.depth // 9, work.columns)
    panel = tiles.winograd_width(shape)
    return None if panel is None else tiles.winograd_cycles(shape, panel)[0]
