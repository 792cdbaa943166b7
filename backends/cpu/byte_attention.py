"""The rule for attention of bytes: both products four at a time, softmax in float32. See `backends.cpu.attention`.

Letters and the order of work are those of the float32 rule; `backends.relax.byte_attention` says what is rounded.

1. Queries get a sign as they are transposed: q - 128. What the keys' zero point takes off a score is the same for all
   keys, so that the sums start there.
2. Four keys' weights at a time are rounded to 255 steps and laid side by side in 32 bits. Their exponentials need to be
   no better than that: see `_weight`.
3. Of a block of values, the rows of four keys are brought together in the same way, and get their sign.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from tvm import tirx

from backends.cpu.attention import AttentionNest, take_apart
from backends.cpu.polynomials import let
from backends.cpu.quads import QUAD, add_quads, is_bytes, quad
from backends.cpu.query_block import QueryBlock
from backends.cpu.register_tile import RegisterTile, span, wide
from backends.cpu.tiles import Tiles
from backends.relax.kernel import Kernel
from backends.relax.loops import (
    BufferLoad,
    BufferStore,
    Expr,
    Stmt,
    Var,
    allocate,
    i64,
    known,
    local,
    loop,
    over_vectors,
    sequence,
    simplify,
    substitute,
)
from optimizer.target import Cpu

__all__ = ["lower"]

_SIGNS = -0x7F7F7F80
"""0x80808080: turns each byte without a sign into that byte less 128, and back."""
_ONES = 0x01010101
_STEPS = 255.0
_EXP = (0.9999280735783084, 1.0001641868650468, 0.5049632635220731, 0.1656684110344389)
"""e**x up to half of ln 2 from 0, to within 7.5e-5 (a least-squares fit as in `backends.cpu.polynomials`)."""
_LEAST = -8.0
"""From here on a weight rounds to 0: 255 e**-8 is 0.09."""


def lower(kernel: Kernel, cpu: Cpu) -> Stmt | None:
    """See `backends.cpu.schedule.Rule`."""
    parts = take_apart(kernel)
    if parts is None or not is_bytes(str(parts.key.source.dtype)):
        return None
    return _ByteNest(parts, Tiles(cpu)).build()


class _ByteBlock(QueryBlock):
    """A block of queries."""

    def __init__(
        self, nest: AttentionNest, point: dict[Var, Expr], first: Expr, vectors: int, valid: Expr | None
    ) -> None:
        super().__init__(nest, point, first, vectors, valid)
        width = self.width
        self.groups = -(-nest.block_keys // QUAD)
        self.weights = local([self.groups * QUAD * width], "float32", "weights")
        self.codes = local([self.groups * width], "int32", "codes")
        self.values = local([self.groups * nest.value_size], "int32", "values")
        self.offsets, self.count = (local([width], "int32", name) for name in ("offsets", "count"))
        self.zero = int(str(nest.parts.scores.annotations["tersor.zero"]))
        self.cpu = nest.tiles.cpu

    def build(self) -> Stmt:
        """See `QueryBlock`."""
        return allocate([self.codes, self.values, self.offsets, self.count], super().build())

    def _vector(self, buffer: Var, v: int, row: Expr | int = 0) -> BufferLoad:
        return BufferLoad(buffer, [self._place(row, v)])

    def _place(self, row: Expr | int, v: int) -> Expr:
        return span(simplify(i64(row) * self.width + v * self.lanes), self.lanes)

    def _number(self, value: int) -> Expr:
        return wide(tirx.const(value, "int32"), self.lanes)

    def _each_vector(self, body: Callable[[int], Stmt]) -> Stmt:
        return sequence([body(v) for v in range(self.vectors)])

    def _pack(self) -> Stmt:
        """The queries with a sign, and what the zero point of the keys takes off their scores (step 1)."""

        def sign(step: Expr) -> Stmt:
            def one(v: int) -> Stmt:
                signed = tirx.bitwise_xor(self._vector(self.queries, v, step), self._number(_SIGNS))
                total = add_quads(self._vector(self.offsets, v), self._number(_ONES), signed, self.cpu)
                return sequence(
                    [
                        BufferStore(self.queries, signed, [self._place(step, v)]),
                        BufferStore(self.offsets, total, [self._place(0, v)]),
                    ]
                )

            return self._each_vector(one)

        def weigh(v: int) -> Stmt:
            total = self._vector(self.offsets, v) * self._number(-self.zero)
            return BufferStore(self.offsets, total, [self._place(0, v)])

        return sequence(
            [
                super()._pack(),
                self._each_vector(lambda v: BufferStore(self.offsets, self._number(0), [self._place(0, v)])),
                loop(self.steps, sign, name="step"),
                self._each_vector(weigh),
            ]
        )

    def _weigh(self, start: Expr, count: int | Expr) -> Stmt:
        """The weights of a block of keys and their sums (step 2); keys behind the last one weigh nothing."""
        whole = count if isinstance(count, int) else known(count)
        groups = self.operands.steps(count)
        nothing = tirx.const(float("-inf"), "float32")

        def fill(row: Expr) -> Stmt:
            return self._each(lambda at: BufferStore(self.weights, nothing, [at]), count + row)

        def group(p: Expr) -> Stmt:
            def one(at: Expr) -> Stmt:
                numbers = []
                for i in range(QUAD):
                    score = BufferLoad(self.weights, [at + (p * (QUAD - 1) + i) * self.width])
                    code = _weight(score - BufferLoad(self.shift, [at - p * self.width]))
                    numbers.append(tirx.shift_left(code, tirx.const(8 * i, "int32")) if i else code)
                total = numbers[0]
                for number in numbers[1:]:
                    total = tirx.bitwise_or(total, number)
                return BufferStore(self.codes, total, [at])

            def add(v: int) -> Stmt:
                codes = self._vector(self.codes, v, p)
                total = add_quads(self._vector(self.count, v), codes, self._number(_ONES), self.cpu)
                return BufferStore(self.count, total, [self._place(0, v)])

            return sequence([self._each(one, p), self._each_vector(add)])

        def total(v: int) -> Stmt:
            counted = tirx.Cast(f"float32x{self.lanes}", self._vector(self.count, v))
            return BufferStore(self.total, self._vector(self.total, v) + counted, [self._place(0, v)])

        rest = simplify(i64(groups) * QUAD - count)
        return sequence(
            [
                None if whole is not None and whole % QUAD == 0 else loop(rest, fill, name="key"),
                self._each_vector(lambda v: BufferStore(self.count, self._number(0), [self._place(0, v)])),
                loop(groups, group, name="group"),
                self._each_vector(total),
            ]
        )

    def _scores(self, start: Expr, count: int | Expr) -> Stmt:
        """See `QueryBlock`."""

        def tile(first: Expr, rows: int) -> Stmt:
            def products(r: int, d: Expr) -> Expr:
                at = {**self.point, self.nest.row.var: self.first, self.nest.column.var: start + first + r}
                return self.operands.element(substitute(self.parts.key, at), d)

            sums = RegisterTile(rows, self.vectors, self.lanes, "int32")
            begin = [self._set(sums, r, v, self._vector(self.offsets, v)) for r, v in self._cells(rows)]

            def step(d: Expr) -> Stmt:
                return self._step(sums, rows, d, self.queries, products, signed_left=False)

            end = [
                BufferStore(self.weights, self._float(sums, r, v), [self._place(first + r, v)])
                for r, v in self._cells(rows)
            ]
            return allocate(sums.buffers, sequence([*begin, loop(self.steps, step, name="d"), *end]))

        return self._tiles(count, self.nest.tile_keys, tile)

    def _sum(self, start: Expr, count: int | Expr) -> Stmt:
        """See `QueryBlock`; step 3."""
        size, groups = self.nest.value_size, self.operands.steps(count)

        def tile(first: Expr, rows: int) -> Stmt:
            def value(r: int, p: Expr) -> Expr:
                return BufferLoad(self.values, [p * size + first + r])

            sums = RegisterTile(rows, self.vectors, self.lanes, "int32")

            def step(p: Expr) -> Stmt:
                return self._step(sums, rows, p, self.codes, value, signed_left=True)

            def finish(r: int, v: int) -> Stmt:
                place = self._place(first + r, v)
                before = BufferLoad(self.sums, [place]) * self._vector(self.factor, v)
                return BufferStore(self.sums, before + self._float(sums, r, v), [place])

            end = [finish(r, v) for r, v in self._cells(rows)]
            return allocate(sums.buffers, sequence([*sums.zero(), loop(groups, step, name="group"), *end]))

        tiles = self._tiles(size, self.nest.tiles.tile_rows(size, self.vectors), tile)
        return sequence([self._pair_values(start, count), tiles])

    def _pair_values(self, start: Expr, count: int | Expr) -> Stmt:
        """The values of four keys at a time; behind the last key stands what nothing is multiplied with."""
        batch, head, row, element = (axis.var for axis in self.parts.context.spatial)
        key = self.parts.context.reduction[0].var
        fixed = {batch: self.place[0], head: self.place[1], row: self.first}
        size, whole = self.nest.value_size, known(i64(count))
        last = simplify(self.nest.column.extent - 1)

        def group(p: Expr) -> Stmt:
            def some(first: Expr, n: int) -> Stmt:
                def of(i: int) -> Expr:
                    k = start + p * QUAD + i
                    if whole is None or whole % QUAD:
                        k = tirx.min(k, last)
                    *lead, _ = substitute(self.parts.value, {**fixed, element: first, key: k}).indices
                    return BufferLoad(self.parts.value.source, [*lead, span(first, n)])

                signed = tirx.bitwise_xor(quad([of(i) for i in range(QUAD)]), wide(tirx.const(_SIGNS, "int32"), n))
                return BufferStore(self.values, signed, [span(p * size + first, n)])

            return over_vectors(size, self.lanes, some)

        return sequence([loop(self.operands.steps(count), group, name="group")])

    def _cells(self, rows: int) -> list[tuple[int, int]]:
        return [(r, v) for r in range(rows) for v in range(self.vectors)]

    def _own(self, v: int) -> Expr:
        return span(v * self.lanes, self.lanes)

    def _set(self, sums: RegisterTile, r: int, v: int, value: Expr) -> Stmt:
        return BufferStore(sums.buffers[r], value, [self._own(v)])

    def _float(self, sums: RegisterTile, r: int, v: int) -> Expr:
        return tirx.Cast(f"float32x{self.lanes}", BufferLoad(sums.buffers[r], [self._own(v)]))

    def _step(
        self,
        sums: RegisterTile,
        rows: int,
        k: Expr,
        columns: Var,
        factor: Callable[[int, Expr], Expr],
        *,
        signed_left: bool,
    ) -> Stmt:
        """`sums[r] += factor(r, k) * columns[k]` for all queries; `signed_left`: which factor has a sign."""
        loads = [self._vector(columns, v, k) for v in range(self.vectors)]

        def one(r: int, v: int) -> Stmt:
            a, b = wide(factor(r, k), self.lanes), loads[v]
            total = BufferLoad(sums.buffers[r], [self._own(v)])
            return self._set(sums, r, v, add_quads(total, *((b, a) if signed_left else (a, b)), self.cpu))

        return sequence([one(r, v) for r, v in self._cells(rows)])


class _ByteNest(AttentionNest):
    """Builds the loop nest of one attention of bytes."""

    block = _ByteBlock

    def build(self) -> Stmt:
        """The statement."""
        return self.many()


def _weight(x: Expr) -> Expr:
    """255 e**x for x <= 0, rounded to an int32; at most 0.03 beside the true number before it is rounded.

    As `backends.cpu.polynomials.exp_of_nonpositive`, with a polynomial for as many digits as a byte has.
    """

    def f(value: float) -> Expr:
        return tirx.const(value, "float32")

    shifter = f(1.5 * 2**23 + 127)

    def scaled(r: Expr, t: Expr) -> Expr:
        power = tirx.reinterpret("float32", tirx.shift_left(tirx.reinterpret("int32", t), tirx.const(23, "int32")))
        result = f(_STEPS * _EXP[-1])
        for c in reversed(_EXP[:-1]):
            result = result * r + f(_STEPS * c)
        return tirx.Cast("int32", result * power + f(0.5))

    def of(x: Expr) -> Expr:
        rounded = x * f(1.0 / math.log(2.0)) + shifter
        return let(rounded, lambda t: let(x - (t - shifter) * f(math.log(2.0)), lambda r: scaled(r, t)))

    return let(tirx.Max(x, f(_LEAST)), of)
