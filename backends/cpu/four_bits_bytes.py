"""Rows of int8 against weights of 4 bits: codes become bytes, four of which are multiplied and added up at once.

    total[r, n] += scale[block, n] * s[r] * (sum over k of q[r, k] * code[k, n]  -  zero[block, n] * sum of q[r, k])

Both sums are exact, in int32 (see `backends.cpu.quads`). A word's low halves are the codes of four neighbouring rows,
its high halves those of the next four (`backends.relax.nibbles`): two instructions make bytes of either. Unlike in
floating point, unpacking is cheap beside what is done with it, so all rows are multiplied with codes as they are
unpacked, some rows at a time, and the panel comes from the second-level cache for each of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import tirx

from backends.cpu.bfloat16 import neighbours
from backends.cpu.codes import WIDE, CodesNest
from backends.cpu.quads import QUAD, add_quads, quad
from backends.cpu.register_tile import LINE_ELEMENTS, RegisterTile, lines_ahead, remainder, span, wide
from backends.relax.loops import (
    BufferLoad,
    BufferStore,
    Expr,
    Stmt,
    TensorLoad,
    allocate,
    bind,
    i64,
    known,
    local,
    loop,
    parallel,
    prefetch,
    sequence,
    simplify,
    unflatten,
)
from backends.relax.nibbles import GROUP

__all__ = ["ByteRows", "tile_shape", "whole_units"]

_HALVES = 0x0F0F0F0F
_AHEAD = 16
"""Rows of words that are asked for before they are needed. More were no faster here, unlike with float32 activations;
to ask for scales, too, was slower: LLVM then writes the totals to memory in each unit."""
_BLOCK_ROWS = 192
"""The most rows that pass by a panel while it stays in the second-level cache."""
_PARALLEL_PRODUCTS = 1_000_000
"""Fewer multiply-adds are done by one thread: to wake another takes longer."""
_OTHERS = 4
"""Registers for numbers of the left factor, and for the mask of the codes; codes take two for each vector."""
_CHAINS = 8
"""Sums that are added to in turn: two products a cycle, of four cycles."""
_WHOLE = "int32"


def whole_units(nest: CodesNest) -> int | None:
    """How many rows have one scale of either factor; `None` where blocks of one cut those of the other, or words."""
    depth, left = nest.parts.depth, nest.parts.left_block
    if left is None or nest.parts.codebook is not None:
        return None
    block, other = nest.parts.block, left or depth
    smaller, larger = min(block, other, depth), min(max(block, other), depth)
    fits = smaller == larger == depth or (smaller % GROUP == 0 and (larger % smaller == 0 or larger == depth))
    return smaller if fits else None


def tile_shape(registers: int, panel: int, total: int | None) -> tuple[int, int]:
    """Rows and vectors of a register tile: the most sums that fit beside their totals, in tiles of the most rows.

    Totals without registers go to memory and back in each unit: with units of 32 rows that took a third of the time.
    They do so only where so few sums would fit otherwise that each product waited for the one before.

    Args:
        registers: of a vector each.
        panel: vectors in a panel.
        total: of all tiles; `None` if that is symbolic.
    """
    shapes = []
    vectors = panel
    while vectors >= min(2, panel):
        rows = (registers - 2 * vectors - _OTHERS) // (2 * vectors)
        if rows * vectors >= _CHAINS:
            shapes.append((min(rows, total or rows), vectors))
        vectors //= 2
    if not shapes:
        rows = max(1, registers // 2 // panel)
        return min(rows, total or rows), panel
    return max(shapes, key=lambda shape: (shape[0] * shape[1], shape[0]))


@dataclass(frozen=True)
class _Part:
    """A register tile in a panel.

    Attributes:
        panel: which.
        first: its first row.
        start: its first vector in the panel.
        sums: of a unit.
        lines: places in the rows of the next panel that are asked for while these are multiplied.
    """

    panel: Expr
    first: Expr
    start: int
    sums: RegisterTile
    lines: list[Expr]

    @property
    def cells(self) -> list[tuple[int, int]]:
        """Rows and vectors."""
        return [(r, v) for r in range(self.sums.rows) for v in range(self.sums.vectors)]


class ByteRows:
    """All rows of a product.

    Args:
        nest: the product, of which the other factor is the cast of an int8 times a scale.
        unit: rows of words that have one scale of either factor, see `whole_units`.
    """

    def __init__(self, nest: CodesNest, unit: int) -> None:
        self.nest, self.unit = nest, unit
        self.parts = nest.parts
        assert isinstance(nest.parts.left, tirx.Mul)
        self.bytes, self.scale = nest.parts.left.a.value, nest.parts.left.b
        self.units = -(-self.parts.depth // unit)
        total = known(nest.total_rows)
        most, self.vectors = tile_shape(nest.cpu.vector_registers, nest.vectors, total)
        self.tile_rows = -(-total // -(-total // most)) if total else most
        self.once = total is not None and total <= self.tile_rows
        self.streamed = not self.once and nest.tiles.streamed(
            math.prod(int(size) for size in self.parts.words.shape), None
        )
        self.block_rows = max(1, _BLOCK_ROWS // self.tile_rows) * self.tile_rows
        self.totals = local([self.tile_rows * self.parts.width], WIDE, "totals")
        self.sums = local([simplify(nest.total_rows * self.units)], _WHOLE, "sums")

    @property
    def corrected(self) -> bool:
        """Whether something is to be taken off the codes."""
        return self.parts.zero is not None or self.parts.offset != 0

    def build(self) -> Stmt:
        """The statement."""
        total = self.nest.total_rows
        blocks = simplify(tirx.floordiv(total + (self.block_rows - 1), i64(self.block_rows)))
        rows = known(total)
        products = (rows or _PARALLEL_PRODUCTS) * self.parts.depth * self.nest.panels * self.parts.width
        worthwhile = products >= _PARALLEL_PRODUCTS

        def task(index: Expr) -> Stmt:
            block, panel = unflatten(index, [blocks, i64(self.nest.panels)])
            first = simplify(block * self.block_rows)
            count = simplify(tirx.min(total - first, i64(self.block_rows)))
            return bind([panel, first, count], lambda place: self._block(*place))

        nest = sequence([parallel(simplify(blocks * self.nest.panels), task, worthwhile=worthwhile)])
        if not self.corrected:
            return nest
        summed = parallel(total, self._sum_row, worthwhile=worthwhile and rows != 1)
        return allocate([self.sums], sequence([summed, nest]))

    def _each_unit(self, body: Callable[[Expr, int], Stmt]) -> Stmt:
        """`body(unit, rows in it)`, for all units."""
        full, rest = divmod(self.parts.depth, self.unit)
        return sequence(
            [
                loop(full, lambda u: body(u, self.unit), name="unit"),
                body(i64(full), rest) if rest else None,
            ]
        )

    def _sum_row(self, row: Expr) -> Stmt:
        """The sum of each unit of a row; times what all its codes are too high by, where there are no zero points."""
        one = local([1], _WHOLE, "one")
        here = [i64(0)]
        factor = tirx.const(1 if self.parts.zero is not None else -self.parts.offset, _WHOLE)

        def sum_unit(unit: Expr, size: int) -> Stmt:
            def add(k: Expr) -> Stmt:
                element = tirx.Cast(_WHOLE, self.nest.at(self.bytes, row, simplify(unit * self.unit + k)))
                return BufferStore(one, BufferLoad(one, here) + element, here)

            return sequence(
                [
                    BufferStore(one, tirx.const(0, _WHOLE), here),
                    loop(size, add, name="k"),
                    BufferStore(self.sums, BufferLoad(one, here) * factor, [simplify(row * self.units + unit)]),
                ]
            )

        return allocate([one], self._each_unit(sum_unit))

    def _block(self, panel: Expr, first: Expr, count: Expr) -> Stmt:
        rows = self.tile_rows
        whole = simplify(tirx.floordiv(count, i64(rows)))

        def tile(row: Expr, height: int, lines: Sequence[Expr] = ()) -> Stmt:
            return self._tile(panel, simplify(first + row), height, list(lines))

        def asking(index: Expr) -> Stmt:
            return tile(simplify(index * rows), rows, lines_ahead(index, known(whole), self.parts.width))

        # No others ask: LLVM then keeps their totals in registers.
        some = simplify(tirx.min(whole, i64(-(-self.parts.width // LINE_ELEMENTS)))) if self.streamed else i64(0)
        full = sequence(
            [
                loop(some, asking, name="tile"),
                loop(simplify(whole - some), lambda t: tile(simplify((some + t) * rows), rows), name="tile"),
            ]
        )
        total = known(self.nest.total_rows)
        start = simplify(whole * rows)
        if total is None:
            rest = remainder(simplify(count - whole * rows), start, rows, tile)
        else:
            last = total % rows
            rest = (
                loop(tirx.min(count - whole * rows, i64(1)), lambda _: tile(start, last), name="rest") if last else None
            )
        return allocate([self.totals], sequence([full, rest]))

    def _tile(self, panel: Expr, first: Expr, height: int, lines: list[Expr]) -> Stmt:
        """Some rows of a panel; `lines`: places in rows of the next panel that are asked for meanwhile."""
        n = self.nest.lanes
        places = range(0, self.nest.vectors, self.vectors)
        tiles = [
            _Part(panel, first, start, RegisterTile(height, self.vectors, n, _WHOLE), [] if start else lines)
            for start in places
        ]

        def finish(row: Expr) -> Stmt:
            return self.nest.store_row(panel, simplify(first + row), self.totals, simplify(row * self.parts.width))

        return sequence([*map(self._part, tiles), loop(height, finish, name="row")])

    def _part(self, part: _Part) -> Stmt:
        """All of K for a register tile."""

        def unit(number: Expr, size: int) -> Stmt:
            group = simplify(tirx.floordiv(number * self.unit, GROUP))
            whole, rest = divmod(size, GROUP)
            return sequence(
                [
                    *self._begin(part, number),
                    loop(whole, lambda g: self._group(part, simplify(group + g), GROUP), name="group"),
                    self._group(part, simplify(group + whole), rest) if rest else None,
                    *self._scaled(part, number),
                ]
            )

        cells = part.cells
        begin = [BufferStore(self.totals, self.nest.number(0.0), self._total(part, r, v)) for r, v in cells]
        end = [] if self.parts.left_block else [self._by_row(part, r, v) for r, v in cells]
        return allocate(part.sums.buffers, sequence([*begin, self._each_unit(unit), *end]))

    def _total(self, part: _Part, r: int, v: int) -> list[Expr]:
        """Where the total of a sum is."""
        n = self.nest.lanes
        return [span(r * self.parts.width + (part.start + v) * n, n)]

    def _begin(self, part: _Part, unit: Expr) -> list[Stmt]:
        """Clear the sums of a unit, less what its codes are too high by."""
        if self.parts.zero is not None or not self.corrected:
            return part.sums.zero()
        n = self.nest.lanes
        return [
            BufferStore(part.sums.buffers[r], wide(self._sum(part.first, r, unit), n), [span(v * n, n)])
            for r, v in part.cells
        ]

    def _sum(self, first: Expr, r: int, unit: Expr) -> Expr:
        return BufferLoad(self.sums, [simplify((first + r) * self.units + unit)])

    def _group(self, part: _Part, group: Expr, size: int) -> Stmt:
        """Up to eight rows of codes with all rows of a tile."""
        nest, n, tile = self.nest, self.nest.lanes, part.sums
        places = range(part.start, part.start + tile.vectors)
        statements: list[Stmt | None] = [
            prefetch(BufferLoad(self.parts.words, [simplify(part.panel + 1), group, line])) for line in part.lines
        ]
        if self.once:
            statements += nest.words_ahead(part.panel, group, places, _AHEAD)
        for half in range(-(-size // QUAD)):
            codes = [self._codes(nest.words(part.panel, group, v), half) for v in places]
            k = simplify(group * GROUP + half * QUAD)
            for r in range(tile.rows):
                x = wide(self._quad(simplify(part.first + r), k, size - half * QUAD), n)
                for v in range(tile.vectors):
                    here = [span(v * n, n)]
                    total = add_quads(BufferLoad(tile.buffers[r], here), codes[v], x, nest.cpu)
                    statements.append(BufferStore(tile.buffers[r], total, here))
        return sequence(statements)

    def _codes(self, words: Expr, half: int) -> Expr:
        """Four rows of codes, as bytes."""
        dtype = str(words.expr_ty())
        moved = tirx.shift_right(words, tirx.const(4, dtype)) if half else words
        return tirx.bitwise_and(moved, tirx.const(_HALVES, dtype))

    def _quad(self, row: Expr, k: Expr, size: int) -> Expr:
        """Up to four neighbouring bytes of a row, as one word."""
        element = self.nest.at(self.bytes, row, k)
        contiguous = isinstance(self.bytes, TensorLoad) and self.bytes.indices[-1].same_as(self.parts.reduced)
        if size >= QUAD and contiguous:
            return neighbours(element, k)
        return quad([self.nest.at(self.bytes, row, simplify(k + i)) for i in range(min(size, QUAD))])

    def _scaled(self, part: _Part, unit: Expr) -> list[Stmt]:
        """Add the sums of a unit to the totals."""
        nest, n, panel = self.nest, self.nest.lanes, part.panel
        block = simplify(tirx.floordiv(unit * self.unit, i64(self.parts.block)))
        whole, real = (_WHOLE, WIDE) if n == 1 else (f"{_WHOLE}x{n}", f"{WIDE}x{n}")
        statements: list[Stmt] = []
        for v in range(part.sums.vectors):
            scale = nest.scales(panel, block, part.start + v)
            for r in range(part.sums.rows):
                value: Expr = BufferLoad(part.sums.buffers[r], [span(v * n, n)])
                if self.parts.zero is not None:
                    zero = BufferLoad(self.parts.zero, [panel, block, span((part.start + v) * n, n)])
                    value = value - tirx.Cast(whole, zero) * wide(self._sum(part.first, r, unit), n)
                factor = scale
                if self.parts.left_block:
                    factor = scale * wide(nest.at(self.scale, simplify(part.first + r), simplify(unit * self.unit)), n)
                here = self._total(part, r, v)
                sum_ = BufferLoad(self.totals, here) + tirx.Cast(real, value) * factor
                statements.append(BufferStore(self.totals, sum_, here))
        return statements

    def _by_row(self, part: _Part, r: int, v: int) -> Stmt:
        """Apply the scale of a row."""
        scale = wide(self.nest.at(self.scale, simplify(part.first + r), i64(0)), self.nest.lanes)
        here = self._total(part, r, v)
        return BufferStore(self.totals, BufferLoad(self.totals, here) * scale, here)
