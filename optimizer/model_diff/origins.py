"""Group the nodes that stand for the same original nodes.

Nodes of the second model belong together when they stand for mostly the same: one of two sets of origins holds at
least half of the other. Sharing a little is not enough: when a pass merges the masks of all layers into one node, that
node has an origin in common with the attention of every layer, and all layers would end in one group.

A node of the first model that several groups stand for goes to one of them: to a node of its own operator, else to the
group that stands for the fewest.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from optimizer.model_diff.facts import Node

__all__ = ["origin_groups"]

Origins = frozenset[str]

_COMPARED = 8
"""So many different sets that share an origin are compared with each other; of more, each with the largest."""


def origin_groups(before: Sequence[Node], after: Sequence[Node]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The groups that have nodes of both models, by number.

    Args:
        before: The nodes of the first model that are not matched.
        after: Those of the second.
    """
    known = {origin for node in before for origin in node.origins}
    origins = {node.index: frozenset(node.origins) & known for node in after}
    sets = _Joined(each for each in origins.values() if each)
    members: dict[Origins, list[Node]] = defaultdict(list)
    claims: dict[str, dict[Origins, None]] = defaultdict(dict)
    for node in after:
        if origins[node.index]:
            root = sets.root(origins[node.index])
            members[root].append(node)
            for origin in sorted(origins[node.index]):
                claims[origin][root] = None
    sizes = {root: len({name for node in nodes for name in node.origins}) for root, nodes in members.items()}
    owned: dict[Origins, list[int]] = defaultdict(list)
    for node in before:
        candidates = list(dict.fromkeys(root for origin in node.origins for root in claims.get(origin, ())))
        if candidates:
            owned[min(candidates, key=lambda root: _rank(node, members[root], sizes[root]))].append(node.index)
    for root, nodes in members.items():
        if root in owned:
            yield tuple(owned[root]), tuple(node.index for node in nodes)


def _rank(node: Node, members: Iterable[Node], size: int) -> tuple[bool, int]:
    return node.op not in {member.op for member in members}, size


class _Joined:
    """Sets of origins of which those that are mostly the same are joined (disjoint sets)."""

    def __init__(self, sets: Iterable[Origins]) -> None:
        self._parents = {each: each for each in sets}
        by_origin: dict[str, list[Origins]] = defaultdict(list)
        for each in self._parents:
            for origin in sorted(each):
                by_origin[origin].append(each)
        for sharing in by_origin.values():
            largest = max(sharing, key=len)
            for i, one in enumerate(sharing):
                for other in sharing[:i] if len(sharing) <= _COMPARED else (largest,):
                    if 2 * len(one & other) >= max(len(one), len(other)) or one < other or other < one:
                        self._parents[self.root(one)] = self.root(other)

    def root(self, each: Origins) -> Origins:
        """What stands for a set and those joined with it."""
        while self._parents[each] is not each:
            self._parents[each] = self._parents[self._parents[each]]
            each = self._parents[each]
        return each
