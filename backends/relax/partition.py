"""Which nodes run where: the fewest alternating segments that respect the data flow."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass

import onnx_ir as ir

_LAYOUT = ("Cast", "DequantizeLinear", "Gather", "Mul", "Reshape", "Transpose")
"""What exporters put between a weight and the product that reads it."""


@dataclass
class Segment:
    """Nodes, in topological order, that one engine runs in one go."""

    fallback: bool
    nodes: list[ir.Node]


def captured(node: ir.Node) -> set[ir.Value]:
    """Values of enclosing graphs that the node's subgraphs read."""
    if not any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
        return set()
    read: set[ir.Value] = set()
    own: set[ir.Value] = set()
    for graph in _subgraphs(node):
        own.update(graph.inputs, graph.initializers.values())
        read.update(v for v in graph.outputs if v is not None)
        for inner in graph:
            read.update(v for v in inner.inputs if v is not None)
            own.update(inner.outputs)
    return read - own


def _subgraphs(node: ir.Node) -> Iterable[ir.Graph]:
    pending = deque([node])
    while pending:
        for attribute in pending.popleft().attributes.values():
            graphs = (
                [attribute.as_graph()]
                if attribute.type == ir.AttributeType.GRAPH
                else list(attribute.as_graphs())
                if attribute.type == ir.AttributeType.GRAPHS
                else []
            )
            for graph in graphs:
                yield graph
                pending.extend(graph)


def reads(node: ir.Node) -> set[ir.Value]:
    """Every value that the node needs, those of its subgraphs included."""
    return {v for v in node.inputs if v is not None} | captured(node)


def segments(nodes: Sequence[ir.Node], refused: set[ir.Node], weights: Set[str] = frozenset()) -> list[Segment]:
    """Cut the graph into segments that alternate between the compiled code and the fallback.

    All nodes of one kind that are ready are taken before the kind is changed, which gives the smallest number of
    changes for the first
    kind chosen; both first choices are tried. A node that only turns or unpacks weights is in each segment that reads
    it: there the product packs the weight when the model is compiled, and nothing is handed from one run to the next.

    Args:
        nodes: in topological order.
        refused: those that the fallback runs.
        weights: the names of the initializers.
    """
    if not refused:
        return [Segment(False, list(nodes))] if nodes else []
    apart = _of_weights(nodes, refused, weights)
    rest = [node for node in nodes if node not in apart]
    result = min((_sweep(rest, refused, first) for first in (False, True)), key=len)
    for part in result:
        part.nodes = [*_read_by(part, apart), *part.nodes]
    return result


def _of_weights(nodes: Sequence[ir.Node], refused: set[ir.Node], weights: Set[str]) -> dict[ir.Node, None]:
    """Nodes that say how weights lie, and that only compiled code reads, in their order."""
    found: dict[ir.Node, None] = {}
    read_elsewhere = {value for node in refused for value in reads(node)}
    for node in nodes:
        inputs = [value for value in node.inputs if value is not None]
        known = all(value.name in weights or value.producer() in found for value in inputs)
        handed_on = any(value in read_elsewhere or value.is_graph_output() for value in node.outputs)
        if node.op_type in _LAYOUT and node not in refused and known and not handed_on:
            found[node] = None
    return found


def _read_by(part: Segment, apart: dict[ir.Node, None]) -> list[ir.Node]:
    """Those of the nodes kept apart that a segment reads, in their order."""
    wanted: set[ir.Node] = set()
    pending = list(part.nodes)
    while pending:
        found = {p for v in reads(pending.pop()) if (p := v.producer()) in apart} - wanted
        wanted |= found
        pending += found
    return [node for node in apart if node in wanted]


def _sweep(nodes: Sequence[ir.Node], refused: set[ir.Node], fallback: bool) -> list[Segment]:
    position = {node: i for i, node in enumerate(nodes)}
    producers = {node: {p for v in reads(node) if (p := v.producer()) in position} for node in nodes}
    waiting = {node: len(p) for node, p in producers.items()}
    consumers: dict[ir.Node, list[ir.Node]] = {node: [] for node in nodes}
    for node, before in producers.items():
        for producer in before:
            consumers[producer].append(node)
    ready = {kind: deque(n for n in nodes if waiting[n] == 0 and (n in refused) == kind) for kind in (False, True)}
    result: list[Segment] = []
    while ready[False] or ready[True]:
        taken: list[ir.Node] = []
        while ready[fallback]:
            node = ready[fallback].popleft()
            taken.append(node)
            for consumer in consumers[node]:
                waiting[consumer] -= 1
                if waiting[consumer] == 0:
                    ready[consumer in refused].append(consumer)
        if taken:
            result.append(Segment(fallback, sorted(taken, key=position.__getitem__)))
        fallback = not fallback
    return result
