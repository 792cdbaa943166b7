"""A segment computed piece by piece: which steps that takes.

From the windows of the results that a piece is to give, what is needed of each value is worked out backwards, operator
by operator; where several windows of a value overlap, one that holds them all is computed. What comes from outside the
segment is sliced, what every piece needs whole is computed once, rows of an image that two pieces need are kept
(`passes.tiling.sliding`), and the pieces of each result are put together at the end: concatenated, or summed where the
segment ends in a product over the axis that is cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from optimizer.ir.query import constant
from passes.tiling.contraction import FEWEST_FUSED, Contraction, contraction_of
from passes.tiling.cut import WHOLE, Cut, Window, piece_windows
from passes.tiling.facts import Facts, is_product
from passes.tiling.sliding import PiecePlan, Sliding
from passes.tiling.steps import TAIL, WINDOW, Key, Operand, Step, bounds

__all__ = ["Segment", "Way", "steps_of"]


_SHARED_WORK = 0.2
"""The part of a convolution that is the same for all channels, such as what Winograd's method does with the image."""


_IMAGE, _ROWS = 4, 8
"""The rank of an image; strips of a multiple of so many rows fit the strides and the patches of Winograd's method."""


@dataclass(frozen=True)
class Way:
    """How a segment is cut.

    Attributes:
        axis: The axis of its results; -1 for the axis that its last product sums over.
        count: The number of pieces.
    """

    axis: int
    count: int


@dataclass
class Segment:
    """Nodes that are computed together.

    Attributes:
        nodes: In order, those that are computed anew among them.
        targets: The values that are needed behind it.
    """

    nodes: list[ir.Node]
    targets: list[ir.Value]


def steps_of(facts: Facts, segment: Segment, way: Way) -> list[Step] | None:
    """The steps of all pieces, in order; `None` where the segment cannot be cut like this."""
    return _Cutting(facts, segment, way).run()


_Produced = dict[ir.Value, dict[Window, Key]]
"""The windows that a piece has of each value."""


class _Impossible(Exception):
    """A node cannot be cut."""


class _Cutting:
    def __init__(self, facts: Facts, segment: Segment, way: Way) -> None:
        self.facts, self.way, self.segment = facts, way, segment
        self.inside = {value for node in segment.nodes for value in node.outputs}
        self.steps: list[Step] = []
        self.made: dict[Key, Key] = {}
        self.piece = 0
        self.sliding = Sliding(facts)
        self.held: dict[ir.Value, tuple[Window, Key]] = {}
        self.tails: dict[ir.Value, Key] = {}

    def run(self) -> list[Step] | None:
        try:
            if self.way.axis < 0:
                self._sum()
            else:
                self._concatenate()
        except _Impossible:
            return None
        return self.steps

    # --- results put together ---

    def _concatenate(self) -> None:
        pieces: dict[ir.Value, list[Key]] = {target: [] for target in self.segment.targets}
        windows = {target: self._windows(target, self.way.axis) for target in pieces}
        (count,) = counts if len(counts := {len(found) for found in windows.values()}) == 1 else (0,)
        if count < 2:
            raise _Impossible
        asked = [{target: [windows[target][piece]] for target in pieces} for piece in range(count)]
        plans = [self._planned(self.segment.nodes, each) for each in asked]
        for self.piece, (plan, following) in enumerate(zip(plans, [*plans[1:], None], strict=True)):
            produced = self._compute(self.segment.nodes, plan, following)
            for target, parts in pieces.items():
                parts.append(self._window(target, windows[target][self.piece], produced, _producer(target)))
        for target, parts in pieces.items():
            axis = ir.AttrInt64("axis", self.way.axis)
            self._step("Concat", _producer(target), parts, Key(target), {"axis": axis}, bare=True)

    def _windows(self, value: ir.Value, axis: int) -> list[Window]:
        shape = self.facts.shape(value)
        if shape is None or axis >= len(shape) or shape[axis] < self.way.count:
            raise _Impossible
        return piece_windows(axis, shape[axis], self.way.count, self._grain(value, axis))

    def _grain(self, value: ir.Value, axis: int) -> int:
        """Heads are cut as a whole: what an `Attention` gives is cut at their borders. Large images in even strips."""
        node, shape = value.producer(), self.facts.shape(value)
        if shape is None or node is None:
            return 1
        if len(shape) == _IMAGE and axis >= 2:
            return _ROWS if shape[axis] >= _ROWS * self.way.count * 4 else 1
        if node.op_type != "Attention" or axis != 2:
            return 1
        heads, kept = (node.attributes.get(name) for name in ("q_num_heads", "kv_num_heads"))
        return 1 if heads is None or kept is None else shape[2] // kept.as_int()

    def _sum(self) -> None:
        """Result = what is added + the sum over the pieces of (piece of the operand) times (piece of the weight)."""
        (target,) = targets if len(targets := self.segment.targets) == 1 else (None,)
        found = None if target is None else contraction_of(self.facts, target, self.inside)
        if found is None or found.operand not in self.inside:
            raise _Impossible
        windows = self._windows(found.operand, found.axis)
        if self.facts.fused and len(windows) < FEWEST_FUSED:
            raise _Impossible
        others = [node for node in self.segment.nodes if node is not found.product and node not in found.added]
        so_far: Key | None = None
        for self.piece, window in enumerate(windows):
            produced = self._compute(others, self._planned(others, {found.operand: [window]}))
            part = self._window(found.operand, window, produced, found.product)
            so_far = self._add(found, part, window, so_far, last=self.piece == len(windows) - 1)

    def _add(self, found: Contraction, part: Key, window: Window, so_far: Key | None, *, last: bool) -> Key:
        """A piece's product, added to the sum so far; to the first one is added what the whole is added to."""
        product, target = found.product, found.target
        share = self.facts.flops(product) * window.size / self._size(found.operand, found.axis)
        inputs: list[Operand] = [part, (found.weight, Window(found.weight_axis, window.start, window.stop))]
        first = so_far is None
        inputs += [self._operand(v, WHOLE, {}, product) for v in product.inputs[2:]] if first else []
        name = "sum" if first and not found.added else "summand"
        partial = Key(target, WHOLE, self.piece, name)
        self._step(product.op_type, product, inputs, partial, {}, flops=share)
        if so_far is not None:
            total = Key(target) if last else Key(target, WHOLE, self.piece, "sum")
            self._step("Add", product, [partial, so_far], total, {}, bare=True, over=so_far)
            return total
        for number, node in enumerate(found.added):
            others = [value for value in node.inputs if value not in found.chain]
            name = "sum" if node is found.added[-1] else f"summand{number}"
            sum_of_both = Key(target, WHOLE, self.piece, name)
            given = [partial, *(self._operand(value, WHOLE, {}, node) for value in others)]
            alike = [Key(value) for value in others if value and self._may_be_written_over(value, target)]
            self._step(node.op_type, node, given, sum_of_both, {}, over=alike[0] if alike else None)
            partial = sum_of_both
        return partial

    def _may_be_written_over(self, value: ir.Value, target: ir.Value) -> bool:
        alike = self.facts.shape(value) == self.facts.shape(target)
        return alike and self.facts.is_stored(value) and not value.is_graph_input()

    def _size(self, value: ir.Value, axis: int) -> int:
        shape = self.facts.shape(value)
        assert shape is not None, "its windows were made"
        return shape[axis]

    # --- one piece ---

    def _planned(self, nodes: Sequence[ir.Node], asked: dict[ir.Value, list[Window]]) -> PiecePlan:
        """Work out backwards what gives the windows that are asked for; what is given instead may be larger."""
        wanted = {value: list(windows) for value, windows in asked.items()}
        plan = PiecePlan()
        for node in reversed(nodes):
            for index, output in enumerate(node.outputs):
                for window in self.sliding.windows(output, wanted.get(output, ()), plan):
                    cut = self._cut(node, index, window)
                    self.sliding.computed(output, cut, plan)
                    plan.cuts.setdefault(output, []).append(cut)
                    for value, needed in self._needs(node, cut):
                        wanted.setdefault(value, []).append(needed)
        return plan

    def _compute(self, nodes: Sequence[ir.Node], plan: PiecePlan, following: PiecePlan | None = None) -> _Produced:
        """Add the steps of a plan, and keep what the piece behind it needs of it."""
        produced: _Produced = {}
        waiting = dict(following.tails) if following else {}
        last = {value: node for node in nodes for value in node.inputs if value in waiting}
        for node in nodes:
            for output in node.outputs:
                if output in plan.kept:
                    window, key = self.held[output]
                    produced[output] = {window: key}
                for cut in plan.cuts.get(output, ()):
                    key = self._run(node, output, cut, produced)
                    window = cut.gives
                    if output in plan.tails:
                        window, key = self._join(node, plan.tails[output], window, key)
                    produced.setdefault(output, {})[window] = key
                    if output in plan.sliding:
                        self.held[output] = window, key
            for value in [value for value in waiting if last.get(value) is node]:
                self._keep(value, waiting.pop(value))
        for value, tail in waiting.items():
            self._keep(value, tail)
        return produced

    def _keep(self, value: ir.Value, tail: Window) -> None:
        """Copy the rows that the next piece needs, so that the others need not be kept."""
        window, source = self.held[value]
        self.tails[value] = Key(value, tail, self.piece, TAIL)
        self._slice(source, tail, window.start, self.tails[value], _producer(value))

    def _join(self, node: ir.Node, tail: Window, window: Window, fresh: Key) -> tuple[Window, Key]:
        """What the piece before has left, and what this one has computed."""
        both = tail.hull(window)
        key = Key(fresh.value, both, self.piece)
        axis = ir.AttrInt64("axis", both.axis)
        self._step("Concat", node, [self.tails[fresh.value], fresh], key, {"axis": axis}, bare=True)
        return both, key

    def _cut(self, node: ir.Node, index: int, window: Window) -> Cut:
        if window == WHOLE:
            if len(node.outputs) != 1:
                raise _Impossible
            return Cut((WHOLE,) * len(node.inputs), WHOLE)
        found = self.facts.cut(node, index, window)
        if found is None:
            raise _Impossible
        return found

    def _needs(self, node: ir.Node, cut: Cut) -> Iterable[tuple[ir.Value, Window]]:
        for index, window in enumerate(cut.windows):
            value = node.inputs[index] if index < len(node.inputs) and index not in cut.constants else None
            if value is not None and value in self.inside:
                yield value, self._whole_if_all(value, window)

    def _whole_if_all(self, value: ir.Value, window: Window) -> Window:
        shape = self.facts.shape(value)
        if window != WHOLE and shape is not None and (window.start, window.stop) == (0, shape[window.axis]):
            return WHOLE
        return window

    def _run(self, node: ir.Node, output: ir.Value, cut: Cut, produced: _Produced) -> Key:
        key = self._key(output, cut.gives)
        if key in self.made:
            return self.made[key]
        operands: list[Operand] = []
        for index, window in enumerate(cut.windows):
            value = node.inputs[index] if index < len(node.inputs) else None
            given = cut.constants.get(index)
            operands.append(given if given is not None else self._operand(value, window, produced, node))
        if cut.op_type == "":
            first = operands[0]
            assert isinstance(first, Key), "it is a window of something computed"
            self.made[key] = first
            return first
        shape = self.facts.shape(output) or ()
        share = 1.0 if cut.gives == WHOLE else cut.gives.size / shape[cut.gives.axis]
        if node.op_type == "Conv" and cut.gives.axis == 1 and cut.windows[0] == WHOLE:
            share += _SHARED_WORK
        queries = operands[0] if node.op_type == "Attention" else None
        apart = isinstance(queries, Key) and queries.part != WINDOW and is_product(queries.value)
        over = queries if apart and isinstance(queries, Key) else None
        flops = self.facts.flops(node) * share
        self._step(cut.op_type or node.op_type, node, operands, key, dict(cut.attributes), flops=flops, over=over)
        return key

    def _operand(self, value: ir.Value | None, window: Window, produced: _Produced, node: ir.Node) -> Operand:
        if value is None:
            return None
        if constant(value) is not None or value.is_initializer():
            return value, window
        return self._window(value, window, produced, node)

    def _window(self, value: ir.Value, window: Window, produced: _Produced, node: ir.Node) -> Key:
        """A window of something computed, cut out of a larger one if that is what there is."""
        window = self._whole_if_all(value, window)
        given = produced.get(value, {}) if value in self.inside else {}
        source = next((each for each in given if each.covers(window) or each == WHOLE), WHOLE)
        if source == WHOLE and WHOLE not in given and value in self.inside:
            raise _Impossible
        found = given.get(source) or self.made.get(self._key(value, source), self._key(value, source))
        if source == window:
            return found
        key = Key(value, window, self.piece, WINDOW)
        if key not in self.made:
            start = 0 if source == WHOLE else source.start
            self._slice(found, window, start, key, node)
        return key

    def _slice(self, source: Key, window: Window, origin: int, key: Key, node: ir.Node) -> None:
        self._step("Slice", node, [source, *bounds(window, origin)], key, {}, bare=True)

    def _key(self, value: ir.Value, window: Window) -> Key:
        return Key(value, window, -1 if window == WHOLE else self.piece)

    def _step(
        self,
        op_type: str,
        like: ir.Node,
        operands: Sequence[Operand],
        gives: Key,
        attributes: dict[str, ir.Attr | None],
        *,
        bare: bool = False,
        flops: float = 0.0,
        over: Key | None = None,
    ) -> None:
        if bare:
            attributes = {**dict.fromkeys(like.attributes), **attributes}
        self.made[gives] = gives
        self.steps.append(Step(op_type, like, operands, gives, attributes, flops, over))


def _producer(value: ir.Value) -> ir.Node:
    node = value.producer()
    assert node is not None, "a result of a segment has a producer"
    return node
