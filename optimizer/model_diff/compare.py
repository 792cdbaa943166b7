"""`diff`: match the nodes of two models, then compare what is matched."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from optimizer.model_diff.changes import counterpart_weights, kind_of, node_changes
from optimizer.model_diff.facts import Node, Side
from optimizer.model_diff.match import match_nodes
from optimizer.model_diff.pairing import Matched, Pairing
from optimizer.model_diff.result import InterfaceChange, ModelDiff, NodeMatch
from optimizer.model_diff.sources import read_artifact, read_model
from optimizer.model_diff.weights import WeightComparison

__all__ = ["compare_sides", "diff", "diff_artifact"]


def diff(before: object, after: object) -> ModelDiff:
    """Compare two models.

    Args:
        before: The path of an `.onnx` or `.tersor` file, an `onnx.ModelProto`, an `onnx_ir.Model` or a compiled model,
            of which the optimized graph counts. It is not changed.
        after: The same. If it was made by the passes of this package, its nodes say where they come from.

    Returns:
        What became of each node, and which weights, inputs and outputs differ.

    Raises:
        InputError: A model is of none of these kinds.
        ModelError, ArtifactError: A model is damaged, or was saved without its graph.
    """
    return compare_sides(read_model(before, "before"), read_model(after, "after"))


def diff_artifact(path: Path) -> ModelDiff:
    """Compare the original and the optimized graph of a saved compiled model; its code is not loaded.

    Raises:
        InputError: The file is an `.onnx` file, which has no original.
        ArtifactError: It is damaged, or was saved without its graph.
    """
    return compare_sides(*read_artifact(path))


def compare_sides(before: Side, after: Side) -> ModelDiff:
    """Compare the facts about two models."""
    pairing = match_nodes(before, after)
    weights = WeightComparison(before.weights, after.weights, counterpart_weights(pairing))
    matches = [_node_match(matched, pairing, weights) for matched in pairing.matched]
    matches += [_removed(node, before) for node in pairing.open_before()]
    matches += [NodeMatch("added", (), (node.index,), passes=node.makers) for node in pairing.open_after()]
    matches.sort(key=lambda match: (match.before or match.after, match.after))
    return ModelDiff(before, after, tuple(matches), weights.changes, tuple(_interface(before, after)))


def _node_match(matched: Matched, pairing: Pairing, weights: WeightComparison) -> NodeMatch:
    before = [pairing.before.nodes[index] for index in matched.before]
    after = [pairing.after.nodes[index] for index in matched.after]
    known = {maker for node in before for maker in node.makers}
    passes = tuple(dict.fromkeys(maker for node in after for maker in node.makers if maker not in known))
    changes = tuple(node_changes(before[0], after[0], pairing, weights)) if len(before) == len(after) == 1 else ()
    return NodeMatch(kind_of(matched, pairing, changes), matched.before, matched.after, matched.by, passes, changes)


def _removed(node: Node, side: Side) -> NodeMatch:
    by = side.removed_by.get(node.label)
    return NodeMatch("removed", (node.index,), (), passes=() if by is None else (by,))


def _interface(before: Side, after: Side) -> Iterator[InterfaceChange]:
    for what, ours, theirs in (("input", before.inputs, after.inputs), ("output", before.outputs, after.outputs)):
        for name in dict.fromkeys((*ours, *theirs)):
            if ours.get(name) != theirs.get(name):
                missing = "of unknown type"
                yield InterfaceChange(
                    what,
                    name,
                    (ours[name] or missing) if name in ours else "",
                    (theirs[name] or missing) if name in theirs else "",
                )
    for domain in sorted(before.opsets.keys() | after.opsets.keys()):
        versions = [str(side.opsets[domain]) if domain in side.opsets else "" for side in (before, after)]
        if versions[0] != versions[1]:
            yield InterfaceChange("opset", domain or "ai.onnx", *versions)
