"""A tile of results that lives in vector registers while the reduced axis is swept."""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx

from backends.relax.loops import (
    BufferLoad,
    BufferStore,
    Expr,
    IfThenElse,
    Stmt,
    Var,
    bind,
    i64,
    local,
    loop,
    sequence,
)

AddProduct = Callable[[Expr, Expr, Expr], Expr]
"""A sum, and the vectors of both factors, to the new sum."""

LINE_ELEMENTS = 16
"""Elements of four bytes in a cache line."""

_CYCLE_PARTS = 4
"""Cycles are counted in quarters where the run compares them."""

_NEVER = 1 << 40
"""More of them than any row takes."""


def span(start: Expr | int, lanes: int) -> Expr:
    """The indices of `lanes` neighbours."""
    return tirx.Ramp(i64(start), i64(1), lanes) if lanes > 1 else i64(start)


def wide(value: Expr, lanes: int) -> Expr:
    """The value in every lane."""
    return tirx.Broadcast(value, lanes) if lanes > 1 else value


def lines_ahead(tile: Expr, tiles: int | None, elements: int) -> list[Expr]:
    """Where in a row of the next panel a tile asks for cache lines, so that all tiles together ask for each line once.

    Weights that do not fit in the second-level cache come from memory faster than the processor asks for them by
    itself only if they are asked for while it computes.

    Args:
        tile: which of the tiles.
        tiles: how many sweep the panel before the next one is needed; `None` if that is symbolic. Where there are fewer
            than tasks, that is none in the mean, and one in some.
        elements: in a row of the panel.
    """
    lines = -(-elements // LINE_ELEMENTS)
    share = 1 if tiles is None else -(-lines // max(1, tiles))
    return [tirx.Min(tile * share + i, i64(lines - 1)) * LINE_ELEMENTS for i in range(share)]


def asks_ahead(tile: Expr, tiles: int | None, elements: int, steps: int | None) -> list[Callable[[Expr], Expr]]:
    """What a tile asks for of the next panel in each step: where the line begins, from the panel's start on.

    All tiles together ask for each line. Where they are more than a row has lines, each takes its share of the panel
    in the order in which it lies, evenly over its steps; the same line a few times rather than pauses.

    Args:
        tile: which of the tiles.
        tiles: how many sweep the panel before the next one is needed; `None` if that is symbolic.
        elements: of four bytes, in a row of the panel.
        steps: rows of the panel; `None` if that is symbolic.
    """
    lines = -(-elements // LINE_ELEMENTS)
    if tiles is None or steps is None or tiles < lines:
        places = lines_ahead(tile, tiles, elements)
        return [lambda k, place=place: k * elements + place for place in places]  # type: ignore[misc]
    times = 1 << ((tiles // lines).bit_length() - 1)
    share = -(-steps // times)
    return [lambda k: (tile * share + tirx.floordiv(k, times)) * LINE_ELEMENTS]


def remainder(count: Expr, start: Expr, size: int, tile: Callable[[Expr, int], Stmt]) -> Stmt | None:
    """What tiles of `size` leave over, where only the run knows how much: one tile for each power of two in it.

    Args:
        count: how many are left, fewer than `size`.
        start: the first of them.
        size: of a whole tile.
        tile: generates a smaller tile, by its first position and its size.
    """
    statements: list[Stmt | None] = []
    step = 1 << ((size - 1).bit_length() - 1) if size > 1 else 0
    while step:
        bit = tirx.floormod(tirx.floordiv(count, step), 2)
        done = count - tirx.floormod(count, 2 * step)
        statements.append(loop(bit, lambda _, n=step, d=done: tile(start + d, n), name="rest"))  # type: ignore[misc]
        step //= 2
    return sequence(statements) if statements else None


def covering(
    count: Expr, largest: int, cycles: Callable[[int], float], tile: Callable[[Expr, int], Stmt]
) -> Stmt | None:
    """Tiles of one size over so many elements, the size being the one that takes the fewest cycles in all.

    The last tile ends with the last element, and may compute some of those before it once more.

    Args:
        count: how many there are; only the run knows.
        largest: size of a tile; the half of it and so on are the others.
        cycles: what a step of a tile takes, by its size.
        tile: generates a tile, by its first position and its size.
    """
    sizes = [largest]
    while sizes[-1] > 1:
        sizes.append(-(-sizes[-1] // 2))

    def run(size: int) -> Stmt:
        # By name: TVM looks through the quotient and the minimum in every index of every pixel, for minutes.
        def at(t: Expr) -> Stmt:
            return bind([tirx.Min(t * size, count - size)], lambda place: tile(place[0], size))

        return sequence([loop(_tiles(count, size), at, name="tile")])

    return chosen_size(count, sizes, cycles, run)


def chosen_size(
    count: Expr,
    sizes: list[int],
    cycles: Callable[[int], float],
    run: Callable[[int], Stmt],
    otherwise: Stmt | None = None,
    least: int = 0,
) -> Stmt:
    """What is generated for the size of tiles that takes the fewest cycles in all; only the run knows which it is.

    Args:
        count: how many elements there are.
        sizes: of tiles, in descending order.
        cycles: what a step of a tile takes, by its size.
        run: generates the work with tiles of a size.
        otherwise: for fewer elements than any of the sizes needs.
        least: how many elements there have to be beside a tile.
    """

    def total(size: int) -> Expr:
        return _tiles(count, size) * max(1, round(_CYCLE_PARTS * cycles(size)))

    def choose(chosen: Expr) -> Stmt:
        statement = otherwise
        for size in sizes[::-1]:
            statement = IfThenElse(tirx.EQ(chosen, i64(size)), run(size), statement)
        return sequence([statement])

    def choice(candidates: list[int], chosen: Expr, fewest: Expr) -> Stmt:
        """Named step by step: each step asks for the last one's result three times."""
        if not candidates:
            return choose(chosen)
        size, *others = candidates
        better = tirx.all(count >= size + least, total(size) <= fewest)
        found = [tirx.Select(better, i64(size), chosen), tirx.Select(better, total(size), fewest)]
        return bind(found, lambda place: choice(others, *place))

    return choice(sizes[::-1], i64(0), i64(_NEVER))


def _tiles(count: Expr, size: int) -> Expr:
    """How many tiles cover so many elements."""
    return tirx.floordiv(count + (size - 1), size)


class RegisterTile:
    """`rows` x `vectors` accumulators of `lanes` lanes.

    Each row is a buffer of its own: TVM keeps buffers below 1 KiB on the stack, where LLVM turns them into registers;
    larger ones cost two calls of the allocator.
    """

    def __init__(self, rows: int, vectors: int, lanes: int, dtype: str, add_product: AddProduct | None = None) -> None:
        """`add_product`: how factors are multiplied that are more than an element a lane (`factors.add_product`)."""
        self.add_product = add_product
        self.rows = rows
        self.vectors = vectors
        self.lanes = lanes
        self.dtype = dtype
        self.buffers = [local([vectors * lanes], dtype, f"row{r}") for r in range(rows)]

    def zero(self) -> list[Stmt]:
        """Clear the accumulators."""
        nothing = wide(tirx.const(0, self.dtype), self.lanes)
        return [
            BufferStore(b, nothing, [span(v * self.lanes, self.lanes)])
            for b in self.buffers
            for v in range(self.vectors)
        ]

    def add(self, row: int, vector: int, value: Expr) -> Stmt:
        """Add to one accumulator."""
        here = [span(vector * self.lanes, self.lanes)]
        return BufferStore(self.buffers[row], BufferLoad(self.buffers[row], here) + value, here)

    def multiply(self, row: int, vector: int, a: Expr, b: Expr) -> Stmt:
        """Add a product to one accumulator."""
        here = [span(vector * self.lanes, self.lanes)]
        total = BufferLoad(self.buffers[row], here)
        value = total + a * b if self.add_product is None else self.add_product(total, a, b)
        return BufferStore(self.buffers[row], value, here)

    def resume(self, waiting: Var, start: Expr, apart: int) -> list[Stmt]:
        """Go on from sums that `leave` left."""
        places = self._places(start, apart)
        return [BufferStore(row, BufferLoad(waiting, there), here) for row, here, there in places]

    def leave(self, waiting: Var, start: Expr | int, apart: int) -> list[Stmt]:
        """Copy the accumulators; those of a row begin at `waiting[start]`, and those of the next `apart` further on."""
        places = self._places(start, apart)
        return [BufferStore(waiting, BufferLoad(row, here), there) for row, here, there in places]

    def _places(self, start: Expr | int, apart: int) -> list[tuple[Var, list[Expr], list[Expr]]]:
        """Of each accumulator the row, its place in that, and its place in a buffer for all."""
        return [
            (row, [span(v * self.lanes, self.lanes)], [span(start + r * apart + v * self.lanes, self.lanes)])
            for r, row in enumerate(self.buffers)
            for v in range(self.vectors)
        ]

    def finish(self, staged: Var, body: Callable[[Expr, Expr], Stmt]) -> list[Stmt | None]:
        """Copy the accumulators to `staged`, then run `body(row, offset)` on each row.

        The results of a row start at `staged[offset]`. The loop over the rows stays a loop: what follows a heavy
        operator can be long, and is generated once.
        """
        size = self.vectors * self.lanes
        return [*self.leave(staged, 0, size), loop(self.rows, lambda r: body(r, r * size), name="row")]
