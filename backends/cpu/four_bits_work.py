"""What a product with weights of 4 bits has to do, by the choices of its rule; for `backends.cpu.prediction`.

All is counted for so many rows as there are, or for some where their number is symbolic, and scaled from there.
"""

from __future__ import annotations

from dataclasses import dataclass

from backends.cpu.amounts import element_bytes, scaled
from backends.cpu.codes import Codes, take_apart
from backends.cpu.four_bits import few_rows
from backends.cpu.four_bits_bytes import tile_shape
from backends.cpu.nibble_vectors import looks_up
from backends.cpu.tiles import Tiles
from backends.relax.kernel import Stage
from backends.relax.loops import Var, known, product
from backends.relax.nibbles import GROUP
from backends.relax.size_value import Formula

__all__ = ["CodesWork", "work_of"]

_SOME_ROWS = 64
_BUSY = 1.5
"""Vector operations that start in a cycle, for each pipe of multiply-adds: shifts and masks have others."""
_FOLD = 3.0
"""Operations on a vector of sums when a block ends."""


@dataclass(frozen=True)
class CodesWork:
    """Amounts, as in `backends.relax.plan.Work`; `weights` are the arguments that are packed."""

    flops: Formula
    cycles: Formula
    near: Formula
    tasks: Formula
    weights: list[Var]


def work_of(stage: Stage, tiles: Tiles) -> CodesWork | None:
    """The work of a stage; `None` if it is no such product."""
    parts = take_apart(stage)
    if parts is None:
        return None
    rows = product([a.extent for a in parts.rows])
    count = known(rows)
    some = _SOME_ROWS if count is None else max(count, 1)
    scale = [] if count is not None else [rows]
    unit = 1 if count is not None else some
    panels = int(parts.words.shape[0])
    vectors = panels * (parts.width // tiles.lanes())
    packed = [parts.words, parts.scale, *([] if parts.zero is None else [parts.zero])]
    panel_bytes = sum(element_bytes(v.dtype) * int(v.shape[1]) * parts.width for v in packed)
    return CodesWork(
        scaled([rows], 2.0 * parts.depth * (known(parts.column.extent) or 1)),
        scaled(scale, vectors * _vector_cycles(parts, tiles, some) / unit),
        scaled(scale, panels * _again(parts, tiles, some) * panel_bytes / unit),
        scaled(scale, panels * -(-some // 192) / unit),
        packed,
    )


def _vector_cycles(parts: Codes, tiles: Tiles, rows: int) -> float:
    """For all codes of a vector of columns."""
    cpu, depth = tiles.cpu, parts.depth
    pipes = cpu.fma_pipes * _BUSY
    folds = _FOLD * depth / parts.block * rows / pipes
    if parts.left_block is not None:
        tile, _ = tile_shape(cpu.vector_registers, parts.width // tiles.lanes(), rows)
        unpacked = 3 * -(-rows // tile) * depth / GROUP / pipes
        return 2 * rows * depth / GROUP / cpu.fma_pipes * (1 if cpu.vnni else 6) + unpacked + folds
    unpacking = 2 if looks_up(cpu) else 3
    if rows <= few_rows(cpu):
        return depth * max((unpacking + rows) / pipes, rows / cpu.fma_pipes) + folds
    width = parts.width // tiles.lanes()
    swept = tiles.sweep_cycles(rows, tiles.tile_rows(rows, width), width) / width
    return depth * (swept + (unpacking + 2) / pipes * -(-rows // 192))


def _again(parts: Codes, tiles: Tiles, rows: int) -> int:
    """How often a panel comes from the second-level cache, besides the first time."""
    if parts.left_block is None:
        return 0
    tile, _ = tile_shape(tiles.cpu.vector_registers, parts.width // tiles.lanes(), rows)
    return -(-rows // tile) - 1
