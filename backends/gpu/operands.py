"""What a blocked product is made of: its factors, its result, and the order of its blocks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx
from tvm.tirx import Expr

from backends.gpu.epilogue import Epilogue
from backends.gpu.tensor_tile import TensorTile
from backends.gpu.tile_model import Tile
from backends.relax.loops import i64, known, simplify

__all__ = ["Factor", "Order", "Result", "copied", "divides", "element_bytes", "neighbours", "singly", "sum_type"]

_COPIED_BYTES = 4
"""That an asynchronous copy takes at least."""
_SUMS = {"float16": "float32", "bfloat16": "float32", "uint8": "int32", "int8": "int32"}


def sum_type(dtype: str) -> str:
    """The type in which products of a type are added up."""
    return _SUMS.get(dtype, dtype)


@dataclass(frozen=True)
class Factor:
    """A factor in memory.

    Attributes:
        dtype: of its elements.
        run: elements that lie side by side, and at multiples of which rows begin: along the reduced axis of the left
            factor, along the columns of the right one.
        lines: how many rows (columns) can be read; int64.
        place: from the first of the rows (columns) that are loaded at once, and how many these are, to what of its
            address does not depend on the step, int64; computed once.
        load: from that, the place on the reduced axis and how many columns are loaded at once, to the element, and the
            conditions under which it exists. The element is a load, unless `run` is 1.
        rows_together: how many places of the reduced axis one of `load` stands for: four, of bytes that lie in words.

    TVM makes a vector access of neighbours only if it can prove that they are aligned. So a `place` counts what is
    loaded at once, and `load` multiplies again.
    """

    dtype: str
    run: Expr | int
    lines: Expr
    place: Callable[[Expr, int], list[Expr]]
    load: Callable[[list[Expr], Expr, int], tuple[Expr, list[Expr]]]
    rows_together: int = 1


@dataclass(frozen=True)
class Result:
    """Where the result goes.

    Attributes:
        rows, columns, depth: sizes; int64.
        indices: from a row to the indices before the last one.
        epilogue: what becomes of an element.
        first: what the last index is counted from.
    """

    rows: Expr
    columns: Expr
    depth: Expr
    indices: Callable[[Expr], list[Expr]]
    epilogue: Epilogue
    first: Expr | int = 0


@dataclass(frozen=True)
class Order:
    """The order in which the blocks of a product run: groups of rows, in these all columns, in these the group's rows.

    Attributes:
        groups, columns: how many; int64.
        size: rows of blocks in a group.
    """

    groups: Expr
    columns: Expr
    size: int

    @classmethod
    def of(cls, rows: Expr, columns: Expr, tile: Tile | TensorTile, size: int) -> Order:
        """For a result of so many rows and columns, in groups of `size` rows of blocks."""
        down, across = tile.rows * size, tile.columns
        return cls(
            simplify(tirx.floordiv(rows + (down - 1), i64(down))),
            simplify(tirx.floordiv(columns + (across - 1), i64(across))),
            size,
        )

    @property
    def extents(self) -> list[Expr]:
        """Of the coordinates of a block: its group, its column and its place in the group."""
        return [self.groups, self.columns, i64(self.size)]

    def row(self, group: Expr, own: Expr) -> Expr:
        """Which row of blocks a block is in; behind the last one there may be some in which nothing is stored."""
        return simplify(group * self.size + own)


def neighbours(run: Expr | int, dtype: str) -> int:
    """How many elements of runs of that size are loaded at once through registers: 16 bytes where they are aligned."""
    return copied(run, dtype) if dtype in ("float32", "int32") else 1


def copied(run: Expr | int, dtype: str) -> int:
    """How many elements of runs of that size an asynchronous copy can take: up to 16 bytes that are aligned."""
    total, size = known(run), element_bytes(dtype)
    return 1 if total is None else math.gcd(total, max(1, 16 // size))


def singly(run: Expr | int, dtype: str) -> bool:
    """Whether runs of that size are too short for asynchronous copies, so that elements come one by one."""
    return copied(run, dtype) * element_bytes(dtype) < _COPIED_BYTES


def element_bytes(dtype: str) -> int:
    """Bytes of an element."""
    return {"float64": 8, "int64": 8, "float16": 2, "bfloat16": 2, "uint8": 1, "int8": 1}.get(dtype, 4)


def divides(size: int, total: Expr) -> bool:
    """Whether tiles of a size cover the total exactly, as far as is known."""
    whole = known(total)
    return whole is not None and whole % size == 0
