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
from optimizer.ir.inline import inline_call
from optimizer.ir.walk import called_functions, subgraphs
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
                self.inline_in(inline_call(self._editor, node, function), opsets)


def _can_inline(call: ir.Node, function: ir.Function, opsets: Mapping[str, int]) -> bool:
    if len(call.inputs) > len(function.inputs) or len(call.outputs) > len(function.outputs):
        return False
    missing = {formal for i, formal in enumerate(function.inputs) if i >= len(call.inputs) or call.inputs[i] is None}
    return not missing.intersection(function.outputs) and _means_the_same(function, opsets)


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
