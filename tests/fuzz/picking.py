"""Pick a part of a model to change."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper


def graphs(model: ModelProto) -> Iterator[GraphProto]:
    """The graph and every subgraph of its nodes."""
    waiting = [model.graph]
    while waiting:
        graph = waiting.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.type == AttributeProto.GRAPH:
                    waiting.append(attribute.g)


def pick_graph(model: ModelProto, random: Random) -> GraphProto:
    """Any of the graphs."""
    return random.choice([*graphs(model)])


def all_nodes(model: ModelProto) -> list[NodeProto]:
    """The nodes of all graphs and functions."""
    return [node for graph in graphs(model) for node in graph.node] + [n for f in model.functions for n in f.node]


def pick_node(model: ModelProto, random: Random) -> NodeProto:
    """Any node of any graph or function."""
    nodes = all_nodes(model) or [model.graph.node.add(op_type="Relu")]
    return nodes[random.randrange(len(nodes))]


def pick_tensor(model: ModelProto, random: Random) -> TensorProto:
    """Any weight; one is added if there is none."""
    if not model.graph.initializer:
        model.graph.initializer.append(helper.make_tensor("added", TensorProto.FLOAT, [2], [1.0, 2.0]))
    tensor: TensorProto = model.graph.initializer[random.randrange(len(model.graph.initializer))]
    return tensor


def pick_value(model: ModelProto, random: Random) -> ValueInfoProto:
    """Any described value; one is added if there is none."""
    graph = pick_graph(model, random)
    values = [*graph.input, *graph.output, *graph.value_info]
    value: ValueInfoProto = random.choice(values) if values else graph.input.add(name="added")
    return value
