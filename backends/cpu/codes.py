"""A product with weights of 4 bits, taken apart, and what the nests that compute it share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tvm import tirx

from backends.cpu.epilogue import Epilogue
from backends.cpu.half import unrounded
from backends.cpu.nibble_vectors import looked_up, looks_up, numbers
from backends.cpu.register_tile import span, wide
from backends.cpu.tiles import Tiles
from backends.relax.four_bit_products import KERNEL
from backends.relax.kernel import Axis, Stage
from backends.relax.loops import (
    BufferLoad,
    Expr,
    IfThenElse,
    Stmt,
    Var,
    known,
    loads_of,
    over_vectors,
    prefetch,
    product,
    sequence,
    simplify,
    substitute,
    unflatten,
    vectorized,
)
from backends.relax.nibbles import GROUP
from optimizer.target import Cpu

__all__ = ["WIDE", "Codes", "CodesNest", "take_apart"]

WIDE = "float32"

_AHEAD = 64
"""Rows of words that are asked for before they are needed: 16 KiB of a panel of four vectors."""


@dataclass(frozen=True)
class Codes:
    """A product with 4-bit weights, taken apart.

    Attributes:
        rows: the axes of the other factor's rows, in the order of the result.
        column: the last axis of the result.
        depth: K.
        reduced: the variable of the reduced axis.
        left: an element of the other factor, in the stage's axis variables.
        words: the codes, [P, ceil(K/8), W].
        scale: [P, B, W].
        zero: zero points, likewise, or `None`.
        codebook: [16], the numbers that codes stand for; `None` if they stand for themselves.
        block: how many rows share a scale.
        offset: the code that stands for zero where there are no zero points.
        left_block: how many neighbours of a quantized factor share a scale, 0 where a row does; `None` if it is not.
    """

    rows: list[Axis]
    column: Axis
    depth: int
    reduced: Var
    left: Expr
    words: Var
    scale: Var
    zero: Var | None
    codebook: Var | None
    block: int
    offset: int
    left_block: int | None

    @property
    def width(self) -> int:
        """Columns of a panel."""
        return int(self.words.shape[-1])


def take_apart(stage: Stage) -> Codes | None:
    """The product that a stage is; `None` if it is none."""
    if stage.kind != KERNEL or not isinstance(stage.value, tirx.Add) or not isinstance(stage.value.b, tirx.Mul):
        return None
    left, right = stage.value.b.a, stage.value.b.b
    depth = known(stage.reduction[0].extent)
    sources = {(str(load.source.dtype), len(load.indices)): load.source for load in loads_of(right)}
    words, zero, codebook = (sources.pop(key, None) for key in (("int32", 3), ("uint8", 3), (WIDE, 1)))
    if depth is None or words is None or len(sources) != 1:
        return None
    (scale,) = sources.values()
    block, offset, left_block = (
        int(str(stage.annotations[f"tersor.{name}"])) for name in ("block", "offset", "left_block")
    )
    quantized = None if left_block < 0 else left_block
    *rows, column = stage.spatial
    return Codes(
        rows, column, depth, stage.reduction[0].var, left, words, scale, zero, codebook, block, offset, quantized
    )


@dataclass
class CodesNest:
    """What both nests share.

    Attributes:
        parts: the product.
        epilogue: what follows it.
        tiles: the target's.
    """

    parts: Codes
    epilogue: Epilogue
    tiles: Tiles
    row_extents: list[Expr] = field(init=False)
    total_rows: Expr = field(init=False)
    lanes: int = field(init=False)
    vectors: int = field(init=False)

    def __post_init__(self) -> None:
        self.row_extents = [a.extent for a in self.parts.rows]
        self.total_rows = product(self.row_extents)
        self.lanes = self.tiles.lanes()
        self.vectors = self.parts.width // self.lanes

    @property
    def cpu(self) -> Cpu:
        """The target."""
        return self.tiles.cpu

    @property
    def panels(self) -> int:
        """How many panels the weights have."""
        return int(self.parts.words.shape[0])

    @property
    def offset(self) -> int:
        """What is to be taken off the numbers that `unpacked` gives, besides the zero points."""
        return 0 if looks_up(self.cpu) else self.parts.offset

    def at(self, value: Expr, row: Expr, k: Expr) -> Expr:
        """What stands in the stage's axis variables, for a row and a place along K."""
        coordinates = unflatten(simplify(row), self.row_extents)
        axes = {a.var: c for a, c in zip(self.parts.rows, coordinates, strict=True)}
        return substitute(value, {**axes, self.parts.reduced: k})

    def left(self, row: Expr, k: Expr) -> Expr:
        """An element of the other factor, as float32."""
        value = self.at(self.parts.left, row, k)
        return value if str(value.expr_ty()) == WIDE else tirx.Cast(WIDE, value)

    def words(self, panel: Expr, group: Expr, vector: int) -> Expr:
        """A vector of words."""
        return BufferLoad(self.parts.words, [panel, group, span(vector * self.lanes, self.lanes)])

    def words_ahead(self, panel: Expr, group: Expr, vectors: Sequence[int], rows: int = _AHEAD) -> list[Stmt]:
        """Ask for the words that are `rows` further on, in this panel or at the beginning of the next."""
        return [prefetch(self.words(panel, simplify(group + rows), v)) for v in vectors]

    def scales_ahead(self, panel: Expr, block: Expr, vectors: Sequence[int]) -> list[Stmt]:
        """Ask for the scales and zero points of these words."""
        sources = [source for source in (self.parts.scale, self.parts.zero) if source is not None]
        later = simplify(block + max(1, _AHEAD * GROUP // self.parts.block))
        return [
            prefetch(BufferLoad(source, [panel, later, span(v * self.lanes, self.lanes)]))
            for source in sources
            for v in vectors
        ]

    def unpacked(self, words: Expr, row: int) -> Expr:
        """The numbers that the codes of a row stand for, but for zero points and `offset`."""
        if not looks_up(self.cpu):
            return numbers(words, row, self.lanes, self.parts.codebook)
        if self.parts.codebook is not None:
            return looked_up(words, row, BufferLoad(self.parts.codebook, [span(0, self.lanes)]))
        codes = tirx.Cast(f"{WIDE}x{self.lanes}", tirx.Ramp(tirx.const(0, "int32"), tirx.const(1, "int32"), self.lanes))
        return looked_up(words, row, codes - self.number(self.parts.offset))

    def factors(self, panel: Expr, block: Expr, words: Expr, row: int, vector: int) -> Expr:
        """A row of a vector of columns as the weights that it stands for."""
        value, zero = self.unpacked(words, row), self.zeros(panel, block, vector)
        return (value if zero is None else value - zero) * self.scales(panel, block, vector)

    def number(self, value: float) -> Expr:
        """A number in every lane."""
        return wide(tirx.const(value, WIDE), self.lanes)

    def scales(self, panel: Expr, block: Expr, vector: int) -> Expr:
        """The scales of a vector of columns."""
        return self._per_block(self.parts.scale, panel, block, vector)

    def zeros(self, panel: Expr, block: Expr, vector: int) -> Expr | None:
        """What is to be taken off the unpacked numbers; `None` if that is nothing."""
        if self.parts.zero is not None:
            return self._per_block(self.parts.zero, panel, block, vector)
        return self.number(self.offset) if self.offset else None

    def _per_block(self, source: Var, panel: Expr, block: Expr, vector: int) -> Expr:
        value = BufferLoad(source, [panel, block, span(vector * self.lanes, self.lanes)])
        if str(source.dtype) == WIDE:
            return value
        return tirx.Cast(WIDE if self.lanes == 1 else f"{WIDE}x{self.lanes}", value)

    def store_row(self, panel: Expr, row: Expr, sums: Var, offset: Expr) -> Stmt:
        """Finish a row of a panel, whose sums begin at `sums[offset]`."""
        columns = known(self.parts.column.extent)
        assert columns is not None, "the weights are constant"
        coordinates = unflatten(simplify(row), self.row_extents)
        dtype = str(self.epilogue.heavy.buffer.dtype)

        def vector(start: Expr, n: int) -> Stmt:
            def one(lane: Expr) -> Stmt:
                value = unrounded(BufferLoad(sums, [offset + start + lane]), dtype)
                return self.epilogue.store([*coordinates, panel * self.parts.width + start + lane], value)

            return sequence([vectorized(n, one)])

        full, rest = divmod(columns, self.parts.width)
        whole = over_vectors(self.parts.width, self.lanes, vector)
        if not rest:
            return whole
        last = over_vectors(rest, self.lanes, vector)
        return last if not full else IfThenElse(panel < full, whole, last)
