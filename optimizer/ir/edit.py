"""Changes to a graph that keep it legal: replace a value, add a constant, take nodes out, find a free name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from optimizer.ir.walk import all_graphs, subgraphs

__all__ = ["Names", "Scope", "add_constant", "can_replace", "remove", "replace", "scopes"]


class Names:
    """Names of values that are free in the whole model.

    A name inside a subgraph may not hide one of the graph around it, so uniqueness in one graph is not enough.
    """

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._used: set[str] | None = None
        self._next: dict[str, int] = {}

    def fresh(self, base: str) -> str:
        """`base`, or `base` with a number, whichever is free; it counts as used from then on."""
        if self._used is None:
            self._used = set(_value_names(self._model))
        name = base or "value"
        while name in self._used:
            self._next[base] = number = self._next.get(base, 0) + 1
            name = f"{base}_{number}"
        self._used.add(name)
        return name


@dataclass(frozen=True)
class Scope:
    """One graph of the model, and what a pass must know about where it stands.

    Attributes:
        graph: The graph.
        opset: The version of the standard ONNX operators in it; 0 when it imports none.
        in_function: Whether it is the body of a function itself, which can have no initializers.
        parent: The scope around it.
    """

    graph: ir.Graph
    opset: int
    in_function: bool = False
    parent: Scope | None = None


def scopes(model: ir.Model) -> Iterator[Scope]:
    """Every graph of the model, outer before inner. A graph may be changed before the next one is asked for."""
    yield from _nested(Scope(model.graph, model.opset_imports.get("", 0)))
    for function in list(model.functions.values()):
        opset = function.opset_imports.get("", model.opset_imports.get("", 0))
        yield from _nested(Scope(function.graph, opset, in_function=True))


def can_replace(old: ir.Value, new: ir.Value) -> bool:
    """Whether `replace` would succeed."""
    if not old.is_graph_output():
        return True
    producer = new.producer()
    return producer is not None and producer.graph is old.graph and not new.is_graph_output()


def replace(old: ir.Value, new: ir.Value) -> bool:
    """Let every user of `old` use `new` instead.

    When `old` is an output of its graph, `new` takes its place, name and declared type there. That is not possible
    when `new` is an input, an initializer, another output, or belongs to another graph: then nothing changes.

    Args:
        old: Its node is to be removed by the caller.
        new: Stands before every user of `old`.

    Returns:
        Whether it was possible.
    """
    if not can_replace(old, new):
        return False
    if old.is_graph_output():
        new.name = old.name
        new.type = old.type or new.type
        new.shape = old.shape if old.shape is not None else new.shape
    else:
        new.type = new.type or old.type
        if new.shape is None and old.shape is not None:
            new.shape = old.shape.copy()
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    return True


def remove(nodes: Iterable[ir.Node]) -> None:
    """Take nodes that nothing uses any more out of their graphs; fast for many nodes."""
    by_graph: dict[ir.Graph, list[ir.Node]] = {}
    for node in nodes:
        assert node.graph is not None, "a node is removed once"
        by_graph.setdefault(node.graph, []).append(node)
    for graph, removed in by_graph.items():
        graph.remove(removed, safe=True)


def add_constant(
    scope: Scope, before: ir.Node, name: str, content: npt.NDArray[np.generic] | ir.TensorProtocol
) -> ir.Value:
    """Give `scope` a constant: an initializer, or in a function, which can have none, a `Constant` node.

    Args:
        scope: Where it is to be.
        before: A node of that graph that the constant must precede.
        name: A free name.
        content: The elements.
    """
    tensor = ir.tensor(content, name=name) if isinstance(content, np.ndarray) else content
    if scope.in_function:
        node = ir.node("Constant", inputs=[], attributes={"value": tensor}, name=name)
        value = node.outputs[0]
        value.name = name
        scope.graph.insert_before(before, node)
    else:
        value = ir.Value(name=name, const_value=tensor)
        scope.graph.register_initializer(value)
    value.type = ir.TensorType(tensor.dtype)
    value.shape = ir.Shape(tensor.shape.numpy())
    return value


def _nested(scope: Scope) -> Iterator[Scope]:
    yield scope
    for node in scope.graph:
        if node.attributes:
            for graph in subgraphs(node):
                yield from _nested(Scope(graph, scope.opset, parent=scope))


def _value_names(model: ir.Model) -> Iterator[str]:
    for graph in all_graphs(model):
        for value in graph.inputs:
            yield value.name or ""
        yield from graph.initializers
        for node in graph:
            for output in node.outputs:
                yield output.name or ""
