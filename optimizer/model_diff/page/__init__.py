"""One page with both graphs side by side: it holds all that it needs, and reads nothing from anywhere.

The page is made of the files in this folder. What it shows stands in it as JSON; places are computed in the browser, as
only what is open needs any (see docs/decisions/0012-diff-page.md).
"""

from __future__ import annotations

import html
import json
import string
from importlib.resources import files
from typing import Any

from optimizer.model_diff.facts import Node, Side
from optimizer.model_diff.groups import groups_of, scopes_of
from optimizer.model_diff.result import KINDS, ModelDiff
from optimizer.model_diff.scopes import Scope
from optimizer.model_diff.show import TITLES

__all__ = ["page_of"]

_WEIGHT_KINDS = ("changed", "reshaped", "added", "removed", "renamed", "merged")
_SCRIPTS = ("graph.js", "layout.js", "draw.js", "pane.js", "panel.js", "main.js")


def page_of(diff: ModelDiff) -> str:
    """The whole page."""
    title = f"{diff.before.title} and {diff.after.title}"
    heading = f"{html.escape(diff.before.title)} <span>→</span> {html.escape(diff.after.title)}"
    return string.Template(_file("page.html")).substitute(
        title=html.escape(title),
        heading=heading,
        css=_file("page.css"),
        data=_embedded(_data(diff)),
        licenses=_file("d3-dag.LICENSES.txt").replace("--", "- -"),
        library=_file("d3-dag.iife.min.js").replace("</script", "<\\/script"),
        script="\n".join(map(_file, _SCRIPTS)),
    )


def _file(name: str) -> str:
    return files(__name__).joinpath(name).read_text(encoding="utf-8")


def _embedded(data: Any) -> str:
    """JSON that cannot end the element that it stands in."""
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")


def _data(diff: ModelDiff) -> dict[str, Any]:
    of_before, of_after = {}, {}
    for number, match in enumerate(diff.matches):
        of_before.update(dict.fromkeys(match.before, number))
        of_after.update(dict.fromkeys(match.after, number))
    scopes = scopes_of(diff)
    sides = [_side(diff.before, of_before, scopes[0]), _side(diff.after, of_after, scopes[1])]
    matches: list[list[Any]] = [
        [
            match.kind,
            match.before,
            match.after,
            match.by,
            match.passes,
            [[change.what, change.name, change.before, change.after] for change in match.changes],
        ]
        for match in diff.matches
    ]
    matches += _add_ports(diff, sides, len(matches))
    order = {kind: rank for rank, kind in enumerate(_WEIGHT_KINDS)}
    return {
        "kinds": {kind: TITLES[kind] for kind in KINDS},
        "sides": sides,
        "matches": matches,
        "weights": [
            [change.kind, str(change).replace(" -> ", " → ")]
            for change in sorted(diff.weights, key=lambda change: order[change.kind])
        ],
        "interface": [str(change).replace(" -> ", " → ") for change in diff.interface],
    }


def _side(side: Side, matches: dict[int, int], scopes: list[Scope]) -> dict[str, Any]:
    groups, places = groups_of(scopes)
    return {
        "title": side.title,
        "count": len(side.nodes),
        "constants": side.constants,
        "groups": [[group.label, group.parent, int(group.is_part), group.path] for group in groups],
        "nodes": [_node(node, side, matches[node.index], places[node.index]) for node in side.nodes],
        "weights": {key: weight.kind for key, weight in side.weights.items()},
    }


def _add_ports(diff: ModelDiff, sides: list[dict[str, Any]], first_match: int) -> list[list[Any]]:
    """Show the inputs and outputs of the models beside their nodes; what became of each is returned."""
    matches: list[list[Any]] = []
    models = diff.before, diff.after
    for what, named in (("input", [model.inputs for model in models]), ("output", [model.outputs for model in models])):
        for name in dict.fromkeys((*named[0], *named[1])):
            ids: list[list[int]] = [[], []]
            for i, (model, side) in enumerate(zip(models, sides, strict=True)):
                if name in named[i]:
                    ids[i].append(len(side["nodes"]))
                    side["nodes"].append(_port(what, name, model, side["nodes"], first_match + len(matches)))
            types = [values.get(name, "") for values in named]
            kind = "removed" if not ids[1] else "added" if not ids[0] else "same" if types[0] == types[1] else "changed"
            changes = [["type", name, *types]] if kind == "changed" else []
            matches.append([kind, *ids, "name" if all(ids) else "", [], changes, 1])
    return matches


def _port(what: str, name: str, model: Side, nodes: list[dict[str, Any]], match: int) -> dict[str, Any]:
    port: dict[str, Any] = {"l": name, "o": what, "g": 0, "k": match, "i": [], "t": []}
    if what == "input":
        port["t"] = [[name, model.inputs[name]]]
        for node in nodes:
            for read in node["i"]:
                if read[1] < 0 and not read[3] and read[0] == name:
                    read[1] = len(nodes)
        return port
    place = model.output_sources[list(model.outputs).index(name)]
    source, slot = place or (-1, 0)
    port["i"] = [[name, source, slot, 0, model.outputs[name]]]
    return port


def _node(node: Node, side: Side, match: int, group: int) -> dict[str, Any]:
    """Short keys: there may be many thousands of these; empty ones are left out."""
    inputs = []
    for read in node.inputs:
        source = -1 if read.source is None else read.source
        type_ = side.inputs.get(read.value, "") if source < 0 else side.nodes[source].outputs[read.slot].type
        inputs.append([read.value, source, read.slot, read.weight or 0, type_])
    facts = {
        "l": node.label,
        "o": node.op,
        "g": group,
        "k": match,
        "i": inputs,
        "t": [[output.value, output.type] for output in node.outputs],
        "a": node.attributes,
        "b": node.bodies,
        "m": node.makers,
    }
    return {key: value for key, value in facts.items() if value or key in "logkit"}
