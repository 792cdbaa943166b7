"""The rule for depthwise convolutions: a thread computes a few pixels of a few channels from registers.

Letters: data [N, H, W, C], filters [KH, KW, C]. A thread has R rows of P pixels of V neighbouring channels. It goes
through the rows of the image below its pixels: what a row's taps read comes to registers once, and all P pixels take
their part of it. Filters come once for all pixels, where registers hold them. Neighbouring threads have neighbouring
channels, so that a warp reads whole sectors, by vectors of 16 bytes where the type allows. A pixel then asks for
`(rows x columns of the image below a tile + KH * KW) / (R * P)` vectors instead of `2 * KH * KW`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.tirx import BufferLoad, BufferStore

from backends.gpu.epilogue import Epilogue
from backends.gpu.heavy import with_epilogue
from backends.gpu.launch import Ids, Launch
from backends.gpu.operands import sum_type
from backends.gpu.threads import block_places, cast, gather, holds, named, ramp, registers, scatter, zeros
from backends.gpu.tile_model import L2_BYTES_A_CYCLE, fma_lanes
from backends.relax.kernel import Kernel, Stage
from backends.relax.loops import (
    Expr,
    Stmt,
    TensorLoad,
    Var,
    allocate,
    i64,
    known,
    loads_of,
    product,
    sequence,
    simplify,
    substitute,
)
from backends.relax.stage_window import StageWindow
from optimizer.gpus import Gpu

__all__ = ["PixelTile", "best_pixel_tile", "lower"]

_VECTOR = 4
"""Channels of a thread, of 4 bytes each."""
_ACROSS = 64
"""Threads of a block along the channels, at most."""
_BLOCK = 128
_FILTER_REGISTERS = 48
"""For all filters of a thread, at most; with more, each row of taps has its turn, and a thread one row of pixels."""
_REGISTERS = 128
"""Of a thread, at most, as they are counted here; the compiler takes more, to have more loads on their way."""
_OTHER_REGISTERS = 32
_UNKNOWN = 64
"""A symbolic number of rows or columns."""
_RESIDENT = 512
"""Threads of a multiprocessor that hide the latency of memory."""


@dataclass(frozen=True)
class PixelTile:
    """The pixels of a thread.

    Attributes:
        rows, columns: of the result.
    """

    rows: int
    columns: int

    def spans(self, window: StageWindow) -> tuple[int, int]:
        """Rows and columns of the image below the tile."""
        return (
            (self.rows - 1) * window.sh + (window.kh - 1) * window.dh + 1,
            (self.columns - 1) * window.sw + (window.kw - 1) * window.dw + 1,
        )

    def registers(self, window: StageWindow, width: int) -> int:
        """Of a thread: its sums, a row of the image, filters."""
        filters = window.kh * window.kw if _all_filters(window, width) else window.kw
        return width * (self.rows * self.columns + self.spans(window)[1] + filters) + _OTHER_REGISTERS

    def vectors(self, window: StageWindow, width: int) -> int:
        """That a thread asks for."""
        down, across = self.spans(window)
        rows = down if _all_filters(window, width) else self.rows * window.kh
        return rows * across + window.kh * window.kw + self.rows * self.columns


def _all_filters(window: StageWindow, width: int) -> bool:
    return window.kh * window.kw * width <= _FILTER_REGISTERS


_TILES = tuple(PixelTile(rows, columns) for rows in (1, 2, 4) for columns in (1, 2, 4, 8))


def best_pixel_tile(window: StageWindow, sizes: Sequence[int | None], width: int, gpu: Gpu) -> PixelTile:
    """The tile with the least estimated time: what is asked for at the speed of the cache, by threads enough.

    Args:
        window: of the convolution.
        sizes: images, rows, columns and channels of the result; `None` where symbolic.
        width: channels of a thread.
        gpu: the device.
    """
    images, rows, columns, channels = (_UNKNOWN if size is None and i else (size or 1) for i, size in enumerate(sizes))
    clock = gpu.flops["float32"] / (2 * fma_lanes(gpu) * gpu.multiprocessors)

    def seconds(tile: PixelTile) -> float:
        threads = images * -(-rows // tile.rows) * -(-columns // tile.columns) * -(-channels // width)
        asked = threads * tile.vectors(window, width) * width * 4 / (L2_BYTES_A_CYCLE * gpu.multiprocessors * clock)
        return asked / min(1.0, threads / (gpu.multiprocessors * _RESIDENT))

    most = [
        t for t in _TILES if t.registers(window, width) <= _REGISTERS and (t.rows == 1 or _all_filters(window, width))
    ]
    return min(most, key=lambda tile: (seconds(tile), tile.rows * tile.columns))


def lower(kernel: Kernel, gpu: Gpu) -> list[Launch] | None:
    """See `backends.gpu.schedule.Rule`."""
    stage = kernel.stages[0]
    if stage.kind != "depthwise" or len(stage.spatial) != 4 or known(stage.spatial[3].extent) is None:
        return None
    sources = {load.source for load in loads_of(stage.value) if not load.source.same_as(stage.buffer)}
    if sources != {stage.operand(4), stage.operand(3)}:  # something was computed on the way
        return None
    return with_epilogue(kernel, gpu, lambda epilogue: _Depthwise(stage, epilogue, gpu).launch())


class _Depthwise:
    """Builds the launch of one convolution."""

    def __init__(self, stage: Stage, epilogue: Epilogue, gpu: Gpu) -> None:
        self.stage, self.epilogue, self.gpu = stage, epilogue, gpu
        self.window = StageWindow.of(stage)
        self.data, self.filters = stage.operand(4), stage.operand(3)
        self.images, self.rows, self.columns, self.channels = (a.extent for a in stage.spatial)
        self.dtype = sum_type(str(stage.buffer.dtype))
        self.width = self._vector()
        sizes = [known(axis.extent) for axis in stage.spatial]
        self.tile = best_pixel_tile(self.window, sizes, self.width, gpu)
        self.down, self.across = self.tile.spans(self.window)
        self.whole = _all_filters(self.window, self.width)
        count = self.tile.rows * self.tile.columns
        self.sums = registers(count * self.width, self.dtype, "sums")
        self.row = registers(self.across * self.width, str(self.data.dtype), "row")
        self.beside = self._read_beside()
        self.held = {b: registers(self.width, str(b.dtype), "held") for b in self.beside if len(b.shape) == 1}
        taps = self.window.kw * (self.window.kh if self.whole else 1)
        self.taps = registers(taps * self.width, str(self.filters.dtype), "taps")

    def _vector(self) -> int:
        """Channels of a thread: neighbours that one access can move, which are aligned."""
        types = {str(buffer.dtype) for buffer in (self.data, self.filters, self.epilogue.target)}
        rows = [known(buffer.shape[-1]) for buffer in (self.data, self.filters, self.epilogue.target)]
        aligned = all(size is not None and size % _VECTOR == 0 for size in rows)
        return _VECTOR if aligned and types <= {"float32", "int32"} else 1

    def launch(self) -> Launch:
        """The launch: blocks of channels by pixels of a row."""
        vectors = int(self.channels) // self.width
        across = _threads_across(vectors)
        beside = max(1, min(_BLOCK, self.gpu.threads) // across)
        size = known(self.columns)
        if size is not None:
            beside = min(beside, -(-size // self.tile.columns))
        blocks = [
            self.images,
            _parts(self.rows, self.tile.rows),
            _parts(self.columns, self.tile.columns * beside),
            i64(-(-vectors // across)),
        ]

        def body(block: Ids, thread: Ids) -> Stmt:
            return block_places(block[0], blocks, lambda place: one(place, thread))

        def one(place: list[Expr], thread: Ids) -> Stmt:
            image, y, x, channels = place
            channel = simplify(channels * across + thread[0])
            first = simplify((x * beside + thread[1]) * self.tile.columns)
            inside = [channel < vectors if vectors % across else None, first < self.columns]
            return named(
                [channel, simplify(y * self.tile.rows), first],
                lambda own: holds(inside, self._computed(image, own[1], own[2], own[0])),
            )

        return Launch("depthwise", (product(blocks), i64(1), i64(1)), (across, beside, 1), body)

    def _computed(self, image: Expr, y: Expr, x: Expr, channel: Expr) -> Stmt:
        """All pixels of a thread."""
        window, tile = self.window, self.tile
        top, left = simplify(y * window.sh - window.ph), simplify(x * window.sw - window.pw)
        count = tile.rows * tile.columns

        def at(corner: list[Expr]) -> Stmt:
            statements = [
                scatter(self.sums, zeros(self.dtype, self.width), i * self.width, self.width) for i in range(count)
            ]
            statements += [self._beside(source, register, [], channel) for source, register in self.held.items()]
            if self.whole:
                statements += [self._filter(ry, rx, channel) for ry in range(window.kh) for rx in range(window.kw)]
                for down in range(self.down):
                    users = [
                        (r, down - r * window.sh)
                        for r in range(tile.rows)
                        if 0 <= down - r * window.sh <= (window.kh - 1) * window.dh
                        and (down - r * window.sh) % window.dh == 0
                    ]
                    if users:
                        statements += self._fetched(image, corner, down, channel)
                        statements += [s for r, below in users for s in self._taken(r, below // window.dh)]
            else:
                for ry in range(window.kh):
                    statements += [self._filter(ry, rx, channel) for rx in range(window.kw)]
                    statements += self._fetched(image, corner, ry * window.dh, channel)
                    statements += self._taken(0, ry)
            return sequence([*statements, *self._stored(image, y, x, channel)])

        return allocate([self.sums, self.row, self.taps, *self.held.values()], named([top, left], at))

    def _filter(self, ry: int, rx: int, channel: Expr) -> Stmt:
        place = ((ry if self.whole else 0) * self.window.kw + rx) * self.width
        value = BufferLoad(self.filters, [i64(ry), i64(rx), ramp(channel * self.width, self.width)])
        return scatter(self.taps, value, place, self.width)

    def _fetched(self, image: Expr, corner: list[Expr], down: int, channel: Expr) -> list[Stmt]:
        """A row of the image below the tile, zeros outside of the image."""
        window = self.window
        y = simplify(corner[0] + down)
        nothing = zeros(str(self.data.dtype), self.width)
        used = {p * window.sw + rx * window.dw for p in range(self.tile.columns) for rx in range(window.kw)}
        statements = []
        for j in sorted(used):
            x = simplify(corner[1] + j)
            value = BufferLoad(self.data, [image, y, x, ramp(channel * self.width, self.width)])
            conditions = [
                y >= 0 if down < window.ph else None,
                None
                if self._below(1, self.rows, self.tile.rows, window.sh, down - window.ph)
                else y < self.data.shape[1],
                x >= 0 if j < window.pw else None,
                None
                if self._below(2, self.columns, self.tile.columns, window.sw, j - window.pw)
                else x < self.data.shape[2],
            ]
            load = scatter(self.row, value, j * self.width, self.width)
            statements.append(holds(conditions, load, scatter(self.row, nothing, j * self.width, self.width)))
        return statements

    def _below(self, axis: int, results: Expr, tile: int, stride: int, offset: int) -> bool:
        """Whether that offset from a tile's corner lies before the end of the image, whichever tile it is."""
        size, count = known(self.data.shape[axis]), known(results)
        return size is not None and count is not None and (-(-count // tile) - 1) * tile * stride + offset < size

    def _taken(self, r: int, ry: int) -> list[Stmt]:
        """The products of a row of the image with a row of taps, for a row of pixels."""
        window, width = self.window, self.width
        line = (ry if self.whole else 0) * window.kw
        statements = []
        for p in range(self.tile.columns):
            place = (r * self.tile.columns + p) * width
            for rx in range(window.kw):
                value = cast(gather(self.row, (p * window.sw + rx * window.dw) * width, width), self.dtype, width)
                tap = cast(gather(self.taps, (line + rx) * width, width), self.dtype, width)
                statements.append(scatter(self.sums, gather(self.sums, place, width) + value * tap, place, width))
        return statements

    def _stored(self, image: Expr, y: Expr, x: Expr, channel: Expr) -> list[Stmt]:
        tile, width, target = self.tile, self.width, self.epilogue.target
        statements: list[Stmt] = []
        for r in range(tile.rows):
            for p in range(tile.columns):
                place = (r * tile.columns + p) * width
                row, column = simplify(y + r), simplify(x + p)
                conditions = [
                    row < self.rows if r and not _divides(tile.rows, self.rows) else None,
                    column < self.columns if p and not _divides(tile.columns, self.columns) else None,
                ]
                statements.append(holds(conditions, self._store(target, [image, row, column], channel, place, width)))
        return statements

    def _store(self, target: Var, lead: list[Expr], channel: Expr, place: int, width: int) -> Stmt:
        """Finish the channels of a pixel, and store them."""
        heavy = str(self.stage.buffer.dtype)

        def sum_of(lane: int) -> Expr:
            return cast(gather(self.sums, place + lane), heavy)

        if width == 1:
            return BufferStore(target, self.epilogue.value([*lead, channel], sum_of(0)), [*lead, channel])
        done = registers(width, str(target.dtype), "done")
        own = {b: registers(width, str(b.dtype), "own") for b in self.beside if len(b.shape) > 1}
        loads = [self._beside(source, register, lead, channel) for source, register in own.items()]
        held = {**self.held, **own}
        values = [scatter(done, self._value(held, lead, channel, lane, sum_of(lane)), lane) for lane in range(width)]
        store = BufferStore(target, gather(done, 0, width), [*lead, ramp(channel * width, width)])
        return allocate([done, *own.values()], sequence([*loads, *values, store]))

    def _beside(self, source: Var, register: Var, lead: list[Expr], channel: Expr) -> Stmt:
        """What the tail reads along the channels, by one access."""
        indices = [*(lead if len(source.shape) > 1 else []), ramp(channel * self.width, self.width)]
        return scatter(register, BufferLoad(source, indices), 0, self.width)

    def _value(self, held: dict[Var, Var], lead: list[Expr], channel: Expr, lane: int, total: Expr) -> Expr:
        """A channel of a pixel, by what is in registers."""
        tail = self.epilogue.tail
        if tail is None:
            return total

        def load(node: TensorLoad) -> Expr | None:
            if node.source.same_as(self.stage.buffer):
                return total
            return gather(held[node.source], lane) if node.source in held else None

        point = [*lead, simplify(channel * self.width + lane)]
        return substitute(tail.value, {a.var: i64(i) for a, i in zip(tail.spatial, point, strict=True)}, load)

    def _read_beside(self) -> list[Var]:
        """Buffers that the tail reads at the place of the result, or by its channel alone."""
        tail = self.epilogue.tail
        if tail is None or self.width == 1:
            return []
        found: dict[Var, bool] = {}
        for load in loads_of(tail.value):
            axes = tail.spatial[len(tail.spatial) - len(load.indices) :]
            size = known(load.source.shape[-1])
            fits = len(load.indices) in (1, 4) and size is not None and size % _VECTOR == 0
            in_place = all(i.same_as(a.var) for i, a in zip(load.indices, axes, strict=True))
            kind = str(load.source.dtype) in ("float32", "int32")
            found[load.source] = found.get(load.source, True) and fits and in_place and kind
        return [source for source, fits in found.items() if fits and not source.same_as(self.stage.buffer)]


def _divides(size: int, total: Expr) -> bool:
    whole = known(total)
    return whole is not None and whole % size == 0


def _parts(total: Expr, size: int) -> Expr:
    return simplify(tirx.floordiv(total + (size - 1), i64(size)))


def _threads_across(vectors: int) -> int:
    """Threads along the channels: all of them, or the largest part that leaves none idle."""
    if vectors <= _ACROSS:
        return vectors
    parts = [n for n in range(_ACROSS // 2, _ACROSS + 1) if vectors % n == 0]
    return max(parts, default=_ACROSS)
