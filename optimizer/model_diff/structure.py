"""Match nodes that have the same surroundings, whatever they are called.

Colours are refined as in the test of Weisfeiler and Leman (1968): a node's colour says what its neighbourhood of a
radius looks like, matched nodes and the model's inputs and outputs have colours of their own. Where a colour occurs as
often in both models, its nodes are paired in order, largest radius first. From each pair matching then spreads along
the edges to neighbours that leave no choice.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Hashable, Iterable, Iterator

from optimizer.model_diff.facts import Node, Side
from optimizer.model_diff.pairing import Pairing

__all__ = ["match_structure"]

_RADIUS = 4
_SMALLEST_RADIUS = 1
"""Of radius 0 is what only is the same operator: too little to pair nodes in order."""

BY = "structure"


def match_structure(pairing: Pairing) -> None:
    """Pair what can be told apart by its surroundings."""
    spread = _Spread(pairing)
    spread.from_pairs(list(pairing.to_after.items()))
    spread.from_interface()
    if not any(True for _ in pairing.open_before()) or not any(True for _ in pairing.open_after()):
        return
    before, after = _Colours(pairing.before, pairing.to_after), _Colours(pairing.after, pairing.to_before, 1)
    names: dict[Hashable, int] = {}
    rounds = [(before.start(names), after.start(names))]
    for _ in range(_RADIUS):
        rounds.append((before.refine(rounds[-1][0], names), after.refine(rounds[-1][1], names)))
    for ours, theirs in rounds[: _SMALLEST_RADIUS - 1 : -1]:
        spread.from_pairs(_pair_equal(pairing, ours, theirs))


def _pair_equal(pairing: Pairing, ours: list[int], theirs: list[int]) -> list[tuple[int, int]]:
    before, after = defaultdict(list), defaultdict(list)
    for node in pairing.open_before():
        before[ours[node.index]].append(node.index)
    for node in pairing.open_after():
        after[theirs[node.index]].append(node.index)
    pairs = [
        pair
        for colour, nodes in before.items()
        if len(nodes) == len(after.get(colour, ()))
        for pair in zip(nodes, after[colour], strict=True)
    ]
    for old, new in pairs:
        pairing.pair(old, new, BY)
    return pairs


class _Colours:
    """The colours of one model's nodes.

    Args:
        side: The model.
        matched: Its paired nodes, and their counterparts.
        of_pair: Which of a pair and its counterpart names the pair: 0 for this one, 1 for the other.
    """

    def __init__(self, side: Side, matched: dict[int, int], of_pair: int = 0) -> None:
        self._side = side
        self._pairs = {node: (node, other)[of_pair] for node, other in matched.items()}
        self._consumers = side.consumers
        self._inputs = {name: number for number, name in enumerate(side.inputs)}
        self._output_slots = {place: number for number, place in enumerate(side.output_sources) if place}

    def start(self, names: dict[Hashable, int]) -> list[int]:
        """What each node is by itself."""
        return [_number(names, self._own(node)) for node in self._side.nodes]

    def refine(self, colours: list[int], names: dict[Hashable, int]) -> list[int]:
        """What each node is with its neighbours."""
        refined = []
        for node in self._side.nodes:
            if node.index in self._pairs:
                refined.append(colours[node.index])
                continue
            reads = tuple(
                (colours[read.source], read.slot) if read.source is not None else self._inputs.get(read.value, -1)
                for read in node.inputs
            )
            uses = tuple(sorted((colours[user], slot) for user, slot in self._consumers[node.index]))
            refined.append(_number(names, (colours[node.index], reads, uses)))
        return refined

    def _own(self, node: Node) -> Hashable:
        if node.index in self._pairs:
            return "pair", self._pairs[node.index]
        outputs = tuple(self._output_slots.get((node.index, slot), -1) for slot in range(len(node.outputs)))
        return (*signature(node), self._shapes(node), outputs)

    def _shapes(self, node: Node) -> tuple[str, ...]:
        return tuple(self._side.weights[read.weight].kind for read in node.inputs if read.weight is not None)


class _Spread:
    """Goes from pairs to their neighbours."""

    def __init__(self, pairing: Pairing) -> None:
        self._pairing = pairing
        self._consumers = pairing.before.consumers, pairing.after.consumers

    def from_interface(self) -> None:
        """Start at the inputs and outputs of the models that have the same names."""
        before, after = self._pairing.before, self._pairing.after
        names = before.inputs.keys() & after.inputs.keys()
        readers = _readers(before, names), _readers(after, names)
        for name in before.inputs:
            if name in names:
                self.from_pairs(self._pair_users(readers[0][name], readers[1][name]))
        ends = dict(zip(after.outputs, after.output_sources, strict=True))
        for name, ours in zip(before.outputs, before.output_sources, strict=True):
            theirs = ends.get(name)
            if ours is not None and theirs is not None and ours[1] == theirs[1]:
                self.from_pairs(self._pair_if_alike(ours[0], theirs[0]))

    def from_pairs(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Pair the neighbours of these, and theirs, as far as it goes."""
        queue = deque(pairs)
        while queue:
            old, new = queue.popleft()
            queue.extend(self._neighbours(old, new))

    def _neighbours(self, old: int, new: int) -> Iterator[tuple[int, int]]:
        ours, theirs = self._pairing.before.nodes[old], self._pairing.after.nodes[new]
        for mine, other in zip(ours.inputs, theirs.inputs, strict=False):
            if mine.source is not None and other.source is not None and mine.slot == other.slot:
                yield from self._pair_if_alike(mine.source, other.source)
        yield from self._pair_users(self._consumers[0][old], self._consumers[1][new])

    def _pair_if_alike(self, old: int, new: int) -> Iterator[tuple[int, int]]:
        if not self._pairing.is_open(old, new):
            return
        if self._pairing.before.nodes[old].op == self._pairing.after.nodes[new].op:
            self._pairing.pair(old, new, BY)
            yield old, new

    def _pair_users(
        self, ours: Iterable[tuple[int, int]], theirs: Iterable[tuple[int, int]]
    ) -> Iterator[tuple[int, int]]:
        """Pair those that read at the same place, when as many do so in the same way in both models."""
        before, after = defaultdict(list), defaultdict(list)
        for index, slot in ours:
            if self._pairing.is_open_before(index):
                before[slot, signature(self._pairing.before.nodes[index])].append(index)
        for index, slot in theirs:
            if self._pairing.is_open_after(index):
                after[slot, signature(self._pairing.after.nodes[index])].append(index)
        for key, nodes in before.items():
            if len(nodes) == len(after.get(key, ())):
                for old, new in zip(nodes, after[key], strict=True):
                    if self._pairing.is_open(old, new):
                        self._pairing.pair(old, new, BY)
                        yield old, new


def signature(node: Node) -> tuple[Hashable, ...]:
    """What a node is, apart from what it reads."""
    return node.op, tuple(node.attributes.items()), len(node.inputs), len(node.outputs)


def _readers(side: Side, names: Iterable[str]) -> dict[str, list[tuple[int, int]]]:
    readers: dict[str, list[tuple[int, int]]] = {name: [] for name in names}
    for node in side.nodes:
        for slot, read in enumerate(node.inputs):
            if read.source is None and read.weight is None and read.value in readers:
                readers[read.value].append((node.index, slot))
    return readers


def _number(names: dict[Hashable, int], thing: Hashable) -> int:
    return names.setdefault(thing, len(names))
