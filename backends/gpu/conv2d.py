"""The rule for convolutions: an implicit product of a matrix of windows and the filters.

Letters as in `backends.relax.ops.conv`. A row of the left factor is an output pixel, N x OH x OW of them, and holds the
window around it, KH x KW*C elements, which are read from the image where they lie (Chetlur et al., cuDNN, 2014): no
such matrix is ever stored. The filters are [G, P, KH, KW*C, W], in P panels for each of G groups. The rest is a matrix
product (`backends.gpu.block_product`), one for each group. Taps outside the image count as zeros and are not read.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.tirx import BufferLoad

from backends.gpu.blocked import best_of, blocked
from backends.gpu.epilogue import Epilogue
from backends.gpu.heavy import with_epilogue
from backends.gpu.launch import Ids, Launch
from backends.gpu.operands import Factor, Order, Result, element_bytes, singly
from backends.gpu.tensor_tile import TensorTile
from backends.gpu.threads import block_places
from backends.gpu.tile_model import Sizes, Tile, row_group
from backends.relax.kernel import Kernel, Stage
from backends.relax.loops import Expr, Stmt, Var, i64, known, loads_of, product, simplify, substitute, unflatten
from backends.relax.stage_window import StageWindow
from optimizer.gpus import Gpu

__all__ = ["Convolution", "Window", "lower"]


@dataclass(frozen=True)
class Window(StageWindow):
    """The window of a convolution, and when its taps lie inside the image."""

    def inside(self, y: Expr, x: Expr, image: tuple[Expr, Expr], out: tuple[Expr, Expr]) -> list[Expr]:
        """The conditions under which a place lies inside the image; none along an axis on which all do.

        Args:
            y: row of the image.
            x: column of it.
            image: rows and columns.
            out: rows and columns of the result.
        """
        conditions = []
        axes = zip((y, x), image, out, (self.ph, self.pw), self._axes(), strict=True)
        for at, size, results, before, (taps, stride, dilation) in axes:
            if before:
                conditions.append(at >= 0)
            last = known(simplify((results - 1) * stride + (taps - 1) * dilation - before - size))
            if last is None or last >= 0:
                conditions.append(at < size)
        return conditions

    def _axes(self) -> list[tuple[int, int, int]]:
        return [(self.kh, self.sh, self.dh), (self.kw, self.sw, self.dw)]


def lower(kernel: Kernel, gpu: Gpu) -> list[Launch] | None:
    """See `backends.gpu.schedule.Rule`."""
    stage = kernel.stages[0]
    if stage.kind != "conv2d":
        return None
    return with_epilogue(kernel, gpu, lambda epilogue: Convolution(stage).launch(epilogue, gpu))


class Convolution:
    """Builds the launch of one convolution."""

    def __init__(self, stage: Stage) -> None:
        self.window = window = Window.of(stage)
        self.data, self.weights = stage.operand(4), stage.operand(5)
        self.groups = int(stage.annotations["tersor.groups"])  # type: ignore[call-overload]
        self.pixels = [a.extent for a in stage.spatial[:3]]
        self.out = int(stage.spatial[3].extent) // self.groups
        self.channels = int(stage.reduction[-1].extent) // window.kw
        self.depth = window.kh * window.kw * self.channels
        self.rows_together = _rows_together(stage, self.weights)
        self.words = False

    def launch(self, epilogue: Epilogue, gpu: Gpu) -> Launch:
        """The launch."""
        sizes, tile = self.sizes(), self.tile(gpu)
        self.words = isinstance(tile, TensorTile) and not sizes.singly[1]
        rows, columns = product(self.pixels), i64(self.out)
        order = Order.of(rows, columns, tile, row_group(sizes, tile.rows, gpu))

        def body(block: Ids, thread: Ids) -> Stmt:
            extents = [i64(self.groups), *order.extents]
            return block_places(block[0], extents, lambda place: one(place, thread[0]))

        def one(place: list[Expr], thread: Expr) -> Stmt:
            which, group, block_column, own = place
            first = simplify(which * self.out)
            result = Result(rows, columns, i64(self.depth), lambda row: unflatten(row, self.pixels), epilogue, first)
            block_product = blocked(self._left(rows, which), self._right(which), result, tile)
            return block_product.build(order.row(group, own), block_column, thread)

        grid = (product([self.groups, *order.extents]), i64(1), i64(1))
        return Launch("conv2d", grid, (tile.threads, 1, 1), body)

    def tile(self, gpu: Gpu) -> Tile | TensorTile:
        """The tile of the product."""
        return best_of(self.sizes(), gpu, self.rows_together)

    def sizes(self) -> Sizes:
        """What the tile model needs to know."""
        rows, image = known(product(self.pixels)), known(product(list(self.data.shape)))
        dtype = str(self.data.dtype)
        element = element_bytes(dtype)
        left = None if image is None else image * element // self.groups
        # Bytes of the filters lie in words, those of each tap by themselves: the image has to have whole words, too.
        words = element > 1 or (self.rows_together == 4 and self.channels % 4 == 0)
        alone = singly(self.channels, dtype), not words or singly(self.weights.shape[4], dtype)
        return Sizes(self.groups, rows, self.out, self.depth, element, dtype, left, alone)

    def _left(self, rows: Expr, group: Expr) -> Factor:
        """The windows: for a pixel its image and the top left corner of its window, which may lie outside."""
        window, source, dtype = self.window, self.data, str(self.data.dtype)
        image = (source.shape[1], source.shape[2])

        def place(row: Expr, _lanes: int) -> list[Expr]:
            n, y, x = unflatten(row, self.pixels)
            return [simplify(n), simplify(y * window.sh - window.ph), simplify(x * window.sw - window.pw)]

        def load(at: list[Expr], k: Expr, _lanes: int) -> tuple[Expr, list[Expr]]:
            n, top, left = at
            tap_row, rest = (
                tirx.floordiv(k, i64(window.kw * self.channels)),
                tirx.floormod(k, i64(window.kw * self.channels)),
            )
            tap, channel = tirx.floordiv(rest, i64(self.channels)), tirx.floormod(rest, i64(self.channels))
            y, x = simplify(top + tap_row * window.dh), simplify(left + tap * window.dw)
            conditions = window.inside(y, x, image, (self.pixels[1], self.pixels[2]))
            return BufferLoad(source, [n, y, x, simplify(group * self.channels + channel)]), conditions

        return Factor(dtype, self.channels, rows, place, load)

    def _right(self, group: Expr) -> Factor:
        """The filters, all taps of a channel in one column; channels that lie side by side as words or one by one."""
        source, dtype, rows = self.weights, str(self.weights.dtype), self.rows_together
        width, across = int(source.shape[4]) // rows, int(source.shape[3])
        together = rows == 1 or self.words

        def place(column: Expr, lanes: int) -> list[Expr]:
            own = tirx.floordiv(tirx.floormod(column, i64(width)), i64(lanes))
            return [simplify(tirx.floordiv(column, i64(width))), simplify(own)]

        def load(at: list[Expr], k: Expr, lanes: int) -> tuple[Expr, list[Expr]]:
            panel, own = at
            if together:
                taps = [tirx.floordiv(k, i64(across)), tirx.floormod(k, i64(across))]
                return BufferLoad(source, [group, panel, *taps, own * (lanes * rows)]), []
            tap, channel = tirx.floordiv(k, i64(self.channels)), tirx.floormod(k, i64(self.channels))
            row, column = tirx.floordiv(tap, i64(self.window.kw)), tirx.floormod(tap, i64(self.window.kw))
            down = column * (across // self.window.kw) + tirx.floordiv(channel, i64(rows))
            return BufferLoad(source, [group, panel, row, down, own * rows + tirx.floormod(channel, i64(rows))]), []

        lines = i64(int(source.shape[1]) * width)
        return Factor(dtype, width * rows if together else 1, lines, place, load, rows if together else 1)


def _rows_together(stage: Stage, weights: Var) -> int:
    """How many channels of the filters lie side by side: as far apart as two neighbouring columns are."""
    (load,) = (ld for ld in loads_of(stage.value) if ld.source.same_as(weights))
    origin = {axis.var: i64(0) for axis in stage.axes}
    next_column = {**origin, stage.spatial[3].var: i64(1)}
    first, second = (known(simplify(substitute(load.indices[-1], at))) for at in (origin, next_column))
    return max(1, (second or 0) - (first or 0))
