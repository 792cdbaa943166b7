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
from optimizer.model_diff.origins import origin_groups
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
    _match_unique(pairing, lambda node: (node.graph, node.name, node.origins, node.op), by="provenance")
    _match_unique(pairing, lambda node: (node.graph, node.origins, node.op), by="provenance", single_origin=True)
    for before, after in origin_groups(list(pairing.open_before()), list(pairing.open_after())):
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
