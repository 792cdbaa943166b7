"""Sliding windows: sizes, padding and strides of pools and convolutions, with symbolic spatial sizes.

A window of `kernel` taps, `dilations` apart, moves by `strides` over `sizes` elements padded by `before` and `after`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir
from tvm import sym, te, tirx

from backends.relax.attributes import get_int, get_ints, get_str
from backends.relax.values import Refused, prim, static_int


@dataclass(frozen=True)
class Window:
    """One sliding window; every tuple has one entry a spatial axis.

    Attributes:
        sizes: the input's spatial sizes.
        kernel: the number of taps.
        strides: the step from one output to the next.
        dilations: the distance between taps.
        before: the padding in front.
        after: the padding behind, as the model states it (rounding up may read beyond it).
        outputs: the number of positions.
        rounded_up: whether the last window may reach beyond the input and its padding.
    """

    sizes: tuple[tirx.Expr, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[tirx.Expr, ...]
    after: tuple[tirx.Expr, ...]
    outputs: tuple[tirx.Expr, ...]
    rounded_up: bool = False

    @classmethod
    def of(
        cls,
        node: ir.Node,
        sizes: Sequence[tirx.Expr],
        kernel: Sequence[int],
        named: Callable[[tirx.Expr], tirx.Expr] = lambda size: size,
    ) -> Window:
        """The window that a node's attributes describe.

        Args:
            node: a pool or a convolution.
            sizes: the input's spatial sizes.
            kernel: the taps an axis.
            named: makes a symbol of a computed size; see `Emitter.derived`.

        Raises:
            Refused: the attributes contradict the rank.
        """
        rank = len(sizes)
        strides = get_ints(node, "strides", [1] * rank) or []
        dilations = get_ints(node, "dilations", [1] * rank) or []
        pads = get_ints(node, "pads", [0] * 2 * rank) or []
        if not (len(kernel) == len(strides) == len(dilations) == rank and len(pads) == 2 * rank):
            raise Refused(f"kernel {list(kernel)}, strides {strides} or pads {pads} do not fit {rank} spatial axes")
        auto_pad = get_str(node, "auto_pad", "NOTSET")
        spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
        if auto_pad.startswith("SAME"):
            before, after = _same(auto_pad, sizes, spans, strides)
        else:
            explicit = pads if auto_pad == "NOTSET" else [0] * 2 * rank
            before, after = [prim(p) for p in explicit[:rank]], [prim(p) for p in explicit[rank:]]
        round_up = get_int(node, "ceil_mode", 0) == 1
        outputs = [
            named(_positions(*axis, round_up=round_up))
            for axis in zip(sizes, spans, strides, before, after, strict=True)
        ]
        return cls(
            tuple(sizes),
            tuple(kernel),
            tuple(strides),
            tuple(dilations),
            tuple(before),
            tuple(after),
            tuple(outputs),
            round_up,
        )

    @property
    def taps(self) -> int:
        """The number of elements that a window covers."""
        return math.prod(self.kernel)

    def padded(self) -> tuple[tirx.Expr, ...]:
        """The sizes that the windows reach over, padding included; at least what is read by the last window."""
        spans = [d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]
        return tuple(
            _simplified((o - 1) * s + span) for o, s, span in zip(self.outputs, self.strides, spans, strict=True)
        )

    def inside(self) -> bool:
        """Whether no window reads outside the input."""
        if any(static_int(b) != 0 for b in self.before):
            return False
        if not self.rounded_up and all(static_int(a) == 0 for a in self.after):
            return True  # of sizes that only the run knows, too
        return all(
            (p := static_int(padded)) is not None and (n := static_int(size)) is not None and p <= n
            for padded, size in zip(self.padded(), self.sizes, strict=True)
        )

    def taps_at(self, position: Sequence[tirx.Expr], *, count_padding: bool) -> tirx.Expr:
        """How many taps of the window at an output position lie in the input, or in it and its stated padding."""
        count = prim(1)
        for i, axis in enumerate(position):
            start = axis * self.strides[i] - self.before[i]
            low = -self.before[i] if count_padding else prim(0)
            high = self.sizes[i] + (self.after[i] if count_padding else 0)
            count = count * (_taps_below(high - start, self, i) - _taps_below(low - start, self, i))
        return count


def pad_channels_last(x: te.Tensor, window: Window, value: tirx.Expr) -> te.Tensor:
    """Pad x: [N, spatial..., C] so that every window of it can be read."""
    if window.inside():
        return x
    sizes = x.shape[1:-1]

    def element(*index: tirx.Expr) -> tirx.Expr:
        batch, *position, channel = index
        moved = [p - b for p, b in zip(position, window.before, strict=True)]
        known = [c for p, size in zip(moved, sizes, strict=True) for c in (tirx.GE(p, prim(0)), tirx.LT(p, size))]
        return tirx.if_then_else(tirx.all(*known), x[(batch, *moved, channel)], value)

    return te.compute((x.shape[0], *window.padded(), x.shape[-1]), element, name="padded")


def _same(
    auto_pad: str, sizes: Sequence[tirx.Expr], spans: Sequence[int], strides: Sequence[int]
) -> tuple[list[tirx.Expr], list[tirx.Expr]]:
    before, after = [], []
    for size, span, stride in zip(sizes, spans, strides, strict=True):
        positions = tirx.floordiv(size + (stride - 1), prim(stride))
        total = tirx.max((positions - 1) * stride + span - size, prim(0))
        small = tirx.floordiv(total, prim(2))
        first, second = (small, total - small) if auto_pad == "SAME_UPPER" else (total - small, small)
        before.append(_simplified(first))
        after.append(_simplified(second))
    return before, after


def _positions(
    size: tirx.Expr, span: int, stride: int, before: tirx.Expr, after: tirx.Expr, *, round_up: bool
) -> tirx.Expr:
    free = size + before + after - span
    if not round_up:
        return _simplified(tirx.floordiv(free, prim(stride)) + 1)
    rounded = tirx.floordiv(free + (stride - 1), prim(stride)) + 1
    starting_inside = tirx.floordiv(size + before - 1, prim(stride)) + 1
    return _simplified(tirx.min(rounded, starting_inside))


def _taps_below(limit: tirx.Expr, window: Window, axis: int) -> tirx.Expr:
    """The taps of one axis whose offset from the window's start is below `limit`."""
    step = window.dilations[axis]
    below = tirx.floordiv(limit + (step - 1), prim(step))
    return tirx.min(tirx.max(below, prim(0)), prim(window.kernel[axis]))


def _simplified(expr: tirx.Expr) -> tirx.Expr:
    return sym.Analyzer().simplify(expr)
