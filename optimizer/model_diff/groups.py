"""The tree of groups that the page shows: modules, the bodies of control flow, functions.

A node that a pass made often has no module of its own: it is put where the nodes that it was made from are. Groups that
would only be in the way are left out: those of a single node, and those whose only content is one other group. A group
of very many nodes without modules is cut into parts, so that a browser can lay it out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from optimizer.model_diff.facts import Side
from optimizer.model_diff.result import ModelDiff
from optimizer.model_diff.scopes import Scope

__all__ = ["Group", "groups_of", "scopes_of"]

_MOST_CHILDREN = 250
_PART = 125
_PART_LABEL = "part "


@dataclass(frozen=True)
class Group:
    """One group.

    Attributes:
        label: Its name inside the group around it.
        parent: The number of that group, -1 for the outermost.
        path: Names from the outermost on.
    """

    label: str
    parent: int
    path: str

    @property
    def is_part(self) -> bool:
        """Whether it is a part of a group that was cut for its size."""
        return self.label.startswith(_PART_LABEL)


def scopes_of(diff: ModelDiff) -> tuple[list[Scope], list[Scope]]:
    """For the nodes of both models the modules that they are shown in."""
    before = [node.scope for node in diff.before.nodes]
    labels = {node.label: node.scope for node in diff.before.nodes}
    after = [node.scope for node in diff.after.nodes]
    outermost = {scope[0] for scope in before if scope}
    for match in diff.matches:
        known = _common([before[index] for index in match.before])
        for index in match.after:
            node = diff.after.nodes[index]
            if not after[index] or (after[index][0] not in outermost and not node.graph):
                near = known or _common([labels[name] for name in node.origins if name in labels])
                after[index] = near or after[index]
    return _cut(diff, *_simplified((before, diff.before), (after, diff.after)))


def groups_of(scopes: Sequence[Scope]) -> tuple[list[Group], list[int]]:
    """The groups, the outermost first, and for each node the number of the one that it is in."""
    groups = [Group("", -1, "")]
    numbers: dict[Scope, int] = {(): 0}
    places = []
    for scope in scopes:
        for depth in range(len(scope)):
            path = scope[: depth + 1]
            if path not in numbers:
                numbers[path] = len(groups)
                groups.append(Group(path[-1], numbers[path[:-1]], "/".join(path)))
        places.append(numbers[scope])
    return groups, places


def _common(scopes: Iterable[Scope]) -> Scope:
    shared: Scope | None = None
    for scope in scopes:
        if shared is None:
            shared = scope
        length = next((i for i, (a, b) in enumerate(zip(shared, scope, strict=False)) if a != b), None)
        shared = shared[: min(len(shared), len(scope)) if length is None else length]
    return shared or ()


def _simplified(*sides: tuple[list[Scope], Side]) -> list[list[Scope]]:
    """The scopes without groups that are only in the way in either model, so that both have the same ones."""
    children: dict[Scope, set[str]] = {}
    members: Counter[Scope] = Counter()
    for scopes, side in sides:
        found: Counter[Scope] = Counter()
        for scope, node in zip(scopes, side.nodes, strict=True):
            for depth in range(len(scope)):
                children.setdefault(scope[:depth], set()).add(f"/{scope[depth]}")
                found[scope[: depth + 1]] += 1
            children.setdefault(scope, set()).add(node.label)
        members |= found
    lone = {scope for scope, inside in children.items() if len(inside) == 1 and scope}
    shown: dict[Scope, Scope] = {(): ()}
    return [[_shown(scope, lone, members, shown) for scope in scopes] for scopes, _ in sides]


def _shown(scope: Scope, lone: set[Scope], members: Counter[Scope], shown: dict[Scope, Scope]) -> Scope:
    """The path without groups of one node, and with a group that holds just one group merged into that one."""
    if scope not in shown:
        around = _shown(scope[:-1], lone, members, shown)
        if members[scope] == 1:
            shown[scope] = around
        elif scope[:-1] in lone:
            shown[scope] = (*around[:-1], f"{around[-1]}.{scope[-1]}")
        else:
            shown[scope] = (*around, scope[-1])
    return shown[scope]


def _cut(diff: ModelDiff, before: list[Scope], after: list[Scope]) -> tuple[list[Scope], list[Scope]]:
    """Cut large groups into parts; a node of the second model goes where its counterpart is, or the node before it."""
    sizes = Counter(before) | Counter(after)
    seen: Counter[Scope] = Counter()
    parts: list[int] = []
    for scope in before:
        parts.append(seen[scope] // _PART)
        seen[scope] += 1
    counterparts = {index: match.before[0] for match in diff.matches for index in match.after if match.before}
    last: dict[Scope, int] = {}
    moved = []
    for index, scope in enumerate(after):
        partner = counterparts.get(index)
        if partner is not None and before[partner] == scope:
            last[scope] = parts[partner]
        moved.append(last.get(scope, 0))
    return _in_parts(before, parts, sizes), _in_parts(after, moved, sizes)


def _in_parts(scopes: list[Scope], parts: list[int], sizes: Counter[Scope]) -> list[Scope]:
    return [
        (*scope, f"{_PART_LABEL}{part + 1}") if sizes[scope] > _MOST_CHILDREN else scope
        for scope, part in zip(scopes, parts, strict=True)
    ]
