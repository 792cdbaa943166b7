"""A row of output pixels of a width that only the run knows: padding is left out at its ends, as in `taps`.

The first pixels have the same taps in images of every width. Those of the last ones depend on how far the last window
reaches beyond the image: that is at most the padding, and less than a stride below it, and there is a tile for each
such number. Images so narrow that a pixel would lie at both ends are done pixel by pixel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx

from backends.cpu.register_tile import chosen_size
from backends.cpu.taps import Reach, Taps, TileAt
from backends.relax.loops import Expr, IfThenElse, Stmt, bind, i64, loop, sequence, simplify

__all__ = ["OpenRow", "fractions", "thick_ends", "thin_ends"]


@dataclass(frozen=True)
class OpenRow:
    """A row, and what generates its tiles.

    Attributes:
        taps: the window.
        outputs: how many pixels.
        width: of the image.
        tile: generates a tile; one of unknown taps has one pixel.
        most: pixels in a tile.
    """

    taps: Taps
    outputs: Expr
    width: Expr
    tile: TileAt
    most: int

    @property
    def left(self) -> int:
        """Pixels with taps before the image."""
        return -(-self.taps.pw // self.taps.sw)

    @property
    def beyond(self) -> list[int]:
        """By how many columns the last window may reach beyond the image, if it does."""
        return [d for d in range(self.taps.behind - self.taps.sw + 1, self.taps.behind + 1) if d > 0]

    @property
    def right(self) -> int:
        """The most pixels with taps behind the image."""
        return -(-max(self.beyond, default=0) // self.taps.sw)

    def first(self, pixels: int) -> Stmt:
        """The row's first pixels."""

        def inside(pixel: int, tap: int) -> bool:
            return pixel * self.taps.sw + tap * self.taps.dw >= self.taps.pw

        return self._cut(0, pixels, inside)

    def last(self, overhang: Expr, pixels: int | None = None) -> Stmt | None:
        """The row's last pixels, if the last window reaches beyond the image.

        Args:
            overhang: by how many columns.
            pixels: how many; `None` for those with taps behind the image.
        """
        taps, statement = self.taps, None
        for distance in self.beyond:
            count = pixels or -(-distance // taps.sw)

            def inside(pixel: int, tap: int, distance: int = distance, count: int = count) -> bool:
                return distance <= (count - 1 - pixel) * taps.sw + (taps.kw - 1 - tap) * taps.dw

            tiles = self._cut(self.outputs - count, count, inside)
            statement = IfThenElse(tirx.EQ(overhang, i64(distance)), tiles, statement)
        return statement

    def _cut(self, start: Expr | int, count: int, inside: Callable[[int, int], bool]) -> Stmt:
        def part(done: int) -> Stmt:
            taken = min(self.most, count - done)
            return self.tile(start + done, taken, lambda pixel, tap: inside(done + pixel, tap))

        return sequence([part(done) for done in range(0, count, self.most)])

    def singly(self) -> Stmt:
        """All pixels, one by one."""
        return sequence([loop(self.outputs, lambda pixel: self.tile(pixel, 1, Reach.UNKNOWN), name="pixel")])

    def with_ends(self, body: Callable[[Expr, Expr], Stmt]) -> Stmt:
        """The body, given by how many columns the last window reaches beyond, and how many pixels have taps there."""
        taps = self.taps
        if not self.beyond:
            return body(i64(0), i64(0))
        reach = (self.outputs - 1) * taps.sw + ((taps.kw - 1) * taps.dw - taps.pw) - (self.width - 1)

        def named(overhang: Expr) -> Stmt:
            return bind([tirx.floordiv(overhang + (taps.sw - 1), taps.sw)], lambda right: body(overhang, right[0]))

        return bind([simplify(tirx.Max(reach, i64(0)))], lambda overhang: named(overhang[0]))


def thin_ends(row: OpenRow, interior: Callable[[Expr, Expr], Stmt | None]) -> Stmt:
    """Tiles of only the pixels at the ends, for windows so wide that a tile might lie at both ends of many images.

    Args:
        row: the row.
        interior: generates what is between the ends, from a pixel on so many.
    """
    if not row.left and not row.beyond:
        return sequence([interior(i64(0), row.outputs)])

    def whole(overhang: Expr, right: Expr) -> Stmt:
        first = row.first(row.left) if row.left else None
        between = interior(i64(row.left), row.outputs - right - row.left)
        parts = sequence([first, between, row.last(overhang)])
        return IfThenElse(row.outputs >= right + row.left, parts, row.singly())

    return row.with_ends(whole)


def thick_ends(row: OpenRow, sizes: list[int], cycles: Callable[[int], float]) -> Stmt:
    """Tiles of one size, at the ends too.

    The size is the one with the fewest cycles in all, of those with which no tile lies at both ends. Tiles may overlap.

    Args:
        row: the row.
        sizes: of tiles, in descending order.
        cycles: what a step of a tile takes, by its size.
    """
    ends = max(row.left, row.right)
    possible = [size for size in sizes if size >= row.left + row.right]

    def run(size: int, overhang: Expr, right: Expr) -> Stmt:
        count = tirx.floordiv(row.outputs + (size - 1), size)
        begin = 1 if row.left else 0

        def middle(t: Expr) -> Stmt:
            start = tirx.Min((t + begin) * size, row.outputs - right - size)
            return bind([start], lambda place: row.tile(place[0], size))

        with_last = tirx.Min(right, i64(1)) if row.beyond else i64(0)
        return sequence(
            [
                row.first(size) if row.left else None,
                loop(simplify(count - with_last - begin), middle, name="tile"),
                row.last(overhang, size),
            ]
        )

    def whole(overhang: Expr, right: Expr) -> Stmt:
        return chosen_size(
            row.outputs, possible, cycles, lambda size: run(size, overhang, right), row.singly(), least=ends
        )

    return row.with_ends(whole)


def fractions(largest: int, count: int) -> list[int]:
    """Tiles of the largest size, and of less by equal steps: they compute little twice at any width."""
    return list(dict.fromkeys(-(-largest * k // count) for k in range(count, 0, -1)))
