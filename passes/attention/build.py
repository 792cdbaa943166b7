"""Nodes that a fusion puts in the place of others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from optimizer.ir.edit import Editor, Scope
from optimizer.ir.provenance import inherit
from optimizer.ir.query import has_users
from optimizer.ir.views import Step

__all__ = ["NotFused", "Place", "sweep"]


class NotFused(Exception):
    """A place that looks like what the fusion is for, and is not; the text is the reason."""


def sweep(editor: Editor, nodes: Iterable[ir.Node]) -> None:
    """Take out those of the nodes that nothing uses any more, and what only they have used.

    A user that is left behind, if only to ask for a shape, would keep what feeds it from being simplified.
    """
    waiting = dict.fromkeys(nodes)
    while waiting:
        node, _ = waiting.popitem()
        if node.graph is None or has_users(node.outputs):
            continue
        feeding = [given.producer() for given in node.inputs if given is not None]
        editor.remove(node)
        waiting.update((producer, None) for producer in feeding if producer is not None)


class Place:
    """Where new nodes go: before one node, with the origins of the nodes that they stand for.

    Args:
        editor: Changes the model.
        scope: The graph.
        before: The node that the new ones precede.
        sources: Nodes whose origins they get.
    """

    def __init__(self, editor: Editor, scope: Scope, before: ir.Node, sources: Iterable[ir.Node]) -> None:
        self.editor = editor
        self.scope = scope
        self.before = before
        self.sources = tuple(sources)

    def add(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, int | float | Sequence[int]] | None = None,
        name: str | None = None,
    ) -> ir.Value:
        """A new node's output."""
        node = ir.node(op_type, inputs, attributes)
        return self.insert(node, name or self.before.outputs[0].name)

    def ints(self, numbers: Sequence[int], name: str | None = None) -> ir.Value:
        """A constant vector of int64."""
        return self.constant(np.array(numbers, np.int64), name)

    def constant(self, content: np.ndarray | ir.TensorProtocol, name: str | None = None) -> ir.Value:
        """A constant."""
        return self.editor.constant(self.scope, self.before, name or self.before.outputs[0].name, content)

    def insert(self, node: ir.Node, name: str | None) -> ir.Value:
        """The first output of a new node, called `name` or nearly so; its type and shape are inferred."""
        for output in node.outputs:
            output.name = self.editor.fresh_name(name)
        node.name = node.outputs[0].name
        inherit(node, self.sources)
        assert self.before.graph is not None, "the node is in a graph"
        self.before.graph.insert_before(self.before, node)
        self.editor.shapes.include(node, self.scope.opset)
        self.editor.modified = True
        return node.outputs[0]

    def behind(self, node: ir.Node, op_type: str, axes: Sequence[int]) -> ir.Node:
        """A node, in no graph yet, that squeezes or unsqueezes what another new one gives."""
        self.insert(node, self.before.outputs[0].name)
        return ir.node(op_type, [node.outputs[0], self.ints(axes, "axes")])

    def walk(self, value: ir.Value, steps: Sequence[Step]) -> ir.Value:
        """The value after some views."""
        for step in steps:
            name = value.name
            if step.op_type == "Transpose":
                value = self.add("Transpose", [value], {"perm": step.numbers}, name)
            else:
                kind = "shape" if step.op_type == "Reshape" else "axes"
                value = self.add(step.op_type, [value, self.ints(step.numbers, f"{name}_{kind}")], name=name)
        return value
