"""The essence of a diff as text: what happened how often, then examples of it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table

from optimizer.model_diff.changes import Change
from optimizer.model_diff.facts import Node, Side
from optimizer.model_diff.result import KINDS, ModelDiff, NodeMatch

__all__ = ["TITLES", "show"]

TITLES = {
    "same": "unchanged",
    "rewired": "read from elsewhere",
    "changed": "changed",
    "replaced": "replaced by another operator",
    "fused": "several became one",
    "split": "one became several",
    "rewritten": "rewritten as a group",
    "removed": "removed",
    "added": "added",
}

_SAME_CONTENT = {
    "renamed": "have another name and the same content",
    "merged": "were merged with one of the same content",
}
_MOST_LINES = 20
_LONGEST_CHAIN = 6


def show(diff: ModelDiff) -> RenderableType:
    """Tables and lists, for `rich`."""
    return Group(*_parts(diff))


def _parts(diff: ModelDiff) -> Iterator[RenderableType]:
    before, after = diff.before, diff.after
    yield f"{before.title}: {_size(before)} -> {after.title}: {_size(after)}"
    if diff.identical:
        yield "the same nodes, attributes, weights, inputs and outputs"
        return
    yield _summary(diff)
    for kind in ("fused", "split", "rewritten", "replaced"):
        yield from _listed(TITLES[kind], _groups(diff, diff.of_kind(kind)))
    for kind in ("changed", "rewired"):
        yield from _listed(TITLES[kind], _changes(diff, diff.of_kind(kind)))
    for kind in ("removed", "added"):
        yield from _listed(TITLES[kind], _lone(diff, kind))
    unlike = [change for change in diff.weights if change.kind not in _SAME_CONTENT]
    yield from _listed("weights", [f"{change.kind} {change}" for change in unlike])
    for kind, text in _SAME_CONTENT.items():
        number = sum(change.kind == kind for change in diff.weights)
        if number:
            yield f"{number} weights {text}"
    yield from _listed("interface", [str(change) for change in diff.interface])


def _size(side: Side) -> str:
    return f"{len(side.nodes)} nodes" + (f" and {side.constants} constants" if side.constants else "")


def _summary(diff: ModelDiff) -> Table:
    table = Table("nodes", "in the first", "in the second", "how they were matched")
    for column in table.columns[1:3]:
        column.justify = "right"
    for kind in KINDS:
        matches = list(diff.of_kind(kind))
        if matches:
            ways = Counter(match.by for match in matches if match.by)
            table.add_row(
                TITLES[kind],
                str(sum(len(match.before) for match in matches) or ""),
                str(sum(len(match.after) for match in matches) or ""),
                ", ".join(f"{number} by {way}" for way, number in ways.most_common()),
            )
    return table


def _listed(title: str, lines: Sequence[str]) -> Iterator[RenderableType]:
    if not lines:
        return
    yield f"\n{title}"
    yield from (f"  {line}" for line in lines[:_MOST_LINES])
    if len(lines) > _MOST_LINES:
        yield f"  and {len(lines) - _MOST_LINES} more (--json and --html have all)"


def _groups(diff: ModelDiff, matches: Iterable[NodeMatch]) -> list[str]:
    """One line for all groups that are alike, with the first of them by name."""
    alike: dict[str, list[NodeMatch]] = defaultdict(list)
    for match in matches:
        before, after = diff.nodes(match)
        passes = f" [{', '.join(match.passes)}]" if match.passes else ""
        alike[f"{_chain(before)} -> {_chain(after)}{passes}"].append(match)
    lines = []
    for text, group in alike.items():
        before, after = diff.nodes(group[0])
        example = f"{_names(before)} -> {_names(after)}"
        lines.append(f"{len(group)} times {text}, e.g. {example}" if len(group) > 1 else f"{text}: {example}")
    return lines


def _changes(diff: ModelDiff, matches: Iterable[NodeMatch]) -> list[str]:
    """One line for all nodes that changed in the same way, with the first of them by name."""
    alike: dict[tuple[str, ...], list[NodeMatch]] = defaultdict(list)
    for match in matches:
        _, (node,) = diff.nodes(match)
        alike[node.op, "; ".join(map(_without_names, match.changes)), *match.passes].append(match)
    lines = []
    for (op, text, *passes), group in alike.items():
        _, (node,) = diff.nodes(group[0])
        by = f" [{', '.join(passes)}]" if passes else ""
        if len(group) > 1:
            lines.append(f"{len(group)} times {op}: {text}{by}, e.g. {node.label}")
        else:
            lines.append(f"{op} {node.label}: {'; '.join(map(str, group[0].changes))}{by}")
    return lines


def _without_names(change: Change) -> str:
    """The same for all nodes to which the same happened, whatever they and what they read are called."""
    if change.what == "input":
        before, after = (text.split(" ", 1)[0] if " " in text else text for text in (change.before, change.after))
        return f"input {change.name}: {before or 'none'} -> {after or 'none'}"
    if change.what in ("type", "weight"):
        return f"{change.what}: {change.before or 'none'} -> {change.after or 'none'}"
    return str(change)


def _lone(diff: ModelDiff, kind: str) -> list[str]:
    """One line for each operator."""
    labels: dict[str, list[str]] = defaultdict(list)
    for match in diff.of_kind(kind):
        before, after = diff.nodes(match)
        for node in (*before, *after):
            passes = f" [{', '.join(match.passes)}]" if match.passes else ""
            labels[node.op + passes].append(node.label)
    return [f"{len(names)} {op}: {_shortened(names)}" for op, names in labels.items()]


def _chain(nodes: Sequence[Node]) -> str:
    counts = Counter(node.op for node in nodes)
    return " + ".join(op if number == 1 else f"{number} {op}" for op, number in counts.items())


def _names(nodes: Sequence[Node]) -> str:
    return _shortened([node.label for node in nodes])


def _shortened(names: Sequence[str]) -> str:
    more = len(names) - _LONGEST_CHAIN
    return ", ".join(names[:_LONGEST_CHAIN]) + (f" and {more} more" if more > 0 else "")
