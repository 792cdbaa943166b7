"""Whether a model is sound: its graph first, then each node against its operator's schema.

Written in Python on purpose. The checkers in C++ trust the model that they are given: one that is hostile enough takes
the process along.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from optimizer.errors import ModelError
from optimizer.frontends.opset.convert import default_opset
from optimizer.frontends.schemas import check_node
from optimizer.ir.walk import nested_graphs, subgraphs, top_graphs

__all__ = ["check_graphs", "validate"]

_MAX_NESTING = 32
"""Subgraphs inside subgraphs; real models have three or four levels, a deeper one would exhaust Python's stack."""


_MAX_VERSION = 2**31 - 1


def validate(model: ir.Model) -> None:
    """Sort the model topologically and check it.

    Args:
        model: Changed in two ways: its nodes are sorted, and inputs that have a default value become plain weights.

    Raises:
        ModelError: It has a cycle, a name or value that is used and not defined, a name defined twice, functions that
            call each other in a circle, or a node that its operator's schema does not allow.
        UnsupportedError: It uses an operator that does not exist, and does not define it as a function.
    """
    check_graphs(model)
    _check_nodes(model)


def check_graphs(model: ir.Model) -> None:
    """The part of `validate` that asks nothing of operators: the graphs are sound, whatever their nodes are.

    Raises:
        ModelError: See `validate`.
    """
    _check_versions(model)
    _check_nesting(model)
    _check_function_calls(model)
    for top in top_graphs(model):
        _drop_weight_inputs(top)
        _forget_negative_sizes(top)
        _sort(top)
        _check_names(top)
        _check_values(top, [])


def _check_versions(model: ir.Model) -> None:
    for top in top_graphs(model):
        for domain, version in top.opset_imports.items():
            if not 0 < version <= _MAX_VERSION:
                raise ModelError(f"the model imports version {version} of domain {domain!r}, which cannot exist")


def _check_nesting(model: ir.Model) -> None:
    level = list(top_graphs(model))
    for _ in range(_MAX_NESTING):
        level = [inner for graph in level for node in graph for inner in subgraphs(node)]
        if not level:
            return
    raise ModelError(f"subgraphs are nested more than {_MAX_NESTING} levels deep")


def _check_function_calls(model: ir.Model) -> None:
    calls = {
        key: {node.op_identifier() for graph in nested_graphs(function.graph) for node in graph} & set(model.functions)
        for key, function in model.functions.items()
    }
    while calls:
        leaves = {key for key, callees in calls.items() if not callees}
        if not leaves:
            names = ", ".join(sorted(f"{domain}::{name}" for domain, name, _ in calls))
            raise ModelError(f"the functions {names} call each other in a circle: they can never be evaluated")
        calls = {key: callees - leaves for key, callees in calls.items() if key not in leaves}


def _drop_weight_inputs(graph: ir.Graph) -> None:
    """Inputs with a default value are an old way to write weights: keep the weight, drop the input."""
    for value in [value for value in graph.inputs if graph.initializers.get(value.name or "") is value]:
        graph.inputs.remove(value)


def _forget_negative_sizes(top: ir.Graph) -> None:
    """Some exporters write -1 for a size that they do not know."""
    for graph in nested_graphs(top):
        for value in (*graph.inputs, *graph.outputs, *(out for node in graph for out in node.outputs)):
            if value.shape is not None and any(isinstance(dim, int) and dim < 0 for dim in value.shape):
                value.shape = ir.Shape([None if isinstance(dim, int) and dim < 0 else dim for dim in value.shape])


def _sort(graph: ir.Graph) -> None:
    try:
        graph.sort()
    except ValueError as error:
        names = ", ".join(repr(node.name) for node in _on_cycle(graph)[:3])
        raise ModelError(f"the graph has a cycle, among others through node {names}") from error


def _on_cycle(graph: ir.Graph) -> list[ir.Node]:
    """What is left when nodes without open predecessors are taken away again and again."""
    left = dict.fromkeys(graph)
    while True:
        ready = [node for node in left if not any(before in left for before in node.predecessors())]
        if not ready:
            return list(left)
        for node in ready:
            del left[node]


def _check_names(top: ir.Graph) -> None:
    for graph in nested_graphs(top):
        seen: dict[str, ir.Value] = {}
        values = [*graph.inputs, *graph.initializers.values(), *(out for node in graph for out in node.outputs)]
        for value in values:
            if not value.name:
                continue
            if seen.setdefault(value.name, value) is not value:
                raise ModelError(f"the name {value.name!r} is given to two values: names must be unique")
        if len(set(map(id, graph.inputs))) != len(graph.inputs):
            raise ModelError("the graph lists an input twice")


def _check_values(graph: ir.Graph, outer: Sequence[set[ir.Value]]) -> None:
    known: set[ir.Value] = {*graph.inputs, *graph.initializers.values()}
    for value in graph.initializers.values():
        if value.const_value is None:
            raise ModelError(f"the weight {value.name!r} has no data")
    scopes = [*outer, known]
    for node in graph:
        for read in node.inputs:
            if read is not None and not any(read in scope for scope in scopes):
                raise ModelError(f"node {node.name!r} ({node.op_type}) reads {read.name!r}, which nothing produces")
        for inner in subgraphs(node):
            _check_values(inner, scopes)
        known.update(node.outputs)
    for value in graph.outputs:
        if not any(value in scope for scope in scopes):
            raise ModelError(f"the output {value.name!r} is produced by nothing")


def _check_nodes(model: ir.Model) -> None:
    parameters = {id(f.graph): set(f.attributes) for f in model.functions.values()}
    for top in top_graphs(model):
        imports = top.opset_imports
        version = default_opset(imports)
        for graph in nested_graphs(top):
            for node in graph:
                _check_references(node, parameters.get(id(top), set()))
                if node.op_identifier() not in model.functions:
                    check_node(node, version if node.domain == "" else imports.get(node.domain))


def _check_references(node: ir.Node, parameters: set[str]) -> None:
    for attr in node.attributes.values():
        if attr.is_ref() and attr.ref_attr_name not in parameters:
            raise ModelError(
                f"node {node.name!r} ({node.op_type}): attribute {attr.name!r} refers to {attr.ref_attr_name!r}, "
                "which is no attribute of a function around it"
            )
