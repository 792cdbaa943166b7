"""What is compared: a model as flat facts, without its weights.

Nodes are numbered over all graphs: the main graph, the bodies of its control flow, the bodies of functions. A node
knows the nodes that its inputs come from, wherever they stand, so that no later step cares about nesting.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import onnx_ir as ir

from optimizer.ir import provenance
from optimizer.ir.query import constant, is_op
from optimizer.ir.specs import specs_of
from optimizer.model_diff.attributes import attribute_text
from optimizer.model_diff.scopes import Scope, body_scope, function_scope, scope_of
from optimizer.model_diff.weights import Weight

__all__ = ["Node", "Read", "Side", "Written", "read_side"]


@dataclass(frozen=True)
class Read:
    """One input of a node.

    Attributes:
        value: The name of the value; `""` for an optional input that is left out.
        source: The node that it comes from, if from one.
        slot: Which output of that node it is.
        weight: The weight that it is, if one: a key of `Side.weights`.
    """

    value: str
    source: int | None = None
    slot: int = 0
    weight: str | None = None


@dataclass(frozen=True)
class Written:
    """One output of a node.

    Attributes:
        value: The name of the value.
        dtype: Its element type, `""` where that is not known.
        shape: Its dimensions, as in `TensorSpec`; `None` where not even their number is known.
    """

    value: str
    dtype: str
    shape: tuple[int | str | None, ...] | None

    @property
    def type(self) -> str:
        """Such as `float32[1, 128, 768]`."""
        return self.dtype + _shape_text(self.shape)

    def contradicts(self, other: Written) -> bool:
        """Whether the types differ in what both know; names of unknown sizes do not count."""
        if self.dtype and other.dtype and self.dtype != other.dtype:
            return True
        if self.shape is None or other.shape is None:
            return False
        if len(self.shape) != len(other.shape):
            return True
        pairs = zip(self.shape, other.shape, strict=True)
        return any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in pairs)


@dataclass(frozen=True)
class Node:
    """One node.

    Attributes:
        index: Its number in `Side.nodes`.
        name: In the graph; may be empty.
        label: What to call it: its name, or what it computes.
        op: The operator, with its domain if that is not the default one.
        graph: The graph that it stands in, `""` for the main one.
        scope: The modules around it, outermost first.
        inputs: What it reads, in order.
        outputs: What it gives, in order.
        attributes: As text, by name.
        bodies: The nodes that give the outputs of its subgraphs.
        origins: Labels of the original nodes that it stands for; at least its own.
        makers: The passes that made it.
    """

    index: int
    name: str
    label: str
    op: str
    graph: str
    scope: Scope
    inputs: tuple[Read, ...]
    outputs: tuple[Written, ...]
    attributes: dict[str, str]
    bodies: tuple[int, ...]
    origins: tuple[str, ...]
    makers: tuple[str, ...]

    def sources(self) -> Iterator[int]:
        """The nodes that it reads from, those at the ends of its subgraphs included."""
        yield from (read.source for read in self.inputs if read.source is not None)
        yield from self.bodies


@dataclass
class Side:
    """One of the two models.

    Attributes:
        title: What to call it.
        nodes: All of them; in each graph in topological order.
        weights: By key: the name, behind that of the graph if that is not the main one. What a `Constant` node gives is
            a weight, too: ONNX writes the same in two ways.
        inputs: Names and types of the main graph's inputs.
        outputs: The same of its outputs.
        output_sources: The nodes that give the outputs, `None` for those that no node gives.
        opsets: Version by domain.
        constants: How many of the weights are `Constant` nodes, which are not among `nodes`.
        has_provenance: Whether any node says where it is from.
        removed_by: The pass that removed a node, by its label, where that is known.
    """

    title: str
    nodes: list[Node] = field(default_factory=list)
    weights: dict[str, Weight] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    output_sources: list[tuple[int, int] | None] = field(default_factory=list)
    opsets: dict[str, int] = field(default_factory=dict)
    constants: int = 0
    has_provenance: bool = False
    removed_by: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def consumers(self) -> list[list[tuple[int, int]]]:
        """For each node those that read from it, with the input at which they do; -1 for the end of a subgraph."""
        consumers: list[list[tuple[int, int]]] = [[] for _ in self.nodes]
        for node in self.nodes:
            for slot, read in enumerate(node.inputs):
                if read.source is not None:
                    consumers[read.source].append((node.index, slot))
            for source in node.bodies:
                consumers[source].append((node.index, -1))
        return consumers


def read_side(model: ir.Model, title: str) -> Side:
    """The facts about a model, which is not changed."""
    return _Reader(model, title).side


class _Reader:
    def __init__(self, model: ir.Model, title: str) -> None:
        self.side = Side(title, opsets=dict(model.opset_imports))
        self._sources: dict[ir.Value, tuple[int, int]] = {}
        self._weights: dict[ir.Value, str] = {}
        self._graph(model.graph, "", ())
        for identifier, function in model.functions.items():
            name = "::".join(part for part in identifier if part)
            self._graph(function.graph, f"function {name}", function_scope(name))
        self.side.inputs = {value.name or "": _type_text(value) for value in model.graph.inputs}
        self.side.outputs = {value.name or "": _type_text(value) for value in model.graph.outputs}
        self.side.output_sources = [self._sources.get(value) for value in model.graph.outputs]

    def _graph(self, graph: ir.Graph, path: str, around: Scope) -> list[int]:
        """Read a graph and those inside it; the nodes that give its outputs are returned."""
        for value in graph.initializers.values():
            if value.const_value is not None:
                self._weight(value, value.const_value, path)
        given = set(graph.outputs)
        for node in graph:
            tensor = constant(node.outputs[0]) if is_op(node, "Constant") and node.outputs else None
            if tensor is None or node.outputs[0] in given:
                self._node(node, path, around)
            else:
                self.side.constants += 1
                self._weight(node.outputs[0], tensor, path)
        return [self._sources[value][0] for value in graph.outputs if value in self._sources]

    def _weight(self, value: ir.Value, tensor: ir.TensorProtocol, path: str) -> None:
        key = f"{path}/{value.name}" if path else value.name or ""
        self._weights[value] = key
        self.side.weights[key] = Weight.of(key, tensor)

    def _node(self, node: ir.Node, path: str, around: Scope) -> None:
        label = node.name or provenance.label(node)
        scope = scope_of(node, around)
        bodies: list[int] = []
        for name, graph in _bodies(node):
            inner = f"{path}/{label}.{name}" if path else f"{label}.{name}"
            bodies += self._graph(graph, inner, body_scope(scope, label, name))
        index = len(self.side.nodes)
        self.side.has_provenance |= provenance.BY in node.metadata_props
        for slot, value in enumerate(node.outputs):
            self._sources[value] = index, slot
        self.side.nodes.append(
            Node(
                index=index,
                name=node.name or "",
                label=label,
                op=f"{node.domain}::{node.op_type}".removeprefix("::"),
                graph=path,
                scope=scope,
                inputs=tuple(self._read(value) for value in node.inputs),
                outputs=tuple(Written(spec.name, spec.dtype, spec.shape) for spec in specs_of(node.outputs)),
                attributes={name: attribute_text(attribute) for name, attribute in sorted(node.attributes.items())},
                bodies=tuple(bodies),
                origins=provenance.origins(node) or (label,),
                makers=provenance.makers(node),
            )
        )

    def _read(self, value: ir.Value | None) -> Read:
        if value is None:
            return Read("")
        source, slot = self._sources.get(value, (None, 0))
        return Read(value.name or "", source, slot, self._weights.get(value))


def _bodies(node: ir.Node) -> Iterator[tuple[str, ir.Graph]]:
    for name, attribute in node.attributes.items():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            yield name, attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from ((f"{name}{number}", graph) for number, graph in enumerate(attribute.as_graphs()))


def _type_text(value: ir.Value) -> str:
    (spec,) = specs_of([value])
    return spec.dtype + _shape_text(spec.shape)


def _shape_text(shape: tuple[int | str | None, ...] | None) -> str:
    return "" if shape is None else "[" + ", ".join("?" if dim is None else str(dim) for dim in shape) + "]"
