"""From when to when each value is there, while the units run in their order, and while some values are dropped.

The inputs of the graph count until they are read for the last time. Its outputs count all the time where the graph is
compiled: they have their own memory beside the arena, which does not shrink for them. Pieces that a compiler writes
where they belong are no values of their own: the whole begins with the first of them. Nor are windows that it reads
where they lie: what they lie in is needed as long as they are.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from optimizer.ir.query import input_at, int_attribute, is_op, known_ints
from passes.tiling.facts import BYTES_PER_SECOND, Facts, is_product
from passes.tiling.pieces import Segment

__all__ = ["Lifetimes"]

_LONG = 4
"""A value that is read so many units after it was made is one that may be dropped."""


@dataclass
class Lifetimes:
    """Where values begin and end.

    Args:
        facts: Of the graph.
        dropped: Values that are not kept: whoever reads them computes them again, from what is kept.
        seen: Whether windows are read where they lie, which may keep something large for long.

    Attributes:
        seconds: What all units take, without the copies that are not made.
    """

    facts: Facts
    dropped: frozenset[ir.Value] = frozenset()
    seen: bool = False
    seconds: float = field(init=False)
    _made: dict[ir.Value, int] = field(init=False)
    _last: dict[ir.Value, int] = field(init=False)
    _before: list[int] = field(init=False)
    _begun: list[int] = field(init=False)

    def __post_init__(self) -> None:
        graph, units = self.facts.model.graph, self.facts.units
        self._made = dict.fromkeys(graph.inputs, -1)
        self._made.update((value, index) for index, unit in enumerate(units) for value in unit.outputs)
        self._last = {}
        for index, unit in enumerate(units):
            for value in unit.reads:
                self._last.update(dict.fromkeys(self._sources(value), index))
        self._last.update((value, len(units)) for value in graph.outputs)
        self.seconds = sum(unit.seconds for unit in units)
        parts = self._parts()
        seen = self._windows(parts) if self.seen else set()
        begin = {value: made for value, made in self._made.items() if value not in parts and value not in seen}
        for part, whole in parts.items():
            begin[whole] = min(begin[whole], self._made[part])
        begin.update((value, -1) for value in graph.outputs if self.facts.is_apart(value))
        change = [0] * (len(units) + 2)
        self._begun = [0] * len(units)
        for value, first in begin.items():
            if value not in self.dropped:
                size = self.facts.bytes(value)
                change[first + 1] += size
                change[max(self._last.get(value, first), self._made[value]) + 1] -= size
                if first >= 0:
                    self._begun[first] += size
        self._before = [sum(change[: index + 1]) for index in range(len(units) + 1)]

    def _sources(self, value: ir.Value) -> Iterator[ir.Value]:
        """The value, and what it is computed from if it is dropped."""
        yield value
        if value in self.dropped:
            for source in self.facts.units[self._made[value]].reads:
                yield from self._sources(source)

    def before(self, index: int) -> int:
        """Bytes that are there when a unit begins: what was made before it, and is needed by it or later."""
        return self._before[index]

    def peak(self, index: int) -> int:
        """Bytes that are there while a unit runs as it is."""
        unit = self.facts.units[index]
        return self._before[index] + self._begun[index] + unit.inner - self._overwritten(index)

    @property
    def most(self) -> int:
        """Bytes that are there at the worst moment, with all units as they are."""
        return max((self.peak(index) for index in range(len(self.facts.units))), default=0)

    def _parts(self) -> dict[ir.Value, ir.Value]:
        """Values that are written where they belong in another one, and that one."""
        result: dict[ir.Value, ir.Value] = {}
        for index, unit in enumerate(self.facts.units):
            node, whole = unit.nodes[-1], unit.nodes[-1].outputs[0]
            tails = self._tails(node)
            pieces = [value for value in node.inputs if value is not None and self._last.get(value) == index]
            alone = len(unit.nodes) == 1 and len(set(pieces)) == len(node.inputs)
            if is_op(node, "Concat") and alone and all(self._made.get(value, -1) >= 0 for value in pieces):
                axis = int_attribute(node, "axis", 0) % len(self.facts.shape(whole) or (0,))
                if self.facts.is_joined(whole, axis) and not any(self.facts.is_apart(value) for value in pieces):
                    result.update((value, whole) for value in pieces if value not in result and value not in tails)
                    copied = 2 * sum(map(self.facts.bytes, tails)) / BYTES_PER_SECOND
                    self.seconds += copied - unit.seconds
        for part, whole in list(result.items()):
            while whole in result:
                whole = result[whole]
            result[part] = whole
        return result

    def _tails(self, node: ir.Node) -> set[ir.Value]:
        """What a Concat joins that was cut out of something computed: it is copied."""
        if not is_op(node, "Concat"):
            return set()
        cut_out = {value for value in node.inputs if value is not None and is_op(value.producer(), "Slice")}
        tails = {
            value for value in cut_out if (source := _sliced(value)) is not None and self._made.get(source, -1) >= 0
        }
        return tails if len(tails) < len(node.inputs) else set()

    def _windows(self, parts: Collection[ir.Value]) -> set[ir.Value]:
        """Windows that are read where they lie; what they lie in becomes longer-lived."""
        result: set[ir.Value] = set()
        kept_apart = {value for unit in self.facts.units for value in self._tails(unit.nodes[-1])}
        for unit in self.facts.units:
            node = unit.nodes[-1]
            source, window = input_at(node, 0), node.outputs[0]
            axes = known_ints(input_at(node, 3)) if is_op(node, "Slice") and len(unit.nodes) == 1 else None
            if axes is None or len(axes) != 1 or source is None or window in kept_apart or window in parts:
                continue
            axis = axes[0] % len(self.facts.shape(window) or (0,))
            lies = self.facts.is_joined(window, axis) and self.facts.is_aligned(window, axis)
            if self._made.get(source, -1) >= 0 and lies:
                result.add(window)
                self._last[source] = max(self._last[source], self._last.get(window, -1))
                self.seconds -= unit.seconds
        return result

    def _overwritten(self, index: int) -> int:
        """Bytes of a summand that a compiler which fuses writes the sum over, as nothing needs it any more.

        An `Attention` gives its rows where the queries were, if those are a tensor of their own.
        """
        unit = self.facts.units[index]
        node = unit.nodes[-1]
        (result, *_) = node.outputs
        if not self.facts.fused or not is_op(node, "Add", "Attention") or self.facts.is_apart(result):
            return 0
        operands = node.inputs if node.op_type == "Add" else [v for v in node.inputs[:1] if is_product(v)]
        for value in filter(None, operands):
            dies = value in unit.reads and self._last[value] == index and value not in self.dropped
            alike = self.facts.shape(value) == self.facts.shape(result)
            if dies and alike and self._made[value] >= 0 and sum(value in n.inputs for n in unit.nodes) == 1:
                return self.facts.bytes(result)
        return 0

    def targets(self, start: int, stop: int) -> list[ir.Value]:
        """What a segment gives to those behind it."""
        made = (value for unit in self.facts.units[start:stop] for value in unit.outputs)
        return [value for value in made if self._last.get(value, -1) >= stop and value not in self.dropped]

    def dying(self, start: int, stop: int) -> frozenset[ir.Value]:
        """What is there before a segment, and not needed behind it."""
        read = {value for unit in self.facts.units[start:stop] for value in unit.reads}
        sources = {source for value in read for source in self._sources(value)}
        return frozenset(
            value
            for value in sources
            if value not in self.dropped and self._made.get(value, start) < start and self._last[value] < stop
        )

    def segment(self, start: int, stop: int) -> Segment:
        """The nodes of a segment, with those that compute dropped values again."""
        units = self.facts.units
        chosen = set(range(start, stop))
        waiting = [value for unit in units[start:stop] for value in unit.reads]
        while waiting:
            value = waiting.pop()
            made = self._made.get(value, -1)
            if value in self.dropped and made not in chosen:
                chosen.add(made)
                waiting.extend(units[made].reads)
        nodes = [node for index in sorted(chosen) for node in units[index].nodes]
        return Segment(nodes, self.targets(start, stop))

    @classmethod
    def variants(cls, facts: Facts, most: int) -> Iterator[Lifetimes]:
        """With nothing dropped; then with the largest of those that are kept for long, and with up to `most` of them.

        What is dropped takes with it what it is computed from, as far back as that would have been gone by then: to the
        inputs, or only to values of at most half its size.
        """
        plain = cls(facts)
        yield plain
        long = [
            value
            for value, made in plain._made.items()
            if made >= 0 and plain._last.get(value, -1) - made >= _LONG and plain._last[value] < len(facts.units)
        ]
        long.sort(key=lambda value: (-facts.bytes(value), plain._made[value]))
        seen = {frozenset[ir.Value]()}
        for count in range(1, min(most, len(long)) + 1):
            for to_the_inputs in (True, False):
                dropped = frozenset(plain._behind(long[:count], to_the_inputs))
                if dropped not in seen:
                    seen.add(dropped)
                    yield cls(facts, dropped)

    def _behind(self, values: list[ir.Value], to_the_inputs: bool) -> Iterator[ir.Value]:
        waiting = [(value, self.facts.bytes(value)) for value in values]
        seen = set()
        while waiting:
            value, size = waiting.pop()
            made = self._made.get(value, -1)
            small = value not in values and not to_the_inputs and self.facts.bytes(value) * 2 <= size
            if made < 0 or value in seen or small or len(self.facts.units[made].outputs) != 1:
                continue
            seen.add(value)
            yield value
            waiting.extend((source, size) for source in self.facts.units[made].reads)


def _sliced(value: ir.Value) -> ir.Value | None:
    node = value.producer()
    return None if node is None else input_at(node, 0)
