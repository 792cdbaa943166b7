"""How the tiles of a factor come from memory to shared memory, through registers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tvm import tirx
from tvm.tirx import BufferLoad, Expr, Stmt, Var

from backends.gpu.operands import Factor, divides, neighbours
from backends.gpu.threads import cast, gather, holds, i32, ramp, registers, scatter, wide_index, zeros
from backends.relax.loops import sequence, simplify

if TYPE_CHECKING:
    from backends.gpu.block_product import BlockProduct

__all__ = ["Loader"]


class Loader:
    """Brings a tile of one factor from memory to registers, and from there to shared memory.

    Attributes:
        places: what `Factor.place` gives for each line that the thread loads.
        held: the registers.
    """

    def __init__(
        self, factor: Factor, first: Expr, size: int, block: BlockProduct, thread: Expr, *, along_depth: bool
    ) -> None:
        self.factor, self.along_depth, self.dtype = factor, along_depth, block.dtype
        self.depth, self.columns = block.result.depth, block.tile.columns
        self.whole = divides(block.tile.depth, self.depth)
        side, threads = block.tile.depth if along_depth else size, block.tile.threads
        self.lanes = math.gcd(neighbours(factor.run, factor.dtype), side)
        self.together = 1 if along_depth else self.lanes
        across, vectors = side // self.lanes, size * block.tile.depth // self.lanes
        self.held = registers(-(-vectors // threads) * self.lanes, factor.dtype, "left" if along_depth else "right")
        self.places: list[list[Expr]] = []
        self.spots: list[tuple[Expr, Expr]] = []
        self.exists: list[list[Expr | None]] = []
        for begin in range(0, vectors, threads):
            place = thread + begin
            across_, along = tirx.floordiv(place, i32(across)), tirx.floormod(place, i32(across)) * self.lanes
            line, k = (across_, along) if along_depth else (along, across_)
            at = simplify(first + wide_index(line))
            self.spots.append((line, k))
            self.places.append(factor.place(at, self.together))
            inside = None if divides(size, factor.lines) else at < factor.lines
            self.exists.append([place < vectors if begin + threads > vectors else None, inside])

    def fetch(self, start: Expr) -> Stmt:
        """From memory, the elements at `start` and behind; zeros where there are none."""
        statements = []
        for turn, (place, (_, along), exists) in enumerate(zip(self.places, self.spots, self.exists, strict=True)):
            k = simplify(start + wide_index(along))
            element, conditions = self.factor.load(place, k, self.together)
            at = turn * self.lanes
            if self.lanes > 1:
                *lead, last = element.indices
                element = BufferLoad(element.source, [*lead, ramp(last, self.lanes)])
            load = scatter(self.held, element, at, self.lanes)
            nothing = scatter(self.held, zeros(self.factor.dtype, self.lanes), at, self.lanes)
            statements.append(holds([*exists, None if self.whole else k < self.depth, *conditions], load, nothing))
        return sequence(statements)

    def keep(self, memory: Var, start: Expr, pitch: int) -> Stmt:
        """From registers to shared memory; the left factor, rows of `pitch`, is transposed."""
        statements = []
        for turn, ((line, k), exists) in enumerate(zip(self.spots, self.exists, strict=True)):
            at, own = turn * self.lanes, exists[:1]
            if self.along_depth:
                stores = [
                    scatter(memory, cast(gather(self.held, at + lane), self.dtype), start + (k + lane) * pitch + line)
                    for lane in range(self.lanes)
                ]
            else:
                value = cast(gather(self.held, at, self.lanes), self.dtype, self.lanes)
                stores = [scatter(memory, value, start + k * self.columns + line, self.lanes)]
            statements.append(holds(own, sequence(stores)))
        return sequence(statements)
