"""The keys of a head, cut into ranges for several tasks, and their results merged. See `backends.cpu.few_queries`.

A range leaves the largest score m, the sum t of the weights exp(score - m) and the weighed sums s of the values. Of all
ranges together the result is sum(s * exp(m - M)) / sum(t * exp(m - M)), where M is the largest m.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tvm import tirx

from backends.cpu.across_lanes import spread
from backends.cpu.operands import converted
from backends.cpu.polynomials import exp_of_nonpositive
from backends.cpu.register_tile import span, wide
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
    product,
    sequence,
    simplify,
    unflatten,
)

if TYPE_CHECKING:
    from backends.cpu.few_queries import FewQueries

__all__ = ["KeyRanges"]

_FEWEST_KEYS = 64
"""Of a range: below that a task has too little to do."""
_ROUNDS = 4
"""Tasks a core, so many that one more or less does not matter."""


class KeyRanges:
    """Into how many ranges the keys are cut, and what becomes of their results."""

    def __init__(self, owner: FewQueries, heads: Expr) -> None:
        """Cut as the cores ask for it.

        Args:
            owner: Whose keys.
            heads: Pairs of batch element and key head, one task each if the keys are not cut.
        """
        self.owner = owner
        nest = owner.nest
        self.nest = nest
        cores = nest.tiles.cpu.cores
        even = tirx.Or(heads >= _ROUNDS * cores, tirx.EQ(tirx.floormod(heads, i64(cores)), i64(0)))
        most = tirx.max(tirx.floordiv(nest.column.extent, i64(_FEWEST_KEYS)), i64(1))
        self.count = simplify(tirx.Select(even, i64(1), tirx.min(i64(cores), most)))
        self.whole = known(self.count) == 1
        rows = simplify(nest.batch.extent * nest.head.extent * nest.row.extent)
        parts = simplify(rows * self.count)
        self.largest, self.total = (local([parts], "float32", f"{name}_of_range") for name in ("largest", "total"))
        self.sums = local([simplify(parts * nest.value_size)], "float32", "sums_of_range")

    def bounds(self, part: Expr, begin: Expr, end: Expr) -> tuple[Expr, Expr]:
        """The range `part` of the keys from `begin` to `end`."""
        if self.whole:
            return begin, end
        length = simplify(tirx.max(end - begin, i64(0)))
        first, last = (simplify(begin + tirx.floordiv(length * p, self.count)) for p in (part, part + 1))
        return first, last

    def finish(self, point: dict[Var, Expr], head: Expr, row: Expr, r: Expr, part: Expr) -> Stmt:
        """Keep what a range gives for a row, or give the result if there is but one range."""
        owner, lanes = self.owner, self.owner.lanes
        total = local([lanes], "float32", "total_of_row")
        everything = [span(r * lanes, lanes)]
        add = BufferStore(
            total, spread(BufferLoad(owner.total, everything), lanes, lambda a, b: a + b), [span(0, lanes)]
        )
        batch, head = point[self.nest.batch.var], simplify(point[self.nest.head.var] + head)
        if self.whole:
            share = _share(BufferLoad(total, [i64(0)]))
            return allocate([total], sequence([add, self._give([batch, head, row], owner.sums, r, share)]))
        place = simplify(self._place(batch, head, row) * self.count + part)
        body = [
            add,
            BufferStore(self.total, BufferLoad(total, [i64(0)]), [place]),
            BufferStore(self.largest, BufferLoad(owner.largest, [r * lanes]), [place]),
            self._elements(lambda at: BufferStore(self.sums, BufferLoad(owner.sums, [at(r)]), [at(place)])),
        ]
        return allocate([total], sequence(body))

    def merged(self, ranges: Stmt) -> Stmt:
        """What computes the ranges, and what merges them."""
        if self.whole:
            return ranges
        nest = self.nest
        extents = [nest.batch.extent, nest.head.extent, nest.row.extent]
        result, largest, total, factor = (
            local([size], "float32", name)
            for size, name in ((nest.value_size, "result"), (1, "largest"), (1, "total"), (1, "factor"))
        )
        zero, here = tirx.const(0, "float32"), [i64(0)]

        def load(buffer: Var, at: Expr) -> Expr:
            return BufferLoad(buffer, [at])

        def of_row(n: Expr) -> Stmt:
            def highest(part: Expr) -> Stmt:
                return BufferStore(
                    largest, tirx.max(load(largest, i64(0)), load(self.largest, n * self.count + part)), here
                )

            def add(part: Expr) -> Stmt:
                place = n * self.count + part
                change = exp_of_nonpositive(load(self.largest, place) - _finite(load(largest, i64(0))))
                return sequence(
                    [
                        BufferStore(factor, change, here),
                        BufferStore(total, load(total, i64(0)) + load(self.total, place) * load(factor, i64(0)), here),
                        self._elements(
                            lambda at: BufferStore(
                                result,
                                load(result, at(i64(0)))
                                + load(self.sums, at(place)) * self._wide(load(factor, i64(0))),
                                [at(i64(0))],
                            )
                        ),
                    ]
                )

            return sequence(
                [
                    BufferStore(largest, tirx.const(float("-inf"), "float32"), here),
                    BufferStore(total, zero, here),
                    self._elements(lambda at: BufferStore(result, self._wide(zero), [at(i64(0))])),
                    loop(self.count, highest, name="range"),
                    loop(self.count, add, name="range"),
                    self._give(unflatten(n, extents), result, i64(0), _share(load(total, i64(0)))),
                ]
            )

        merge = allocate([result, largest, total, factor], sequence([loop(product(extents), of_row, name="row")]))
        return allocate([self.largest, self.total, self.sums], sequence([ranges, merge]))

    def _give(self, place: list[Expr], sums: Var, r: Expr, share: Expr) -> Stmt:
        """Store the result of a row: its sums in row `r` of a buffer, times `share`."""
        batch, head, row = place
        output = self.nest.parts.output
        packed = bool(output.annotations.get("tersor.packed", 0))
        lead = [batch, row, head] if packed else [batch, head, row]
        factor = local([1], "float32", "share")

        def part(at: Callable[[Expr], Expr]) -> Stmt:
            value = BufferLoad(sums, [at(r)]) * self._wide(BufferLoad(factor, [i64(0)]))
            value = converted(value, str(output.buffer.dtype), self.owner.value_lanes)
            return BufferStore(output.buffer, value, [*lead, at(i64(0))])

        return allocate([factor], sequence([BufferStore(factor, share, [i64(0)]), self._elements(part)]))

    def _elements(self, body: Callable[[Callable[[Expr], Expr]], Stmt]) -> Stmt:
        """For all elements of a value: `body` of what gives their places in a row of a buffer."""
        lanes, size = self.owner.value_lanes, self.nest.value_size

        def some(c: Expr) -> Stmt:
            return body(lambda row: span(simplify(row * size + c * lanes), lanes))

        return sequence([loop(size // lanes, some, name="part")])

    def _wide(self, value: Expr) -> Expr:
        return wide(value, self.owner.value_lanes)

    def _place(self, batch: Expr, head: Expr, row: Expr) -> Expr:
        return (batch * self.nest.head.extent + head) * self.nest.row.extent + row


def _share(total: Expr) -> Expr:
    """What a sum is multiplied with; a query that sees no key gets zero."""
    zero, one = tirx.const(0, "float32"), tirx.const(1, "float32")
    return tirx.Select(tirx.EQ(total, zero), zero, one / total)


def _finite(largest: Expr) -> Expr:
    """What exponents are taken from: 0 where no key was seen."""
    return tirx.Select(tirx.EQ(largest, tirx.const(float("-inf"), "float32")), tirx.const(0, "float32"), largest)
