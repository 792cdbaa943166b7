"""Where a node comes from: the original nodes that it stands for, and the passes that made it.

Both are kept as JSON lists in the node's `metadata_props`, so they survive `save_onnx` and show up in a graph viewer:

    tersor.from  ["conv1", "bn1"]
    tersor.by    ["fold-batch-norm"]

A node that stands for very many names the first of them.

A pass that replaces or merges nodes calls `inherit(new, old_nodes)`. The pass manager fills in the rest after each
pass.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable

import onnx_ir as ir

from optimizer.ir.walk import all_nodes

__all__ = ["BY", "FROM", "Snapshot", "inherit", "label", "makers", "mark_originals", "origins"]

FROM = "tersor.from"
BY = "tersor.by"
_MAX_NAMES = 100
"""Merging a chain of n nodes one by one would otherwise write n * n names."""


def origins(node: ir.Node) -> tuple[str, ...]:
    """Labels of the original nodes that `node` stands for."""
    return _read(node, FROM)


def makers(node: ir.Node) -> tuple[str, ...]:
    """Names of the passes that made `node`; empty for a node of the original model."""
    return _read(node, BY)


def mark_originals(model: ir.Model) -> None:
    """Give every node that has no origin yet its own label as its origin."""
    for node in all_nodes(model):
        if FROM not in node.metadata_props:
            _write(node, FROM, (label(node),))


def inherit(node: ir.Node, sources: Iterable[ir.Node]) -> None:
    """Add the origins and makers of `sources` to those of `node`."""
    sources = tuple(sources)
    for key in (FROM, BY):
        merged = dict.fromkeys(_read(node, key))
        for source in sources:
            merged.update(dict.fromkeys(_read(source, key)))
        if merged:
            _write(node, key, merged)


class Snapshot:
    """The nodes of a model before a pass."""

    def __init__(self, model: ir.Model) -> None:
        self._before = {node: node.metadata_props.get(FROM) for node in all_nodes(model)}

    def mark_changes(self, model: ir.Model, pass_name: str) -> None:
        """Write `pass_name` into the nodes that are new or took over others; give new nodes their origins."""
        nodes = dict.fromkeys(all_nodes(model))
        orphans = []
        for node in nodes:
            origin = node.metadata_props.get(FROM)
            if origin is None:
                orphans.append(node)
            if node not in self._before or self._before[node] != origin:
                _write(node, BY, dict.fromkeys((*makers(node), pass_name)))
        if orphans:
            self._adopt(orphans, nodes)

    def _adopt(self, orphans: list[ir.Node], present: dict[ir.Node, None]) -> None:
        """A new node has the origins of the removed node whose output it gives, else of its neighbours."""
        removed = [node for node in self._before if node not in present]
        by_output = {output.name: node for node in removed for output in node.outputs if output.name}
        for node in orphans:
            same_output = [by_output[output.name] for output in node.outputs if output.name in by_output]
            inherited = dict.fromkeys(
                origin
                for source in same_output or [*node.predecessors(), *node.successors()]
                for origin in origins(source)
            )
            _write(node, FROM, inherited or (label(node),))


def label(node: ir.Node) -> str:
    """What a node is called: its name, or where it has none, its operator and its first output."""
    if node.name:
        return node.name
    return f"{node.op_type}({node.outputs[0].name or ''})" if node.outputs else node.op_type


def _read(node: ir.Node, key: str) -> tuple[str, ...]:
    text = node.metadata_props.get(key)
    return tuple(json.loads(text)) if text else ()


def _write(node: ir.Node, key: str, values: Iterable[str]) -> None:
    node.metadata_props[key] = json.dumps(list(itertools.islice(values, _MAX_NAMES)), ensure_ascii=False)
