"""Tiles of a factor whose elements come one by one: what an asynchronous copy of four bytes or more cannot take.

Such are images of three channels, matrices of an odd number of columns, sizes that only the run knows, and bytes of a
right factor that do not lie four rows side by side. A thread loads the elements of a word of shared memory to registers
while the tensor cores multiply what came before, and puts them together behind that. Neighbouring threads have
neighbouring words: along the reduced axis of the left factor, along the columns of the right one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvm import tirx
from tvm.tirx import Expr, Stmt

from backends.gpu.operands import Factor, divides
from backends.gpu.tensor_instructions import pair
from backends.gpu.threads import cast, gather, holds, i32, registers, scatter, wide_index, zeros
from backends.relax.loops import sequence, simplify

if TYPE_CHECKING:
    from backends.gpu.tensor_product import TensorProduct

__all__ = ["Gatherer"]


class Gatherer:
    """Brings the tiles of one factor through registers.

    Attributes:
        places: what `Factor.place` gives for each line of which the thread loads elements, word by word.
        held: the registers that are elements' stop on the way.
    """

    def __init__(
        self, factor: Factor, first: Expr, size: int, block: TensorProduct, thread: Expr, *, along_depth: bool
    ) -> None:
        tile = block.tile
        self.factor, self.memory, self.depth = factor, block.memory, block.result.depth
        self.whole = divides(tile.depth, self.depth)
        self.count = 4 // tile.element
        # The elements of a word: neighbours along the reduced axis, or of 16-bit right factors two columns.
        self.lines = 1 if along_depth or tile.element == 1 else self.count
        deep = self.count // self.lines
        across = tile.depth // deep if along_depth else size // self.lines
        words = (size if along_depth else tile.right_rows) * across
        pitch = tile.left_pitch if along_depth else tile.right_pitch
        turns = -(-words // tile.threads)
        self.elements = registers(turns * self.count, factor.dtype, "left" if along_depth else "right")
        self.held = [self.elements]
        self.places: list[list[Expr]] = []
        self.spots: list[tuple[Expr, Expr]] = []
        self.exists: list[tuple[Expr | None, list[Expr | None]]] = []
        for begin in range(0, words, tile.threads):
            place = thread + begin
            down, along = tirx.floordiv(place, i32(across)), tirx.floormod(place, i32(across))
            line, k = (down, along * deep) if along_depth else (along * self.lines, down * deep)
            at = [simplify(first + wide_index(line + i)) for i in range(self.lines)]
            self.spots.append((k, down * pitch + along))
            self.places.append([part for own in at for part in factor.place(own, 1)])
            own = place < words if begin + tile.threads > words else None
            self.exists.append((own, [None if divides(size, factor.lines) else each < factor.lines for each in at]))

    def fetch(self, start: Expr, stage: Expr) -> Stmt:
        """From memory to registers, the elements of the step at `start`; zeros where there are none."""
        statements = []
        for turn, (places, (along, _), (own, inside)) in enumerate(
            zip(self.places, self.spots, self.exists, strict=True)
        ):
            each = len(places) // self.lines
            for i in range(self.count):
                line = i if self.lines > 1 else 0
                k = simplify(start + wide_index(along + (0 if self.lines > 1 else i)))
                element, conditions = self.factor.load(places[line * each : (line + 1) * each], k, 1)
                at = turn * self.count + i
                found = [own, inside[line], None if self.whole else k < self.depth, *conditions]
                nothing = scatter(self.elements, zeros(self.factor.dtype), at)
                statements.append(holds(found, scatter(self.elements, element, at), nothing))
        return sequence(statements)

    def keep(self, stage: Expr) -> Stmt:
        """From registers to a stage in shared memory."""
        statements = []
        for turn, ((_, word), (own, _)) in enumerate(zip(self.spots, self.exists, strict=True)):
            elements = [gather(self.elements, turn * self.count + i) for i in range(self.count)]
            statements.append(holds([own], scatter(self.memory, self._word(elements), stage + word)))
        return sequence(statements)

    def _word(self, elements: list[Expr]) -> Expr:
        if len(elements) == 2:
            return pair(self.factor.dtype, *(cast(element, "float32") for element in elements))
        word = tirx.const(0, "uint32")
        for i, element in enumerate(elements):
            byte = tirx.bitwise_and(cast(cast(element, "int32"), "uint32"), tirx.const(255, "uint32"))
            word = tirx.bitwise_or(word, tirx.shift_left(byte, tirx.const(8 * i, "uint32")))
        return word
