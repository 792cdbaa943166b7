"""From sums of bytes to results, in as few operations as a vector of them takes.

Behind a short sum what follows it takes as long as the sum itself. Three things shorten a tail of a few plain
operations:

* Results leave the registers in which they were added up; no row of a tile is copied first.
* What a column decides alone is computed once for all rows: the sums start at minus the zero point's share, and where
  a byte follows, the scale of the sum and that of the byte are one factor, the bias and the zero point one addend.
* Vectors are rounded and packed to bytes together (`backends.cpu.byte_packing`). That bounds them, too: a Relu whose
  zero is the lowest byte takes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import tvm_ffi
from tvm import tirx
from tvm.ir import Call

from backends.cpu.byte_packing import TOGETHER, packed_bytes, packs
from backends.cpu.byte_rounding import rounding_of
from backends.cpu.epilogue import Epilogue
from backends.cpu.register_tile import RegisterTile, span
from backends.cpu.tiles import Tiles
from backends.relax.kernel import Stage
from backends.relax.loops import (
    BufferLoad,
    BufferStore,
    Expr,
    Stmt,
    TensorLoad,
    Var,
    allocate,
    i64,
    known,
    loads_of,
    local,
    over_vectors,
    sequence,
    substitute,
    uses,
    vectorized,
)

__all__ = ["Results"]

_PLAIN = (tirx.Add, tirx.Sub, tirx.Mul, tirx.Div, tirx.Max, tirx.Min)
_MOST_OPERATIONS = 20
"""Of a tail that is written out for each vector of a tile."""
_SMALLEST, _LARGEST = 2.0**-100, 2.0**100
"""Scales of bytes that are taken together with other factors."""


@dataclass(frozen=True)
class _Rounded:
    """What becomes bytes.

    Attributes:
        value: float32.
        most: a bound of it, at most the largest byte; NaN becomes that.
        dtype: of the bytes.
        more: is added when the value is rounded.
    """

    value: Expr
    most: Expr
    dtype: str
    more: int


class Results:
    """What becomes of the sums of a kernel's tiles.

    Attributes:
        buffers: what columns decide, to be allocated around `prepared`; as long as a panel is wide.
    """

    def __init__(self, epilogue: Epilogue, tail: Stage, tiles: Tiles, width: int) -> None:
        """`tail` is the epilogue's."""
        self.buffers: list[Var] = []
        self._lanes, self._width = tiles.lanes(), width
        self._axes, self._target = [a.var for a in tail.spatial], tail.buffer
        self._sums = epilogue.heavy.buffer
        self._place = Var("place", "int64")
        self._values: list[Expr] = []
        self._starts: Var | None = None
        value = self._started(tail.value)
        self._rounded = self._of_bytes(value) if packs(tiles.cpu) else None
        self._epilogue = replace(epilogue, tail=replace(tail, value=value))

    @classmethod
    def of(cls, epilogue: Epilogue, tiles: Tiles, width: int) -> Results | None:
        """`None` for sums that are no int32 or are results themselves, and for long tails.

        Args:
            epilogue: what follows the sums.
            tiles: of the processor.
            width: columns of a panel.
        """
        tail = epilogue.tail
        if tail is None or str(epilogue.heavy.buffer.dtype) != "int32" or not _is_short(tail.value):
            return None
        return cls(epilogue, tail, tiles, width)

    def takes(self, columns: Expr | int) -> bool:
        """Whether so many columns of a panel are whole vectors; tiles of others are finished as those of floats."""
        count = known(columns)
        return count is not None and not count % self._lanes

    def prepared(self, first: Expr, columns: Expr | int) -> list[Stmt]:
        """Compute what so many columns from `first` on decide."""

        def vector(start: Expr, n: int) -> Stmt:
            def one(lane: Expr) -> Stmt:
                at = {self._axes[-1]: first + start + lane}
                pairs = zip(self.buffers, self._values, strict=True)
                return sequence([BufferStore(b, substitute(value, at), [start + lane]) for b, value in pairs])

            return sequence([vectorized(n, one)])

        return [over_vectors(columns, self._lanes, vector)] if self.buffers and self.takes(columns) else []

    def begin(self, tile: RegisterTile) -> list[Stmt]:
        """Set the sums to where they start."""
        return tile.zero() if self._starts is None else tile.resume(self._starts, i64(0), 0)

    def rows(self, tile: RegisterTile, first: Expr, at: Callable[[int], list[Expr]]) -> list[Stmt]:
        """Store the results of a tile.

        Args:
            tile: whose columns are whole vectors.
            first: the first column.
            at: the indices of a row, but the last.
        """
        return [self._row(tile, row, at(row), first) for row in range(tile.rows)]

    def _row(self, tile: RegisterTile, row: int, lead: list[Expr], first: Expr) -> Stmt:
        lanes, sums, rounded = tile.lanes, tile.buffers[row], self._rounded

        def over(number: int, one: Callable[[Expr], Stmt]) -> Stmt:
            return sequence([vectorized(lanes, lambda lane: one(number * lanes + lane))])

        if rounded is None:

            def store(place: Expr) -> Stmt:
                return self._epilogue.store([*lead, first + place], BufferLoad(sums, [place]))

            return sequence([over(v, store) for v in range(tile.vectors)])
        numbers = local([tile.vectors * lanes], "float32", f"numbers{row}")

        def number(place: Expr) -> Stmt:
            indices = dict(zip(self._axes, [*map(i64, lead), first + place], strict=True))
            value = substitute(rounded.value, {**indices, self._place: place}, lambda load: at_place(load, place))
            return BufferStore(numbers, tirx.Min(value, rounded.most), [place])

        def at_place(load: TensorLoad, place: Expr) -> Expr | None:
            return BufferLoad(sums, [place]) if self._is_sum(load) else None

        statements = [over(v, number) for v in range(tile.vectors)]
        start = 0
        for together in TOGETHER:
            while tile.vectors - start >= together:
                vectors = [BufferLoad(numbers, [span((start + v) * lanes, lanes)]) for v in range(together)]
                packed = packed_bytes(vectors, rounded.dtype, rounded.more)
                here = tirx.Ramp(first + start * lanes, i64(1), together * lanes)
                statements.append(BufferStore(self._target, packed, [*lead, here]))
                start += together
        return allocate([numbers], sequence(statements))

    def _started(self, value: Expr) -> Expr:
        """The tail without what its sums start with."""
        found: list[tirx.Sub] = []
        started = Var("started", "int32")

        def without(node: tirx.Sub) -> Expr:
            if not self._is_sum(node.a) or not self._is_column(node.b):
                return node
            found.append(node)
            return started

        rest = tvm_ffi.structural_map(value, (tirx.Sub, without))
        if not found or any(map(self._is_sum, loads_of(rest))):
            return value
        first, *others = found
        if not all(tvm_ffi.structural_equal(first.b, other.b) for other in others):
            return value
        self._starts = self._column(tirx.const(0, "int32") - first.b).source
        return substitute(rest, {started: first.a})

    def _of_bytes(self, value: Expr) -> _Rounded | None:
        """The tail as one rounding; `None` if it is none."""
        rounding = rounding_of(value)
        if rounding is None:
            return None
        scaled, factor = _compact(rounding.value), 1.0
        divisor = _constant(scaled.b) if isinstance(scaled, tirx.Div) else None
        if divisor is not None and _SMALLEST < divisor < _LARGEST:
            scaled, factor = scaled.a, 1.0 / divisor
        # An even number does not change which way a tie goes; the last 1 is added behind the rounding.
        more = rounding.zero % 2
        number = self._affine(scaled, factor, float(rounding.zero - more))
        info = np.iinfo(rounding.dtype)
        bounded = _bounded(number, float(info.min - more), float(info.max))
        return _Rounded(_with_selects(bounded.a), bounded.b, rounding.dtype, more)

    def _affine(self, value: Expr, factor: float, addend: float) -> Expr:
        """Value times the factor plus the addend, each as near to the columns' numbers as it gets."""
        if self._is_column(value):
            whole = _affine(value, factor, addend)
            return whole if _constant(whole) is not None else self._column(whole)
        if isinstance(value, tirx.Add):
            first, second = (value.a, value.b) if self._is_column(value.b) else (value.b, value.a)
            return self._affine(first, factor, 0.0) + self._affine(second, factor, addend)
        if isinstance(value, tirx.Max | tirx.Min) and factor > 0:
            return type(value)(self._affine(value.a, factor, addend), self._affine(value.b, factor, addend))
        rest, columns = self._split(value)
        if columns is None:
            return _affine(value, factor, addend)
        return _affine(rest * self._affine(columns, factor, 0.0), 1.0, addend)

    def _split(self, value: Expr) -> tuple[Expr, Expr | None]:
        """A product as what columns do not decide, and what they do."""
        if not isinstance(value, tirx.Mul):
            return value, None
        for one, other in ((value.a, value.b), (value.b, value.a)):
            if self._is_column(other):
                rest, columns = self._split(one)
                return rest, other if columns is None else columns * other
        return value, None

    def _is_sum(self, value: Expr) -> bool:
        return isinstance(value, TensorLoad) and value.source.same_as(self._sums)

    def _is_column(self, value: Expr) -> bool:
        """Whether the last axis alone decides it."""
        return not any(map(self._is_sum, loads_of(value))) and not any(uses(value, axis) for axis in self._axes[:-1])

    def _column(self, value: Expr) -> BufferLoad:
        """What stands for a value that is computed once for each column."""
        buffer = local([self._width], str(value.expr_ty()), f"column{len(self.buffers)}")
        self.buffers.append(buffer)
        self._values.append(value)
        return BufferLoad(buffer, [self._place])


def _is_short(value: Expr) -> bool:
    """Whether it is a few plain operations."""
    value = _compact(value)
    operations: list[Expr] = []
    others: list[Call] = []
    tvm_ffi.structural_walk(value, [*((kind, operations.append) for kind in _PLAIN)])
    tvm_ffi.structural_walk(value, [(Call, others.append), (tirx.Select, others.append)])
    plain = all(isinstance(c, Call) and str(getattr(c.op, "name", "")).endswith("reinterpret") for c in others)
    return plain and len(operations) <= _MOST_OPERATIONS


def _affine(value: Expr, factor: float, addend: float) -> Expr:
    constant = _constant(value)
    if constant is not None:
        return _number(constant * factor + addend)
    scaled = value if factor == 1.0 else value * _number(factor)
    return scaled if addend == 0.0 else scaled + _number(addend)


def _compact(value: Expr) -> Expr:
    """With a maximum or a minimum where a Relu or a Clip chooses between a value and its bound."""

    def compact(node: tirx.Select) -> Expr:
        kinds = {tirx.LT: tirx.Max, tirx.GT: tirx.Min}
        kind = kinds.get(type(node.condition))
        if kind is None or not tvm_ffi.structural_equal(node.condition.a, node.false_value):
            return node
        return (
            kind(node.false_value, node.true_value)
            if tvm_ffi.structural_equal(node.condition.b, node.true_value)
            else node
        )

    return tvm_ffi.structural_map(value, (tirx.Select, compact))


def _with_selects(value: Expr) -> Expr:
    """The opposite of `_compact`: NaN stays."""
    value = tvm_ffi.structural_map(value, (tirx.Max, lambda node: tirx.Select(node.a < node.b, node.b, node.a)))
    return tvm_ffi.structural_map(value, (tirx.Min, lambda node: tirx.Select(node.a > node.b, node.b, node.a)))


def _bounded(value: Expr, low: float, high: float) -> tirx.Min:
    """The value or `high`, whichever is less, without bounds that lie beyond the two."""
    if isinstance(value, tirx.Min) and (most := _constant(value.b)) is not None and most >= low:
        return _bounded(value.a, low, min(most, high))
    if isinstance(value, tirx.Max) and (least := _constant(value.b)) is not None and least <= low:
        return _bounded(value.a, low, high)
    return tirx.Min(value, _number(high))


def _constant(value: Expr) -> float | None:
    return float(value.value) if isinstance(value, tirx.FloatImm) else None


def _number(value: float) -> Expr:
    return tirx.const(value, "float32")
