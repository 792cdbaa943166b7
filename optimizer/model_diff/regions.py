"""What is left on both sides is matched in groups: several nodes that now are one, or some that now are others.

A node of the second model that is not matched is put beside the node of the first that gives the same value: a value
with the same name, the same input of a matched reader, or the same output of the model. Each such pair of ends gathers
the open nodes that it is computed from, up to what is matched or belongs to another end.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from optimizer.model_diff.facts import Side
from optimizer.model_diff.pairing import Pairing
from optimizer.model_diff.structure import BY

__all__ = ["match_regions"]


def match_regions(pairing: Pairing) -> None:
    """Group the open nodes that give the same values."""
    ends = dict(_ends(pairing))
    starts: dict[int, list[int]] = defaultdict(list)
    for old, new in ends.items():
        starts[new].append(old)
    open_before = {node.index for node in pairing.open_before()}
    open_after = {node.index for node in pairing.open_after()}
    before = _gather(pairing.before, open_before, {old: new for new, olds in starts.items() for old in olds})
    after = _gather(pairing.after, open_after, {new: new for new in starts})
    for new in starts:
        if len(before[new]) == len(after[new]) == 1:
            pairing.pair(before[new][0], after[new][0], BY)
        else:
            pairing.group(tuple(before[new]), tuple(after[new]), BY)


def _ends(pairing: Pairing) -> Iterator[tuple[int, int]]:
    """Open nodes that give the same value; each node of the first model is named once."""
    named: dict[int, int] = {}
    for old, new in (*_same_output(pairing), *_same_reader(pairing), *_same_name(pairing)):
        if pairing.is_open(old, new) and old not in named:
            named[old] = new
            yield old, new


def _same_name(pairing: Pairing) -> Iterator[tuple[int, int]]:
    places = {
        (node.graph, output.value): node.index
        for node in pairing.open_before()
        for output in node.outputs
        if output.value
    }
    for node in pairing.open_after():
        for output in node.outputs:
            old = places.get((node.graph, output.value))
            if old is not None:
                yield old, node.index


def _same_reader(pairing: Pairing) -> Iterator[tuple[int, int]]:
    for old, new in pairing.to_after.items():
        ours, theirs = pairing.before.nodes[old], pairing.after.nodes[new]
        for mine, other in zip(ours.inputs, theirs.inputs, strict=False):
            if mine.source is not None and other.source is not None:
                yield mine.source, other.source


def _same_output(pairing: Pairing) -> Iterator[tuple[int, int]]:
    theirs = dict(zip(pairing.after.outputs, pairing.after.output_sources, strict=True))
    for name, place in zip(pairing.before.outputs, pairing.before.output_sources, strict=True):
        other = theirs.get(name)
        if place is not None and other is not None:
            yield place[0], other[0]


def _gather(side: Side, open_nodes: set[int], ends: dict[int, int]) -> dict[int, list[int]]:
    """For each end the open nodes that only it needs, or that it needs as the last."""
    owners: dict[int, int] = dict(ends)
    for node in reversed(side.nodes):
        if node.index in open_nodes and node.index not in owners:
            owner = _first(owners[user] for user, _ in side.consumers[node.index] if user in owners)
            if owner is not None:
                owners[node.index] = owner
    groups: dict[int, list[int]] = defaultdict(list)
    for node in side.nodes:
        if node.index in owners:
            groups[owners[node.index]].append(node.index)
    return groups


def _first(items: Iterable[int]) -> int | None:
    return next(iter(items), None)
