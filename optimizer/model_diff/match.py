"""Find what became of each node: by provenance, then by names, then by structure.

1. *Provenance.* Passes write into each node which original nodes it stands for. A node that stands for one node of its
   own kind is that node; nodes that share origins otherwise form a group: fused, split or rewritten.
2. *Names.* What is left is paired with the node of the same graph, name and operator, then of the same output names
   and operator, if there is only one.
3. *Structure* (`optimizer.model_diff.structure`): neighbourhoods that look alike, then what surrounds what is matched.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable

from optimizer.model_diff.facts import Node, Side
from optimizer.model_diff.pairing import Pairing
from optimizer.model_diff.regions import match_regions
from optimizer.model_diff.structure import match_structure

__all__ = ["match_nodes"]


def match_nodes(before: Side, after: Side) -> Pairing:
    """Match the nodes of two models."""
    pairing = Pairing(before, after)
    if before.has_provenance or after.has_provenance:
        _match_origins(pairing)
    _match_unique(pairing, lambda node: (node.graph, node.name, node.op) if node.name else None)
    _match_unique(pairing, lambda node: (node.graph, *(o.value for o in node.outputs), node.op))
    match_structure(pairing)
    match_regions(pairing)
    return pairing


def _match_origins(pairing: Pairing) -> None:
    _match_unique(pairing, lambda node: (node.graph, node.origins, node.op), by="provenance", single_origin=True)
    groups = _Groups()
    for node in pairing.open_before():
        for origin in node.origins:
            groups.join(origin, before=node.index)
    for node in pairing.open_after():
        for origin in node.origins:
            groups.join(origin, after=node.index)
    for before, after in groups.both_sided():
        if len(before) == len(after) == 1:
            pairing.pair(before[0], after[0], "provenance")
        else:
            pairing.group(before, after, "provenance")


def _match_unique(
    pairing: Pairing,
    key_of: Callable[[Node], Hashable | None],
    *,
    by: str = "name",
    single_origin: bool = False,
) -> None:
    """Pair the nodes whose key occurs once among the open nodes of either model."""
    ours = _by_key(pairing.open_before(), key_of, single_origin)
    theirs = _by_key(pairing.open_after(), key_of, single_origin)
    for key, nodes in ours.items():
        if len(nodes) == len(theirs.get(key, ())) == 1:
            pairing.pair(nodes[0].index, theirs[key][0].index, by)


def _by_key(
    nodes: Iterable[Node], key_of: Callable[[Node], Hashable | None], single_origin: bool
) -> dict[Hashable, list[Node]]:
    groups: dict[Hashable, list[Node]] = defaultdict(list)
    for node in nodes:
        key = key_of(node)
        if key is not None and (len(node.origins) == 1 or not single_origin):
            groups[key].append(node)
    return groups


class _Groups:
    """Nodes that share origins, directly or through others (disjoint sets of labels)."""

    def __init__(self) -> None:
        self._parents: dict[str, str] = {}
        self._labels: dict[tuple[bool, int], str] = {}

    def join(self, origin: str, *, before: int | None = None, after: int | None = None) -> None:
        """Say that a node of either model stands for `origin`."""
        node = (True, after) if after is not None else (False, before or 0)
        self._parents.setdefault(origin, origin)
        first = self._labels.setdefault(node, origin)
        self._parents[self._root(origin)] = self._root(first)

    def both_sided(self) -> Iterable[tuple[tuple[int, ...], tuple[int, ...]]]:
        """The groups that have nodes of both models."""
        groups: dict[str, tuple[list[int], list[int]]] = {}
        for (is_after, index), label in self._labels.items():
            groups.setdefault(self._root(label), ([], []))[is_after].append(index)
        return ((tuple(before), tuple(after)) for before, after in groups.values() if before and after)

    def _root(self, label: str) -> str:
        while self._parents[label] != label:
            self._parents[label] = self._parents[self._parents[label]]
            label = self._parents[label]
        return label
