"""Replace an `If` whose condition is constant by the branch that it takes.

The nodes and initializers of the branch move into the graph around; names that would then clash or hide each other
are changed. Where an output of the `If` is an output of the graph and the branch only passes a value on, an
`Identity` stays.
"""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from optimizer.ir.edit import Editor, Scope, rewrite_nodes
from optimizer.ir.provenance import inherit
from optimizer.ir.query import array, input_at, is_op
from optimizer.pass_manager import Pass

__all__ = ["FoldConstantIf"]


@dataclasses.dataclass(frozen=True)
class FoldConstantIf(Pass):
    """Takes the branch that is always taken."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold inner ones first."""
        return rewrite_nodes(model, _fold, ("If",))


def _fold(editor: Editor, scope: Scope, node: ir.Node) -> None:
    if not is_op(node, "If"):
        return
    condition = array(input_at(node, 0))
    if condition is None or condition.size != 1:
        return
    branch = node.attributes["then_branch" if condition.all() else "else_branch"].as_graph()
    results = list(branch.outputs)
    branch.outputs.clear()
    _move_nodes(editor, branch, node)
    moved = {value: _move_initializer(editor, scope, node, value) for value in list(branch.initializers.values())}
    for old, new in zip(node.outputs, results, strict=True):
        editor.replace_or_copy(node, old, moved.get(new, new))
    editor.remove(node)


def _move_nodes(editor: Editor, branch: ir.Graph, before: ir.Node) -> None:
    nodes = list(branch)
    branch.remove(nodes)
    for node in nodes:
        inherit(node, [before])
        for output in node.outputs:
            editor.make_unique(output)
    assert before.graph is not None, "the node is in a graph"
    before.graph.insert_before(before, nodes)


def _move_initializer(editor: Editor, scope: Scope, before: ir.Node, value: ir.Value) -> ir.Value:
    assert value.const_value is not None and value.graph is not None and value.name is not None
    name = value.name
    moved = editor.constant(scope, before, name, value.const_value)
    value.replace_all_uses_with(moved)
    del value.graph.initializers[name]
    return moved
