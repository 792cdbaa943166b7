"""What `diff` found, as data, as text, as JSON and as a page."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from optimizer.atomic_file import atomic_write
from optimizer.errors import InputError
from optimizer.model_diff.changes import Change
from optimizer.model_diff.facts import Node, Side
from optimizer.model_diff.weights import WeightChange
from optimizer.text import render

__all__ = ["KINDS", "InterfaceChange", "ModelDiff", "NodeMatch"]

KINDS = ("same", "rewired", "changed", "replaced", "fused", "split", "rewritten", "removed", "added")


@dataclass(frozen=True)
class NodeMatch:
    """What became of some nodes.

    Attributes:
        kind: One of `KINDS`. `"rewired"` nodes only read from elsewhere, `"changed"` ones have another attribute, type
            or weight, `"replaced"` ones another operator; several nodes became one (`"fused"`), one became several
            (`"split"`), or several others (`"rewritten"`).
        before: Their numbers in the first model, see `ModelDiff.before`.
        after: Their numbers in the second.
        by: What tells: `"provenance"`, `"name"` or `"structure"`; `""` for added and removed nodes.
        passes: The passes that made the nodes of the second model, or removed that of the first, as far as it is known.
        changes: What differs, for one node that became one node.
    """

    kind: str
    before: tuple[int, ...]
    after: tuple[int, ...]
    by: str = ""
    passes: tuple[str, ...] = ()
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True)
class InterfaceChange:
    """An input or output of the whole model that is not the same in both.

    Attributes:
        what: `"input"`, `"output"`, or `"opset"`.
        name: Its name.
        before: Its type, `""` if it is not there.
        after: Its type in the second model.
    """

    what: str
    name: str
    before: str
    after: str

    def __str__(self) -> str:
        if not self.before or not self.after:
            return f"{self.what} {self.name!r} {'added' if self.after else 'removed'}: {self.before or self.after}"
        return f"{self.what} {self.name!r}: {self.before} -> {self.after}"


@dataclass(frozen=True)
class ModelDiff:
    """How two models differ; `str()` and `rich` show the essence, `to_dict()` has all of it, `save()` writes a page.

    Attributes:
        before: The first model.
        after: The second.
        matches: Every node of either model is in exactly one of them.
        weights: The weights that are not the same.
        interface: Inputs, outputs and opsets that are not the same.
    """

    before: Side
    after: Side
    matches: tuple[NodeMatch, ...]
    weights: tuple[WeightChange, ...] = ()
    interface: tuple[InterfaceChange, ...] = ()

    @property
    def identical(self) -> bool:
        """Whether nothing differs but names."""
        return (
            all(match.kind == "same" for match in self.matches)
            and all(change.kind in ("renamed", "merged") for change in self.weights)
            and not self.interface
        )

    def count(self, kind: str) -> int:
        """How many matches are of this kind."""
        return sum(match.kind == kind for match in self.matches)

    def of_kind(self, *kinds: str) -> Iterator[NodeMatch]:
        """The matches of these kinds, in the order of the models."""
        return (match for match in self.matches if match.kind in kinds)

    def nodes(self, match: NodeMatch) -> tuple[list[Node], list[Node]]:
        """The nodes that a match speaks of."""
        return [self.before.nodes[i] for i in match.before], [self.after.nodes[i] for i in match.after]

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        same = [[labels[0] for labels in self._labels(match)] for match in self.of_kind("same")]
        return {
            "identical": self.identical,
            "before": _side_dict(self.before),
            "after": _side_dict(self.after),
            "summary": {kind: self.count(kind) for kind in KINDS},
            "matches": [self._match_dict(match) for match in self.matches if match.kind != "same"],
            "same": same,
            "weights": [change.to_dict() for change in self.weights],
            "interface": [dict(change.__dict__) for change in self.interface],
        }

    def to_json(self) -> str:
        """Indented JSON."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)

    def to_html(self) -> str:
        """One page that shows both graphs side by side and needs nothing else."""
        from optimizer.model_diff.page import page_of

        return page_of(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a page (`.html`) or the data (`.json`).

        Raises:
            InputError: The name ends in something else.
            ArtifactError: The file cannot be written; nothing is left behind.
        """
        writers = {".html": self.to_html, ".json": self.to_json}
        target = Path(path)
        if target.suffix not in writers:
            raise InputError(f"a diff is saved as .html or .json, not as {str(target)!r}")
        content = writers[target.suffix]()
        with atomic_write(target) as file:
            file.write(content.encode())

    def _labels(self, match: NodeMatch) -> tuple[list[str], list[str]]:
        before, after = self.nodes(match)
        return [node.label for node in before], [node.label for node in after]

    def _match_dict(self, match: NodeMatch) -> dict[str, Any]:
        before, after = self.nodes(match)
        return {
            "kind": match.kind,
            "before": [_node_dict(node) for node in before],
            "after": [_node_dict(node) for node in after],
            "by": match.by,
            "passes": list(match.passes),
            "changes": [dict(change.__dict__) for change in match.changes],
        }

    def __rich__(self) -> RenderableType:
        from optimizer.model_diff.show import show

        return show(self)

    def __str__(self) -> str:
        return render(self.__rich__())


def _side_dict(side: Side) -> dict[str, Any]:
    return {
        "title": side.title,
        "nodes": len(side.nodes),
        "constants": side.constants,
        "operators": dict(Counter(node.op for node in side.nodes).most_common()),
        "weights": len(side.weights),
        "inputs": dict(side.inputs),
        "outputs": dict(side.outputs),
        "opsets": dict(side.opsets),
    }


def _node_dict(node: Node) -> dict[str, str]:
    return {"name": node.label, "operator": node.op, "graph": node.graph, "module": ".".join(node.scope)}
