"""What a lane multiplies: an element, a pair of bfloat16, or four bytes that are neighbours along the reduced axis."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tvm import tirx

from backends.cpu.bfloat16 import neighbours, pair, pair_product
from backends.cpu.quads import add_quads, is_bytes, quad
from backends.cpu.register_tile import AddProduct, span
from backends.cpu.tiles import Tiles
from backends.relax.kernel import Axis, Stage
from backends.relax.loops import BufferLoad, Expr, Stmt, TensorLoad, Var, i64, known, loop, simplify, substitute
from optimizer.target import Cpu

__all__ = ["Factors", "add_product", "combined", "factors_of", "last_steps"]


def add_product(dtype: str, cpu: Cpu) -> AddProduct | None:
    """How factors of a type are multiplied and added up; `None` for plain arithmetic."""
    if dtype == "bfloat16":
        return pair_product
    return partial(add_quads, cpu=cpu) if is_bytes(dtype) else None


def combined(elements: list[Expr], dtype: str) -> Expr:
    """Elements that lie apart, side by side in 32 bits; zeros in place of those that there are not."""
    if is_bytes(dtype):
        return quad(elements)
    first, *others = elements
    return pair(first, others[0] if others else None)


def last_steps(depth: Expr, together: int, step: Callable[[int], Stmt]) -> list[Stmt | None]:
    """What is left of the reduced axis behind the last whole step: `step(number of elements)`, for each number."""
    rest = simplify(tirx.floormod(depth, together))
    if known(rest) is not None:
        return [step(known(rest) or 0)] if known(rest) else []
    if together == 2:
        return [loop(rest, lambda _: step(1), name="odd")]
    cases = range(1, together)
    return [loop(tirx.Cast("int64", tirx.EQ(rest, i64(n))), lambda _, n=n: step(n), name="odd") for n in cases]  # type: ignore[misc]


def factors_of(stage: Stage) -> tuple[Expr, Expr] | None:
    """The factors of a sum of products, without the casts that widen bytes; `None` if it is none."""
    if not isinstance(stage.value, tirx.Add) or not isinstance(stage.value.b, tirx.Mul):
        return None
    left, right = stage.value.b.a, stage.value.b.b
    if all(isinstance(f, tirx.Cast) and isinstance(f.value, TensorLoad) for f in (left, right)):
        types = [str(f.value.expr_ty()) for f in (left, right)]
        if types == ["uint8", "int8"]:
            return left.value, right.value
    return left, right


class Factors:
    """The factors of a matrix product, step by step along the reduced axis.

    Attributes:
        together: elements that a step takes.
        steps: whole ones.
    """

    def __init__(self, left: Expr, right: TensorLoad, depth: Axis, *, packed: bool, tiles: Tiles) -> None:
        """`packed`: whether `right` lies in panels."""
        self.dtype = str(right.expr_ty())
        self.together = tiles.together(self.dtype)
        self.steps = simplify(tirx.floordiv(depth.extent, self.together)) if self.together > 1 else depth.extent
        self._left, self._right, self._depth, self._packed = left, right, depth, packed

    def left(self, at: dict[Var, Expr], k: Expr, rest: int) -> Expr:
        """What a step takes of A; `rest`: how many elements, where that is less than all."""
        first = substitute(self._left, {**at, self._depth.var: k * self.together})
        if self.together == 1:
            return first
        if not rest and isinstance(self._left, TensorLoad) and self._left.indices[-1].same_as(self._depth.var):
            return neighbours(first, k * self.together)
        others = range(1, rest or self.together)
        more = [substitute(self._left, {**at, self._depth.var: k * self.together + i}) for i in others]
        return combined([first, *more], self.dtype)

    def right(self, point: dict[Var, Expr], panel: Expr, first: Expr, k: Expr, lanes: int, rest: int) -> Expr:
        """What a step takes of B: a vector from column `first` of the panel on, or of a B that is not packed."""
        if self._packed:
            if self.together == 1:
                return self.packed(point, panel, k, span(first, lanes))
            return neighbours(self.packed(point, panel, k, i64(0)), i64(first * self.together), lanes)

        def row(k: Expr) -> Expr:
            lead = [substitute(i, {**point, self._depth.var: k}) for i in self._right.indices[:-1]]
            return BufferLoad(self._right.source, [*lead, span(first, lanes)])

        if self.together == 1:
            return row(k)
        return combined([row(k * self.together + i) for i in range(rest or self.together)], self.dtype)

    def packed(self, point: dict[Var, Expr], panel: Expr, k: Expr, column: Expr) -> BufferLoad:
        """Part of a row of a packed panel."""
        batch = [substitute(i, point) for i in self._right.indices[:-3]]
        return BufferLoad(self._right.source, [*batch, panel, k, column])
