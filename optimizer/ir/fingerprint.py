"""A structural fingerprint: two models have the same one when they compute the same thing in the same way.

It covers the graph, its subgraphs and functions, attributes, initializers with their contents, the interface with its
names, and the types and shapes of all values. It does not cover what does not matter to a computation: names inside
the graph, metadata, documentation, and the order of initializers.

`describe` is the same as text, one line a node, for tests and for people.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import onnx_ir as ir

from optimizer.ir.tensors import content_hash

__all__ = ["describe", "fingerprint"]


def fingerprint(model: ir.Model) -> str:
    """A hash of the lines of `describe`, as hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    for line in describe(model):
        digest.update(line.encode())
        digest.update(b"\n")
    return digest.hexdigest()


def describe(model: ir.Model, *, types: bool = True) -> Iterator[str]:
    """The model in canonical text, one line a node.

    Args:
        model: The nodes are numbered in the order in which they stand.
        types: Whether to include the types and shapes of values inside the graph.
    """
    writer = _Writer(types)
    yield f"opsets {sorted(model.opset_imports.items())}"
    yield from writer.graph(model.graph, "", interface=True)
    for identifier in sorted(model.functions):
        function = model.functions[identifier]
        defaults = [writer.attribute(attribute) for _, attribute in sorted(function.attributes.items())]
        yield f"function {identifier} {defaults} opsets {sorted(function.opset_imports.items())}"
        yield from writer.graph(function.graph, "  ", interface=False)


class _Writer:
    def __init__(self, types: bool) -> None:
        self._types = types
        self._tokens: dict[ir.Value, str] = {}

    def graph(self, graph: ir.Graph, indent: str, *, interface: bool) -> Iterator[str]:
        inputs = [self._declare(value, interface) for value in graph.inputs]
        yield f"{indent}inputs {', '.join(inputs)}"
        for node in graph:
            yield from self._node(node, indent)
        outputs = [self._use(value) + (_signature(value) if interface else "") for value in graph.outputs]
        yield f"{indent}outputs {', '.join(outputs)}"
        unused = [self._constant(value) for value in graph.initializers.values() if value not in self._tokens]
        if unused:
            yield f"{indent}unused {', '.join(sorted(unused))}"

    def attribute(self, attribute: ir.Attr) -> str:
        if attribute.is_ref():
            return f"{attribute.name}=@{attribute.ref_attr_name}:{attribute.type.name}"
        value = attribute.value
        if attribute.type == ir.AttributeType.TENSOR:
            value = content_hash(value)
        elif attribute.type == ir.AttributeType.TENSORS:
            value = [content_hash(tensor) for tensor in value]
        elif attribute.type == ir.AttributeType.GRAPH:
            value = "graph"
        elif attribute.type == ir.AttributeType.GRAPHS:
            value = f"{len(value)} graphs"
        return f"{attribute.name}={value!r}:{attribute.type.name}"

    def _node(self, node: ir.Node, indent: str) -> Iterator[str]:
        inputs = ", ".join("_" if value is None else self._use(value) for value in node.inputs)
        outputs = ", ".join(self._declare(value, False) for value in node.outputs)
        attributes = [attribute for _, attribute in sorted(node.attributes.items())]
        text = ", ".join(self.attribute(attribute) for attribute in attributes)
        domain = f"{node.domain}." if node.domain else ""
        overload = f":{node.overload}" if node.overload else ""
        yield f"{indent}{outputs} = {domain}{node.op_type}{overload}({inputs}) {{{text}}}"
        for attribute in attributes:
            if attribute.is_ref():
                continue
            if attribute.type == ir.AttributeType.GRAPH:
                yield from self.graph(attribute.as_graph(), indent + "  ", interface=False)
            elif attribute.type == ir.AttributeType.GRAPHS:
                for graph in attribute.as_graphs():
                    yield from self.graph(graph, indent + "  ", interface=False)

    def _declare(self, value: ir.Value, interface: bool) -> str:
        if value.name == "":
            return "_"
        self._tokens[value] = token = f"%{len(self._tokens)}"
        if interface:
            return token + _signature(value) + (f" = {self._constant(value)}" if value.const_value else "")
        return f"{token}:{_type(value)}" if self._types else token

    def _use(self, value: ir.Value) -> str:
        token = self._tokens.get(value)
        if token is not None:
            return token
        self._tokens[value] = token = f"%{len(self._tokens)}"
        return f"{token}={self._constant(value)}" if value.is_initializer() else f"{token}?{value.name}"

    def _constant(self, value: ir.Value) -> str:
        if value.const_value is None:
            return "unset"
        tensor = value.const_value
        return f"{tensor.dtype.name}{tuple(tensor.shape)}#{content_hash(tensor)[:16]}"


def _signature(value: ir.Value) -> str:
    return f" {value.name!r}: {_type(value)}"


def _type(value: ir.Value) -> str:
    return f"{value.type or '?'}{'' if value.shape is None else value.shape}"
