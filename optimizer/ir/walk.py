"""Every graph and every node of a model: the main graph, the bodies of functions, and the subgraphs of both."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

__all__ = ["all_graphs", "all_nodes", "called_functions", "has_subgraphs", "nested_graphs", "subgraphs", "top_graphs"]

_GRAPH, _GRAPHS = ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS


def top_graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """The main graph, then the body of each function."""
    yield model.graph
    for function in model.functions.values():
        yield function.graph


def subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    """The graphs that are attributes of the node itself."""
    # `data` is the dictionary itself: this is asked of every node in every pass.
    for attribute in node.attributes.data.values():
        type_ = attribute.type
        if type_ == _GRAPH and not attribute.is_ref():
            yield attribute.as_graph()
        elif type_ == _GRAPHS and not attribute.is_ref():
            yield from attribute.as_graphs()


def has_subgraphs(node: ir.Node) -> bool:
    """Whether `subgraphs` gives any."""
    types = [attribute.type for attribute in node.attributes.data.values()]
    return (_GRAPH in types or _GRAPHS in types) and next(subgraphs(node), None) is not None


def nested_graphs(graph: ir.Graph) -> Iterator[ir.Graph]:
    """The graph itself, then the graphs inside its nodes, outer before inner."""
    yield graph
    for node in graph:
        if node.attributes.data and has_subgraphs(node):
            for subgraph in subgraphs(node):
                yield from nested_graphs(subgraph)


def called_functions(model: ir.Model) -> set[ir.OperatorIdentifier]:
    """The functions that the main graph calls, and those that they call."""
    reached: set[ir.OperatorIdentifier] = set()
    unread = [model.graph]
    while unread:
        for graph in nested_graphs(unread.pop()):
            for node in graph:
                identifier = node.op_identifier()
                if identifier in model.functions and identifier not in reached:
                    reached.add(identifier)
                    unread.append(model.functions[identifier].graph)
    return reached


def all_graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """Every graph of the model, outer before inner."""
    for graph in top_graphs(model):
        yield from nested_graphs(graph)


def all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Every node of the model, those of a graph before those inside them."""
    for graph in top_graphs(model):
        yield from _nodes(graph)


def _nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    inner = []
    for node in graph:
        yield node
        if node.attributes.data and has_subgraphs(node):
            inner.append(node)
    for node in inner:
        for subgraph in subgraphs(node):
            yield from _nodes(subgraph)
