"""Replace calls of the model's functions by their bodies.

A call is left as it is when

1. the function was written for another version of an operator that it uses, and that operator has changed in between;
2. the function calls itself, directly or through others, which ONNX forbids;
3. it passes on an input that the call leaves out, or the call has more inputs or outputs than the function.

An attribute that refers to one of the function gets the value of the call, else the function's default, else falls
away.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import onnx
import onnx_ir as ir

from optimizer.ir.edit import Editor
from optimizer.ir.provenance import inherit
from optimizer.ir.walk import called_functions, nested_graphs, subgraphs
from optimizer.pass_manager import Pass

__all__ = ["InlineFunctions"]


@dataclasses.dataclass(frozen=True)
class InlineFunctions(Pass):
    """Inlines the functions of the model; what is then never called is removed."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Inline into the main graph, then into the functions that are still called."""
        if not model.functions:
            return ir.passes.PassResult(model, False)
        editor = Editor(model)
        recursive = _recursive_functions(model)
        inliner = _Inliner(editor, {key: f for key, f in model.functions.items() if key not in recursive})
        inliner.inline_in(model.graph, model.graph.opset_imports)
        for identifier in sorted(called_functions(model)):
            function = model.functions[identifier]
            inliner.inline_in(function.graph, function.opset_imports)
        unused = set(model.functions) - called_functions(model)
        for identifier in unused:
            del model.functions[identifier]
        return ir.passes.PassResult(model, editor.modified or bool(unused))


class _Inliner:
    def __init__(self, editor: Editor, functions: Mapping[ir.OperatorIdentifier, ir.Function]) -> None:
        self._editor = editor
        self._functions = functions

    def inline_in(self, nodes: Iterable[ir.Node], opsets: dict[str, int]) -> None:
        """Inline every call among the nodes and in their subgraphs, and the calls that come in with the bodies."""
        for node in nodes:
            for subgraph in subgraphs(node):
                self.inline_in(subgraph, opsets)
            function = self._functions.get(node.op_identifier())
            if function is not None and _can_inline(node, function, opsets):
                opsets.update((key, version) for key, version in function.opset_imports.items() if key not in opsets)
                self.inline_in(self._inline(node, function), opsets)

    def _inline(self, call: ir.Node, function: ir.Function) -> list[ir.Node]:
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
        self._rename(call, nodes)
        assert call.graph is not None, "the call is in a graph"
        call.graph.insert_before(call, nodes)
        for old, new in zip(call.outputs, results, strict=False):
            assert new is not None, "a function does not pass on an input that is left out"
            self._editor.replace_or_copy(call, old, new)
        self._editor.remove(call)
        return nodes

    def _rename(self, call: ir.Node, nodes: list[ir.Node]) -> None:
        for node in nodes:
            node.name = f"{call.name}/{node.name}" if call.name and node.name else call.name or node.name
            inherit(node, [call])
            for output in node.outputs:
                if output.name:
                    output.name = self._editor.fresh_name(output.name)
            for subgraph in subgraphs(node):
                self._rename_graph(subgraph)

    def _rename_graph(self, graph: ir.Graph) -> None:
        for inner in nested_graphs(graph):
            for value in [*inner.inputs, *inner.initializers.values()]:
                value.name = self._editor.fresh_name(value.name)
            for node in inner:
                for output in node.outputs:
                    if output.name:
                        output.name = self._editor.fresh_name(output.name)


def _connect(formal: ir.Value, actual: ir.Value | None) -> None:
    for user, index in formal.uses():
        user.replace_input_with(index, actual)


def _can_inline(call: ir.Node, function: ir.Function, opsets: Mapping[str, int]) -> bool:
    if len(call.inputs) > len(function.inputs) or len(call.outputs) > len(function.outputs):
        return False
    missing = {formal for i, formal in enumerate(function.inputs) if i >= len(call.inputs) or call.inputs[i] is None}
    return not missing.intersection(function.outputs) and _means_the_same(function, opsets)


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


def _means_the_same(function: ir.Function, opsets: Mapping[str, int]) -> bool:
    """Whether the function's operators are the same in the versions of the graph around."""
    return all(
        opsets.get(domain, version) == version or _all_unchanged(function, domain, version, opsets[domain])
        for domain, version in function.opset_imports.items()
    )


def _all_unchanged(function: ir.Function, domain: str, version: int, other: int) -> bool:
    used = {node.op_type for node in function.all_nodes() if node.domain == domain}
    return all(_since(op, version, domain) == _since(op, other, domain) is not None for op in used)


def _since(op_type: str, version: int, domain: str) -> int | None:
    try:
        return onnx.defs.get_schema(op_type, version, domain).since_version
    except onnx.defs.SchemaError:
        return None


def _recursive_functions(model: ir.Model) -> set[ir.OperatorIdentifier]:
    """Functions that reach themselves."""
    calls = {
        key: {node.op_identifier() for node in function.all_nodes()} & set(model.functions)
        for key, function in model.functions.items()
    }
    # Those that call nothing are taken out again and again; what is left calls something that is left.
    leaves: list[ir.OperatorIdentifier] | None = None
    while leaves != []:
        left = set(calls)
        leaves = [key for key, called in calls.items() if not called & left]
        for key in leaves:
            del calls[key]
    return set(calls)
