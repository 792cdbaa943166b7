"""Remove what does not contribute to an output of the model.

1. Nodes of which no output is used. Nodes have no side effects in ONNX, random ones neither.
2. Optional outputs that nothing uses, of operators where leaving one out changes no other output; then trailing
inputs
   that are left out anyway.
3. Initializers that nothing uses. One that is also an input or an output of its graph belongs to the interface and
stays. 4. Functions that nothing calls.

Inputs of the model always stay.
"""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from optimizer.ir.edit import Editor
from optimizer.ir.query import is_op
from optimizer.ir.walk import all_graphs, called_functions, subgraphs, top_graphs
from optimizer.pass_manager import Pass

__all__ = ["RemoveUnused"]

_OPTIONAL_OUTPUTS = ("Dropout", "GRU", "LSTM", "LayerNormalization", "MaxPool", "RNN", "Unique")


@dataclasses.dataclass(frozen=True)
class RemoveUnused(Pass):
    """Removes dead nodes, outputs, initializers and functions."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Remove everything that is dead, in one backward walk."""
        editor = Editor(model)
        for graph in top_graphs(model):
            _sweep(editor, graph)
        modified = _remove_functions(model)  # after the calls that nothing uses
        for graph in all_graphs(model):
            modified |= _remove_initializers(graph)
        return ir.passes.PassResult(model, modified or editor.modified)


def _sweep(editor: Editor, graph: ir.Graph) -> None:
    for node in reversed(graph):
        editor.remove_if_unused(node)
        if node.graph is None:
            continue
        _trim(editor, node)
        for subgraph in subgraphs(node):
            _sweep(editor, subgraph)


def _trim(editor: Editor, node: ir.Node) -> None:
    if is_op(node, *_OPTIONAL_OUTPUTS):
        for output in node.outputs[1 if node.op_type not in ("GRU", "LSTM", "RNN") else 0 :]:
            if output.name != "" and not output.uses() and not output.is_graph_output():
                output.name = ""
                editor.modified = True
        _drop_trailing_outputs(editor, node)
    given = max((i + 1 for i, value in enumerate(node.inputs) if value is not None), default=0)
    if given < len(node.inputs):
        node.resize_inputs(given)
        editor.modified = True


def _drop_trailing_outputs(editor: Editor, node: ir.Node) -> None:
    named = max((i + 1 for i, output in enumerate(node.outputs) if output.name), default=0)
    if named < len(node.outputs):
        node.resize_outputs(named)
        editor.modified = True


def _remove_initializers(graph: ir.Graph) -> bool:
    unused = [
        name
        for name, value in graph.initializers.items()
        if not (value.uses() or value.is_graph_input() or value.is_graph_output())
    ]
    for name in unused:
        del graph.initializers[name]
    return bool(unused)


def _remove_functions(model: ir.Model) -> bool:
    called = called_functions(model)
    unused = [identifier for identifier in model.functions if identifier not in called]
    for identifier in unused:
        del model.functions[identifier]
    return bool(unused)
