"""Which segments to compute in pieces, so that a graph stays within its budget for the least time.

The units of a graph in their order are divided into segments. A unit on its own runs as it is; a longer segment runs in
pieces, and only what is needed behind it is stored whole. What a segment needs depends on nothing but where it begins
and ends, so the cheapest division is a shortest path over the borders between units, and the smallest budget that can
be met is the path whose worst segment is best.

A value that is kept for long, such as a skip connection, can be *dropped*: it is then computed again wherever a segment
reads it. The search is done for a few sets of such values, largest first (after Chen et al. 2016, "Training Deep Nets
with Sublinear Memory Cost", where checkpoints divide a network in the same way; pieces with a halo are those of Lin et
al. 2021, "MCUNetV2", and pieces of channels and heads those of Stahl et al. 2023, "Fused Depthwise Tiling").
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from passes.tiling.facts import Facts, Unit
from passes.tiling.lifetimes import Lifetimes
from passes.tiling.memory import Need, need_of
from passes.tiling.pieces import Segment, Way, steps_of
from passes.tiling.rules import is_cuttable
from passes.tiling.signature import signature_of
from passes.tiling.steps import Step

__all__ = ["Choice", "Plan", "Search", "steps_of_choice"]

_COUNTS = (2, 4, 8, 12, 16)
"""How many pieces are tried; each is a copy of the segment's operators."""

_LONGEST = 40
"""Units of a segment."""

_MOST_DROPPED = 3

_CHEAP = 0.1
"""A plan that takes so little longer, as a part of the time, that no other one is looked for."""

_UNEVEN = 1.05
"""Pieces are not all of the same size, so what they need does not shrink quite evenly."""

_EXACTNESS = 0.03
"""How far the smallest peak that is found may be from the smallest there is."""


@dataclass(frozen=True)
class Choice:
    """A segment of a plan.

    Attributes:
        start: Its first unit.
        stop: The unit behind its last.
        way: How it is cut; `None` where it runs as it is.
        peak: Bytes that are alive at its worst moment.
        seconds: What it takes more than its units did.
    """

    start: int
    stop: int
    way: Way | None
    peak: int
    seconds: float


@dataclass(frozen=True)
class Plan:
    """A division of a graph.

    Attributes:
        choices: The segments, in order.
        lifetimes: Of the values, with those that are dropped.
    """

    choices: tuple[Choice, ...]
    lifetimes: Lifetimes

    @property
    def peak(self) -> int:
        """Bytes that are alive at the worst moment."""
        return max((choice.peak for choice in self.choices), default=0)

    @property
    def seconds(self) -> float:
        """What the pieces take more than the whole."""
        return sum(choice.seconds for choice in self.choices)


class Search:
    """Looks for plans of one graph; what it finds out for one budget it remembers for the next."""

    def __init__(self, facts: Facts) -> None:
        memo: dict[object, Need | None] = {}
        self.facts = facts
        self._paths = [_Paths(facts, lifetimes, memo) for lifetimes in Lifetimes.variants(facts, _MOST_DROPPED)]

    @property
    def peak(self) -> int:
        """What the graph needs as it is, in bytes."""
        return self._paths[0].lifetimes.most

    @property
    def seconds(self) -> float:
        """What the graph takes as it is."""
        return sum(unit.seconds for unit in self.facts.units)

    def cheapest(self, budget: int) -> Plan | None:
        """The plan that takes the least time within a budget in bytes; `None` where there is none."""
        best: Plan | None = None
        for paths in self._paths:
            plan = paths.cheapest(budget)
            if plan is not None and (best is None or plan.seconds < best.seconds):
                best = plan
            if best is not None and best.seconds <= _CHEAP * self.seconds:
                break  # To compute something again takes longer.
        return best

    def smallest(self) -> Plan:
        """The plan with the smallest peak, to within a few percent; the same whatever budget was asked for before."""
        best = self.cheapest(self.peak)
        assert best is not None, "without pieces that is what it needs"
        low, high = 0, best.peak
        while high - low > max(1, low * _EXACTNESS):
            middle = (low + high) // 2
            plan = self.cheapest(middle)
            if plan is None:
                low = middle
            else:
                best, high = plan, plan.peak
        return best


@dataclass
class _Paths:
    """Plans with the same values dropped."""

    facts: Facts
    lifetimes: Lifetimes
    memo: dict[object, Need | None]
    _segments: dict[tuple[int, int], tuple[Segment, frozenset[ir.Value], object]] = field(default_factory=dict)

    @property
    def units(self) -> list[Unit]:
        return self.facts.units

    def cheapest(self, budget: int) -> Plan | None:
        """The shortest path over segments within the budget."""
        count = len(self.units)
        best: list[tuple[float, Choice | None]] = [(math.inf, None)] * (count + 1)
        best[0] = (0.0, None)
        for start in range(count):
            if best[start][0] < math.inf and self.lifetimes.before(start) <= budget:
                for choice in self._within(start, budget):
                    cost = best[start][0] + choice.seconds
                    if cost < best[choice.stop][0]:
                        best[choice.stop] = (cost, choice)
        if best[count][0] == math.inf:
            return None
        path: list[Choice] = []
        while count:
            last = best[count][1]
            assert last is not None, "it was reached"
            path.append(last)
            count = last.start
        return Plan(tuple(reversed(path)), self.lifetimes)

    def _within(self, start: int, budget: int) -> Iterator[Choice]:
        """The segments from here that stay within the budget, in as few pieces as that takes."""
        single = self._single(start)
        if single is not None and single.peak <= budget:
            yield single
        for stop in self._stops(start, budget):
            for axis in self._axes(start, stop):
                choice = self._fewest(start, stop, axis, budget)
                if choice is not None:
                    yield choice

    def _fewest(self, start: int, stop: int, axis: int, budget: int) -> Choice | None:
        """A segment in as few pieces as fit."""
        before = self.lifetimes.before(start)
        found: list[tuple[int, int]] = []
        for count in _COUNTS:
            if self._is_uneven(stop, axis, count) or (found and _least(before, found, count) > budget * _UNEVEN):
                continue
            choice = self._cut(start, stop, Way(axis, count))
            if choice is None and axis >= 0:
                return None
            if choice is None:
                continue  # Of heads that are cut as a whole there may be too few pieces for a sum.
            if choice.peak <= budget:
                return choice
            found.append((count, choice.peak))
        return None

    def _is_uneven(self, stop: int, axis: int, count: int) -> bool:
        """Whether strips of an image would be of different sizes, each of which takes kernels of its own."""
        shape = self.facts.shape(self.units[stop - 1].outputs[0]) if self.units[stop - 1].outputs else None
        return (
            shape is not None
            and axis >= 2
            and axis < len(shape)
            and count & (count - 1) != 0
            and shape[axis] % count != 0
        )

    def _stops(self, start: int, budget: int) -> Iterator[int]:
        """The ends of segments from here in which something is too large, up to a node that cannot be cut."""
        too_large = False
        for stop in range(start + 1, min(start + _LONGEST, len(self.units)) + 1):
            if not is_cuttable(self.units[stop - 1].nodes):
                return
            too_large = too_large or self._is_too_large(stop - 1, budget)
            targets = self.lifetimes.targets(start, stop)
            # In the end the pieces of a result are there, and the result.
            if too_large and targets and self.lifetimes.before(stop) + self.facts.bytes(targets[-1]) <= budget:
                yield stop

    def _is_too_large(self, index: int, budget: int) -> bool:
        single = self._single(index)
        return single is None or single.peak > budget

    def _axes(self, start: int, stop: int) -> list[int]:
        targets = self.lifetimes.targets(start, stop)
        shape = self.facts.shape(targets[-1]) or ()
        # The other axis of an image is no better than the first.
        axes = [axis for axis, size in enumerate(shape) if size > 1 and axis < 3]
        return [*axes, -1] if len(targets) == 1 else axes

    def _single(self, index: int) -> Choice | None:
        """A unit as it is; one of which everything is dropped does not run at all."""
        lifetimes, unit = self.lifetimes, self.units[index]
        if unit.outputs and lifetimes.dropped.issuperset(unit.outputs):
            return Choice(index, index + 1, None, lifetimes.before(index), -unit.seconds)
        if not lifetimes.dropped.isdisjoint(unit.reads):
            return None
        return Choice(index, index + 1, None, lifetimes.peak(index), 0.0)

    def _cut(self, start: int, stop: int, way: Way) -> Choice | None:
        segment, dying, signature = self._segment(start, stop)
        if not segment.targets:
            return None
        known = way, signature
        if known not in self.memo:
            steps = steps_of(self.facts, segment, way)
            self.memo[known] = None if steps is None else need_of(self.facts, steps, segment.targets, dying)
        need = self.memo[known]
        if need is None:
            return None
        was = sum(unit.seconds for unit in self.units[start:stop])
        return Choice(start, stop, way, self.lifetimes.before(start) + need.bytes, need.seconds - was)

    def _segment(self, start: int, stop: int) -> tuple[Segment, frozenset[ir.Value], object]:
        if (start, stop) not in self._segments:
            segment, dying = self.lifetimes.segment(start, stop), self.lifetimes.dying(start, stop)
            self._segments[start, stop] = segment, dying, signature_of(self.facts, segment, dying)
        return self._segments[start, stop]


def _least(before: int, found: Sequence[tuple[int, int]], count: int) -> float:
    """What so many pieces need at least, from the peaks of fewer pieces.

    A moment needs some bytes, and some more that shrink with the pieces. The worst moment is a convex function of one
    over the count, so it lies above the straight line through two counts; `before` is what does not shrink at any.
    """
    last, peak = found[-1]
    steepest = float(peak - before)
    if len(found) > 1:
        first, higher = found[-2]
        steepest = (higher - peak) / (last / first - 1)
    return peak - steepest * (1 - last / count)


def steps_of_choice(facts: Facts, lifetimes: Lifetimes, choice: Choice) -> list[Step]:
    """The steps of a segment of a plan."""
    assert choice.way is not None, "it is cut"
    steps = steps_of(facts, lifetimes.segment(choice.start, choice.stop), choice.way)
    assert steps is not None, "its need was found"
    return steps
