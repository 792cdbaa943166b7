"""Compute what is computed twice only once.

Two nodes are the same when they have the same operator, attributes, inputs and number of outputs. The later one falls
away and its users take the earlier one, which may stand in a graph around it.

Not merged are nodes

1. that are random;
2. that contain a subgraph;
3. that give outputs of the graph which the earlier one cannot give in their place.
"""

from __future__ import annotations

import dataclasses
from collections import ChainMap
from collections.abc import Hashable

import onnx_ir as ir

from optimizer.ir.edit import Editor
from optimizer.ir.provenance import inherit
from optimizer.ir.query import RANDOM_OPERATORS, tensor_of
from optimizer.ir.tensors import content_hash
from optimizer.ir.walk import subgraphs, top_graphs
from optimizer.pass_manager import Pass

__all__ = ["EliminateCommonSubexpressions"]


@dataclasses.dataclass(frozen=True)
class EliminateCommonSubexpressions(Pass):
    """Merges equal nodes."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Merge within each graph, and with the graphs around it."""
        editor = Editor(model)
        merged: dict[ir.Node, list[ir.Node]] = {}
        for graph in top_graphs(model):
            _merge_in(editor, graph, ChainMap(), merged)
        for kept, removed in merged.items():
            inherit(kept, removed)
        return ir.passes.PassResult(model, editor.modified)


def _merge_in(
    editor: Editor, graph: ir.Graph, seen: ChainMap[Hashable, ir.Node], merged: dict[ir.Node, list[ir.Node]]
) -> None:
    for node in graph:
        inner = list(subgraphs(node))
        for subgraph in inner:
            _merge_in(editor, subgraph, seen.new_child(), merged)
        if inner or not _is_pure(node):
            continue
        key = _key(node)
        if key not in seen:
            seen[key] = node
        elif _merge(editor, seen[key], node):
            merged.setdefault(seen[key], []).append(node)


def _is_pure(node: ir.Node) -> bool:
    """Only of the standard operators is it known that equal inputs give equal outputs."""
    return node.domain == "" and node.op_type not in RANDOM_OPERATORS and not _is_training_dropout(node)


def _is_training_dropout(node: ir.Node) -> bool:
    return node.op_type == "Dropout" and len(node.inputs) > 2


def _key(node: ir.Node) -> Hashable:
    attributes = tuple(sorted((name, _attribute_key(attribute)) for name, attribute in node.attributes.items()))
    given = tuple(output.name != "" for output in node.outputs)
    return node.op_type, node.inputs, attributes, given


def _attribute_key(attribute: ir.Attr) -> str:
    if attribute.is_ref():
        return f"@{attribute.ref_attr_name}:{attribute.type.name}"
    if attribute.type == ir.AttributeType.TENSOR:
        return content_hash(tensor_of(attribute))
    return f"{attribute.type.name}:{attribute.value!r}"


def _merge(editor: Editor, kept: ir.Node, node: ir.Node) -> bool:
    pairs = [(old, new) for old, new in zip(node.outputs, kept.outputs, strict=True) if old.name != ""]
    if not all(editor.can_replace(old, new) for old, new in pairs):
        return False
    for old, new in pairs:
        editor.replace(old, new)
    editor.remove(node)
    return True
