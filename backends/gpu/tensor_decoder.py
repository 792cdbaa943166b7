"""A right factor for tensor cores that is computed on its way to shared memory: weights of 4 bits, rounded to 16.

A thread decodes eight rows of two neighbouring columns at a time: the rows of a word of codes (`relax.nibbles`), and
the columns of a word of the tile, right[BK, BN + 8] of `backends.gpu.tensor_product`. Neighbouring threads have
neighbouring pairs of columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvm import tirx
from tvm.tirx import Expr, Stmt, Var

from backends.gpu.operands import divides
from backends.gpu.tensor_instructions import pair
from backends.gpu.threads import cast, holds, i32, scatter, wide_index
from backends.relax.loops import i64, sequence, simplify
from backends.relax.nibbles import GROUP

if TYPE_CHECKING:
    from backends.gpu.tensor_product import TensorProduct

__all__ = ["Computed", "Decoder"]


@dataclass(frozen=True)
class Computed:
    """A factor whose elements are expressions.

    Attributes:
        dtype: what they are rounded to: float16 or bfloat16.
        lines: how many columns there are; behind an odd number of them lies one more that can be computed.
        element: from a column and a place on the reduced axis, int64, to the element.
    """

    dtype: str
    lines: Expr
    element: Callable[[Expr, Expr], Expr]


class Decoder:
    """Computes the tiles of the right factor.

    Attributes:
        places: the pair of columns of each part that the thread computes; int64.
        held: no registers.
    """

    held: tuple[Var, ...] = ()

    def __init__(self, factor: Computed, first: Expr, block: TensorProduct, thread: Expr) -> None:
        tile = block.tile
        self.factor, self.memory, self.depth, self.tile = factor, block.memory, block.result.depth, tile
        self.places: list[list[Expr]] = []
        self.spots: list[tuple[Expr, Expr]] = []
        self.exists: list[Expr | None] = []
        across, parts = tile.columns // 2, tile.depth // GROUP * tile.columns // 2
        pairs = simplify(tirx.floordiv(first, i64(2)))  # tiles have an even number of columns
        for begin in range(0, parts, tile.threads):
            place = thread + begin
            group, own = tirx.floordiv(place, i32(across)), tirx.floormod(place, i32(across))
            self.places.append([simplify(pairs + wide_index(own))])
            self.spots.append((group, group * (GROUP * tile.right_pitch) + own))
            self.exists.append(place < parts if begin + tile.threads > parts else None)

    def keep(self, stage: Expr) -> None:
        """Nothing is left to do."""

    def fetch(self, start: Expr, stage: Expr) -> Stmt:
        """Compute the elements of a step from `start` on, a multiple of its depth; zeros where there are none."""
        statements = []
        for (columns,), (group, word), own in zip(self.places, self.spots, self.exists, strict=True):
            rows = simplify(tirx.floordiv(start, i64(GROUP)) + wide_index(group))
            inside = None if divides(self.tile.columns, self.factor.lines) else columns * 2 < self.factor.lines
            computed, nothing = [], []
            for row in range(GROUP):
                k = rows * GROUP + row
                both = [cast(simplify(self.factor.element(columns * 2 + n, k)), "float32") for n in range(2)]
                at = stage + word + row * self.tile.right_pitch
                zero = scatter(self.memory, tirx.const(0, "uint32"), at)
                exists = None if divides(GROUP, self.depth) else k < self.depth
                computed.append(holds([exists], scatter(self.memory, pair(self.factor.dtype, *both), at), zero))
                nothing.append(zero)
            there = None if divides(self.tile.depth, self.depth) else rows * GROUP < self.depth
            statements.append(holds([own], holds([inside, there], sequence(computed), sequence(nothing))))
        return sequence(statements)
