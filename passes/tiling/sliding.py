"""What one piece computes of each value, where the piece before it has left the rows that both need.

Pieces of an image overlap: a convolution of three rows needs one row on each side. Those rows are not computed again:

    rows that a piece needs:      [a ........ b)
    rows that are there:     [c .... d)               of the piece before
    it computes                      [d ..... b)
    it joins                 [a .. d) [d .... b)

The rows `[a, d)`, the *tail*, are copied as soon as the piece before has read its rows for the last time, so that only
tails live from one piece to the next. (Lin et al. 2021, "MCUNetV2", compute the halo again; Alwani et al. 2016, "Fused
Layer CNN Accelerators", describe both.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from passes.tiling.cut import WHOLE, Cut, Window
from passes.tiling.facts import BYTES_PER_SECOND, Facts
from passes.tiling.rules import VIEWS

__all__ = ["PiecePlan", "Sliding", "merged"]

_TIMES_COPIED = 4
"""A tail is read and written when it is kept, and again when it is joined."""


@dataclass
class PiecePlan:
    """What a piece computes.

    Attributes:
        cuts: Of each value, how the windows are computed.
        sliding: The values of which there is one window, which the next piece may need the end of.
        tails: Of those of which the piece before has left something: what that is.
        kept: Those of which it has left all.
    """

    cuts: dict[ir.Value, list[Cut]] = field(default_factory=dict)
    sliding: set[ir.Value] = field(default_factory=set)
    tails: dict[ir.Value, Window] = field(default_factory=dict)
    kept: set[ir.Value] = field(default_factory=set)


class Sliding:
    """Remembers from piece to piece what is there.

    Args:
        facts: Of the graph.
    """

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self._there: dict[ir.Value, Window] = {}
        self._seconds = {value: unit.seconds for unit in facts.units for value in unit.outputs}

    def windows(self, value: ir.Value, wanted: Sequence[Window], plan: PiecePlan) -> list[Window]:
        """The windows of a value that are to be computed for those that are wanted."""
        windows = merged(wanted)
        if WHOLE in windows or not windows or not self._may_slide(value, windows[0].axis):
            return windows
        there = self._there.get(value)
        if len(windows) > 1 and there is None:
            return windows  # Not the same rows for two operators behind it, but different parts.
        window = windows[0].hull(windows[-1])
        plan.sliding.add(value)
        if there is None or there.axis != window.axis or not there.start <= window.start < there.stop:
            self._there[value] = window
            return [window]
        if window.stop <= there.stop:
            plan.kept.add(value)
            return []
        if not self._pays(value, Window(window.axis, window.start, there.stop), window):
            self._there[value] = window
            return [window]
        plan.tails[value] = window
        return [Window(window.axis, there.stop, window.stop)]

    def computed(self, value: ir.Value, cut: Cut, plan: PiecePlan) -> None:
        """Note what a cut gives, which may be more than was asked for."""
        if value not in plan.sliding:
            return
        window = plan.tails.pop(value, None)
        gives = cut.gives
        if window is not None and window.start < gives.start:
            plan.tails[value] = Window(gives.axis, window.start, gives.start)
            gives = Window(gives.axis, window.start, gives.stop)
        self._there[value] = gives

    def _may_slide(self, value: ir.Value, axis: int) -> bool:
        """What is never stored cannot be kept; a part of a Split is no value of its own."""
        node = value.producer()
        return axis >= 2 and value not in self.facts.unstored and node is not None and node.op_type not in _NOT_MADE

    def _pays(self, value: ir.Value, tail: Window, window: Window) -> bool:
        """Whether to keep the tail takes less time than to compute it again, here alone."""
        shape = self.facts.shape(value)
        if shape is None or value not in self._seconds:
            return False
        joined = self.facts.is_joined(value, window.axis)
        rows = _TIMES_COPIED * tail.size if joined else 2 * (tail.size + window.size)
        again = self._seconds[value] * tail.size / shape[window.axis]
        return rows * self.facts.bytes(value) / shape[window.axis] / BYTES_PER_SECOND < again


_NOT_MADE = VIEWS | {"Split"}


def merged(windows: Sequence[Window]) -> list[Window]:
    """As few windows as hold all of these, none of which overlap."""
    if WHOLE in windows:
        return [WHOLE]
    result: list[Window] = []
    for window in sorted(set(windows), key=lambda w: (w.axis, w.start, w.stop)):
        if result and result[-1].overlaps(window):
            result[-1] = result[-1].hull(window)
        else:
            result.append(window)
    return result
