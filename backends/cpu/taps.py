"""Which taps of a window lie inside a row of pixels, and how a row is cut where some do not.

Padding is never stored: the tiles at the ends of a row leave out the taps that would read it. With sizes that are
known, each tile is generated for its place; `open_row` is for the others.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from tvm import tirx

from backends.relax.loops import Expr, Stmt, i64, known, simplify
from backends.relax.stage_window import StageWindow


class Reach(enum.Enum):
    """Of a tile for which nobody tells taps one by one."""

    INSIDE = "all taps lie inside the row"
    UNKNOWN = "only the run knows which"


Inside: TypeAlias = Reach | Callable[[int, int], bool]
"""Whether a tap of a tile's pixel lies inside the row: (pixel, tap)."""


class TileAt(Protocol):
    """Generates the tile at a pixel."""

    def __call__(self, start: Expr | int, pixels: int, inside: Inside = Reach.INSIDE) -> Stmt:
        """The tile of so many pixels, and which of its taps are to be summed."""
        ...


@dataclass(frozen=True)
class Taps(StageWindow):
    """The window of a convolution, and which of its taps lie inside the image."""

    def row_range(self, y: Expr, height: Expr, out_height: Expr) -> tuple[Expr, Expr]:
        """First tap and number of taps along KH that lie inside the image, for output row `y`."""
        top = y * self.sh - self.ph
        begin: Expr = i64(0)
        end: Expr = i64(self.kh)
        if self.ph:
            begin = tirx.Max(i64(0), tirx.floordiv(i64(self.dh - 1) - top, self.dh))
        last = known(simplify((out_height - 1) * self.sh - self.ph + (self.kh - 1) * self.dh - height))
        if last is None or last >= 0:
            end = tirx.Min(i64(self.kh), tirx.floordiv(height - top + (self.dh - 1), self.dh))
        return begin, simplify(end - begin)

    def column_range(self, x: Expr, width: Expr) -> tuple[Expr, Expr]:
        """First tap and number of taps along KW that lie inside the image, for output column `x`."""
        left = x * self.sw - self.pw
        begin = tirx.Max(i64(0), tirx.floordiv(i64(self.dw - 1) - left, self.dw))
        end = tirx.Min(i64(self.kw), tirx.floordiv(width - left + (self.dw - 1), self.dw))
        return begin, simplify(tirx.Max(i64(0), end - begin))

    def inside(self, pixel: int, tap: int, width: int) -> bool:
        """Whether a tap of an output pixel lies inside the row."""
        return 0 <= pixel * self.sw + tap * self.dw - self.pw < width


def edges(taps: Taps, out_width: int, width: int, tile: int) -> list[tuple[int, int, bool]]:
    """Cut a row of output pixels into runs (start, pixels, interior): the tiles at the edges, and the interior."""
    runs: list[tuple[int, int, bool]] = []
    start = 0
    while start < out_width:
        size = min(tile, out_width - start)
        interior = all(taps.inside(p, t, width) for p in (start, start + size - 1) for t in (0, taps.kw - 1))
        if interior and size == tile and runs and runs[-1][2]:
            runs[-1] = (runs[-1][0], runs[-1][1] + size, True)
        else:
            runs.append((start, size, interior and size == tile))
        start += size
    return runs
