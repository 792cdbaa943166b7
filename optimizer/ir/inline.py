"""Put the body of a function in the place of a node that calls it."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from optimizer.ir.edit import Editor
from optimizer.ir.provenance import inherit
from optimizer.ir.walk import nested_graphs, subgraphs

__all__ = ["inline_call"]


def inline_call(editor: Editor, call: ir.Node, function: ir.Function) -> list[ir.Node]:
    """Put a copy of a function's body in the place of a node that calls it.

    An attribute that refers to one of the function gets the value of the call, else the function's default, else falls
    away.

    Args:
        editor: Of the model.
        call: Is removed. It has no more inputs and outputs than the function, and leaves out no input that the function
            passes on.
        function: Its operators mean the same where the call stands.

    Returns:
        The new nodes, in order.
    """
    body = function.clone().graph
    given = dict(zip(body.inputs, call.inputs, strict=False))
    results = [given.get(value, value) for value in body.outputs]
    body.outputs.clear()
    for value in body.inputs:
        _connect(value, given.get(value))
    attributes = _attributes(call, function)
    for graph in nested_graphs(body):
        for node in graph:
            _resolve_references(node, attributes)
    nodes = list(body)
    body.remove(nodes)
    _rename(editor, call, nodes)
    assert call.graph is not None, "the call is in a graph"
    call.graph.insert_before(call, nodes)
    for old, new in zip(call.outputs, results, strict=False):
        assert new is not None, "a function does not pass on an input that is left out"
        editor.replace_or_copy(call, old, new)
    editor.remove(call)
    return nodes


def _rename(editor: Editor, call: ir.Node, nodes: list[ir.Node]) -> None:
    for node in nodes:
        # ONNX Runtime wants different names, and the same body may be called several times.
        own = node.name or (node.outputs[0].name if node.outputs else "")
        if call.name:
            node.name = f"{call.name}/{own}" if own else call.name
        inherit(node, [call])
        for output in node.outputs:
            if output.name:
                output.name = editor.fresh_name(output.name)
        if not call.name and node.name and node.outputs:
            node.name = node.outputs[0].name
        for subgraph in subgraphs(node):
            _rename_graph(editor, subgraph)


def _rename_graph(editor: Editor, graph: ir.Graph) -> None:
    for inner in nested_graphs(graph):
        for value in [*inner.inputs, *inner.initializers.values()]:
            value.name = editor.fresh_name(value.name)
        for node in inner:
            for output in node.outputs:
                if output.name:
                    output.name = editor.fresh_name(output.name)


def _connect(formal: ir.Value, actual: ir.Value | None) -> None:
    for user, index in formal.uses():
        user.replace_input_with(index, actual)


def _attributes(call: ir.Node, function: ir.Function) -> dict[str, ir.Attr]:
    defaults = {name: attribute for name, attribute in function.attributes.items() if attribute.value is not None}
    return {**defaults, **call.attributes}


def _resolve_references(node: ir.Node, actual: Mapping[str, ir.Attr]) -> None:
    for name, attribute in list(node.attributes.items()):
        if attribute.ref_attr_name is None:
            continue
        found = actual.get(attribute.ref_attr_name)
        if found is None:
            del node.attributes[name]
        elif found.ref_attr_name is not None:
            node.attributes[name] = ir.RefAttr(name, found.ref_attr_name, attribute.type)
        else:
            node.attributes[name] = ir.Attr(name, found.type, _own(found))


def _own(attribute: ir.Attr) -> object:
    """A graph belongs to one node only."""
    if attribute.type == ir.AttributeType.GRAPH:
        return attribute.as_graph().clone(allow_outer_scope_values=True)
    if attribute.type == ir.AttributeType.GRAPHS:
        return [graph.clone(allow_outer_scope_values=True) for graph in attribute.as_graphs()]
    return attribute.value
