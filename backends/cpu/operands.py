"""What the products of attention are made of: float32 elements, or in 32 bits pairs of bfloat16 or four bytes.

Pairs lie along the reduced axis: two elements of a query and of a key, two keys' weights and values. Queries and keys
are pairs as they lie in memory; weights and values of a block are brought together (`pair_rows`).
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx

from backends.cpu.bfloat16 import add_products, neighbours, pair
from backends.cpu.quads import QUAD, add_quads, is_bytes, quad
from backends.cpu.register_tile import span
from backends.relax.loops import (
    BufferLoad,
    BufferStore,
    Expr,
    Index,
    Stmt,
    TensorLoad,
    Var,
    i64,
    loop,
    over_vectors,
    sequence,
    simplify,
)
from optimizer.target import Cpu

__all__ = ["Operands", "Pairs", "Quads", "converted", "operands_of", "pair_rows"]


class Operands:
    """float32 elements."""

    dtype = "float32"

    def steps(self, size: Index) -> Index:
        """How many products a sum over so many elements takes."""
        return size

    def vector(self, load: TensorLoad, step: Expr, lanes: int) -> Expr:
        """The operands of `lanes` steps from `step` on; `load` is any element of the row."""
        return BufferLoad(load.source, [*load.indices[:-1], span(step, lanes)])

    def element(self, load: TensorLoad, step: Expr) -> Expr:
        """The operand of a step."""
        return BufferLoad(load.source, [*load.indices[:-1], step])

    def lane(self, load: TensorLoad, step: Expr) -> Expr:
        """The same in a loop over lanes."""
        return self.element(load, step)

    def add(self, total: Expr, a: Expr, b: Expr) -> Expr:
        """A sum and a product."""
        return total + a * b


class Pairs(Operands):
    """Two elements of bfloat16 a lane; rows of an even size."""

    dtype = "int32"

    def __init__(self, native: bool) -> None:
        """`native`: whether the processor has AVX512_BF16."""
        self.native = native

    def steps(self, size: Index) -> Index:
        """See `Operands`."""
        return (size + 1) // 2 if isinstance(size, int) else simplify(tirx.floordiv(size + 1, i64(2)))

    def vector(self, load: TensorLoad, step: Expr, lanes: int) -> Expr:
        """See `Operands`."""
        return neighbours(load, step * 2, lanes)

    def element(self, load: TensorLoad, step: Expr) -> Expr:
        """See `Operands`."""
        return neighbours(load, step * 2)

    def lane(self, load: TensorLoad, step: Expr) -> Expr:
        """See `Operands`."""
        first, second = (BufferLoad(load.source, [*load.indices[:-1], step * 2 + i]) for i in range(2))
        return pair(first, second)

    def add(self, total: Expr, a: Expr, b: Expr) -> Expr:
        """See `Operands`."""
        return add_products(total, a, b, native=self.native)


class Quads(Operands):
    """Four bytes a lane; rows of a multiple of four. Keys have no sign, what they are multiplied with has one."""

    dtype = "int32"

    def __init__(self, cpu: Cpu) -> None:
        """`cpu`: the target."""
        self.cpu = cpu

    def steps(self, size: Index) -> Index:
        """See `Operands`."""
        return -(-size // QUAD) if isinstance(size, int) else simplify(tirx.floordiv(size + (QUAD - 1), i64(QUAD)))

    def vector(self, load: TensorLoad, step: Expr, lanes: int) -> Expr:
        """See `Operands`."""
        return neighbours(load, step * QUAD, lanes)

    def element(self, load: TensorLoad, step: Expr) -> Expr:
        """See `Operands`."""
        return neighbours(load, step * QUAD)

    def lane(self, load: TensorLoad, step: Expr) -> Expr:
        """See `Operands`."""
        return quad([BufferLoad(load.source, [*load.indices[:-1], step * QUAD + i]) for i in range(QUAD)])

    def add(self, total: Expr, a: Expr, b: Expr) -> Expr:
        """A sum, int32, and four products."""
        return add_quads(total, a, b, self.cpu)


def operands_of(dtype: str, cpu: Cpu) -> Operands:
    """For queries, keys and values of that type."""
    if is_bytes(dtype):
        return Quads(cpu)
    return Pairs(cpu.bfloat16) if dtype == "bfloat16" else Operands()


def pair_rows(target: Var, row: Callable[[Expr, Expr, int], Expr], rows: Index, width: int, lanes: int) -> Stmt:
    """`target[p * width + c]` becomes the pair of elements c of the rows 2p and 2p + 1; behind an odd last one is zero.

    Args:
        target: int32.
        row: Some bfloat16 elements of a row: `row(row, first, lanes)`.
        rows: How many.
        width: Elements in a row.
        lanes: Of a vector.
    """
    whole = simplify(tirx.floordiv(i64(rows), i64(2)))

    def both(p: Expr, single: bool) -> Stmt:
        def some(first: Expr, n: int) -> Stmt:
            second = None if single else row(p * 2 + 1, first, n)
            return BufferStore(target, pair(row(p * 2, first, n), second), [span(p * width + first, n)])

        return over_vectors(width, lanes, some)

    odd = simplify(i64(rows) - whole * 2)
    return sequence(
        [loop(whole, lambda p: both(p, False), name="pair"), loop(odd, lambda _: both(whole, True), name="odd")]
    )


def converted(value: Expr, dtype: str, lanes: int) -> Expr:
    """A vector in another type."""
    wanted = dtype if lanes == 1 else f"{dtype}x{lanes}"
    return value if str(value.expr_ty()) == wanted else tirx.Cast(wanted, value)
