"""Parts of a model as models of their own, and the values inside a model."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from optimizer.ir.query import constant
from optimizer.ir.walk import nested_graphs, subgraphs

__all__ = ["backward_cone", "extract", "part_behind", "read_values", "with_outputs"]


def read_values(node: ir.Node) -> list[ir.Value]:
    """What a node reads: its inputs, and the values of graphs around it that its subgraphs use."""
    read = dict.fromkeys(value for value in node.inputs if value is not None)
    for body in subgraphs(node):
        own: set[ir.Value] = set()
        for graph in nested_graphs(body):
            own.update(graph.inputs, graph.initializers.values())
            own.update(output for inner in graph for output in inner.outputs)
        for graph in nested_graphs(body):
            used = [*graph.outputs, *(value for inner in graph for value in inner.inputs)]
            read.update(dict.fromkeys(value for value in used if value is not None and value not in own))
    return list(read)


def backward_cone(values: Collection[ir.Value], depth: int) -> set[ir.Node]:
    """The nodes from which the values can be reached in at most `depth` steps; constants are no step."""
    cone: set[ir.Node] = set()
    front = set(values)
    for _ in range(depth):
        layer = {node for value in front if (node := value.producer()) is not None} - cone
        if not layer:
            break
        cone |= layer
        front = {value for node in layer for value in read_values(node) if constant(value) is None}
    return cone


def extract(
    model: ir.Model, nodes: Collection[str], outputs: Sequence[str], seen: Mapping[str, Any]
) -> tuple[ir.Model, list[Any]] | None:
    """A part of the main graph as a model.

    Args:
        model: Not changed.
        nodes: The first outputs of the nodes to keep, by name.
        outputs: Names of the part's outputs.
        seen: What values of the model were in a run, by name.

    Returns:
        The part, with its inputs from `seen`. What the part reads and does not compute is an input of it: with its
        declared type and shape where they are known, else with those of the value seen. `None` if an output is not
        computed by the part, or one of its inputs was not seen.
    """
    part = model.clone()
    graph = part.graph
    kept = [node for node in graph if node.outputs and node.outputs[0].name in nodes]
    made = {value.name: value for node in kept for value in node.outputs}
    if not all(name in made for name in outputs):
        return None
    needed = dict.fromkeys(value for node in kept for value in read_values(node))
    borders = [v for v in needed if v.name not in made and (constant(v) is None or v.producer() is not None)]
    inputs = []
    graph.outputs.clear()  # what the part reads may have been one of them
    for value in borders:
        if value.name is None or seen.get(value.name) is None:
            return None
        new = _input_like(value, seen[value.name])
        value.replace_all_uses_with(new, replace_graph_outputs=False)
        inputs.append(new)
    graph.outputs.extend(made[name] for name in outputs)
    for node in reversed([node for node in graph if node not in set(kept)]):
        graph.remove(node, safe=False)
    graph.inputs.clear()
    graph.inputs.extend(inputs)
    for name, weight in list(graph.initializers.items()):
        if not weight.uses():
            del graph.initializers[name]
    for value in graph.outputs:
        array = seen.get(value.name or "")
        if isinstance(array, np.ndarray):
            value.type = value.type or ir.TensorType(ir.DataType.from_numpy(array.dtype))
            value.shape = value.shape if value.shape is not None else ir.Shape([None] * array.ndim)
    return part, [seen[value.name or ""] for value in borders]


def part_behind(
    model: ir.Model, known: Collection[str | None], wanted: Sequence[str], seen: Mapping[str, Any]
) -> ir.Model | None:
    """The nodes that compute some values from others, as a model whose inputs are those that are read.

    Args:
        model: Not changed.
        known: Names of the others.
        wanted: Names of what nodes of the main graph compute: the outputs.
        seen: As for `extract`.

    Returns:
        The part; `None` if one of its inputs was not seen.
    """
    made = {value.name: node for node in model.graph for value in node.outputs}
    needed: dict[ir.Node, None] = {}
    front = [made[name] for name in wanted]
    while front:
        node = front.pop()
        if node not in needed:
            needed[node] = None
            read = [value.name for value in read_values(node) if value.name not in known]
            front += [made[name] for name in read if name in made]
    found = extract(model, {node.outputs[0].name or "" for node in needed}, wanted, seen)
    return None if found is None else found[0]


def _input_like(value: ir.Value, seen: Any) -> ir.Value:
    type_, shape = value.type, value.shape.copy() if value.shape is not None else None
    if isinstance(seen, np.ndarray):
        type_ = type_ or ir.TensorType(ir.DataType.from_numpy(seen.dtype))
        if shape is None or len(shape) != seen.ndim:
            shape = ir.Shape(seen.shape)
    return ir.Value(name=value.name, type=type_, shape=shape)


def with_outputs(model: ir.Model, names: Collection[str]) -> ir.Model:
    """A copy of the model that gives these values of its main graph too, behind its own outputs."""
    copy = model.clone()
    graph = copy.graph
    present = {value.name for value in graph.outputs}
    made = {value.name: value for node in graph for value in node.outputs if value.name}
    graph.outputs.extend(made[name] for name in names if name not in present)
    return copy
