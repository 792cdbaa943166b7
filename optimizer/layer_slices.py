"""The layers of a quantized model, each with the nodes that do its work now, and copies of these nodes elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from optimizer.ir.query import constant

__all__ = ["LAYERS", "Copier", "LayerSlice", "find_slices", "weight_type"]

LAYERS = ("Conv", "ConvTranspose", "Gather", "Gemm", "MatMul")
"""What has a weight that can be rounded."""


@dataclass(frozen=True)
class LayerSlice:
    """A layer in both forms.

    Attributes:
        value: The name of what it gives.
        before: The float node.
        after: The nodes that do its work, in order; the last gives `value`.
    """

    value: str
    before: ir.Node
    after: list[ir.Node]

    @property
    def weight(self) -> str:
        """The narrowest type of 8 bits or fewer among the constants of its nodes, such as `int4`."""
        return weight_type(self.after)


def find_slices(before: ir.Model, after: ir.Model) -> list[LayerSlice]:
    """The layers of a float model that another set of nodes computes in a quantized one, in its order.

    Args:
        before: The float model.
        after: The quantized one. Values that both have are the same but for rounding.
    """
    made = {value.name: node for node in before.graph for value in node.outputs if value.name}
    common = {*made, *(value.name for value in before.graph.inputs)}
    found = []
    for node in after.graph:
        name = node.outputs[0].name if node.outputs else None
        old = None if name is None else made.get(name)
        if name is None or old is None or old.op_type not in LAYERS or old.outputs[0].name != name:
            continue
        nodes = _slice(node, common)
        if len(nodes) > 1 and weight_type(nodes):
            found.append(LayerSlice(name, old, nodes))
    return found


def weight_type(nodes: Sequence[ir.Node]) -> str:
    """The narrowest type of 8 bits or fewer among the constants of nodes, `""` if there is none."""
    tensors = [constant(value) for node in nodes for value in node.inputs]
    narrow = {t.dtype for t in tensors if t is not None and t.dtype.is_integer() and t.dtype.bitwidth <= 8}
    found = min(narrow, key=lambda dtype: (dtype.bitwidth, dtype.name), default=None)
    return "" if found is None else found.name.lower()


def _slice(last: ir.Node, common: set[str | None]) -> list[ir.Node]:
    """The nodes that compute what a node gives from values that the float model has, too."""
    nodes = {last: None}
    pending = [last]
    while pending:
        for value in pending.pop().inputs:
            producer = None if value is None or value.name in common else value.producer()
            if producer is not None and producer not in nodes:
                nodes[producer] = None
                pending.append(producer)
    assert last.graph is not None, "the node is in a graph"
    return [node for node in last.graph if node in nodes] if len(nodes) > 1 else [last]


class Copier:
    """Copies nodes of one model for another.

    What is copied once is not copied again: nodes that share a result or a constant share its copy.

    Args:
        graph: Gets the constants. The nodes are for the caller to put into it.
        known: Its values by name: what the copies read in the place of values of these names.
        rename: Gives a name of the other model from one of the first.
        constants: Those that were copied before, to share them.
    """

    def __init__(
        self,
        graph: ir.Graph,
        known: Mapping[str | None, ir.Value],
        rename: Callable[[str], str],
        constants: dict[ir.Value, ir.Value] | None = None,
    ) -> None:
        self._graph = graph
        self._known = known
        self._rename = rename
        self._constants = {} if constants is None else constants
        self._made: dict[ir.Value, ir.Value] = {}

    def copy(self, nodes: Sequence[ir.Node]) -> list[ir.Node]:
        """Copies of those nodes, in topological order, that were not copied yet."""
        return [self._copy(node) for node in nodes if node.outputs[0] not in self._made]

    def here(self, value: ir.Value) -> ir.Value:
        """What stands for a value of the first model."""
        if value.is_initializer():
            if value not in self._constants:
                copy = ir.Value(
                    name=self._rename(value.name or ""), type=value.type, shape=value.shape,
                    const_value=value.const_value,
                )  # fmt: skip
                self._constants[value] = copy
                self._graph.register_initializer(copy)
            return self._constants[value]
        return self._made[value] if value in self._made else self._known[value.name]

    def _copy(self, node: ir.Node) -> ir.Node:
        inputs = [None if value is None else self.here(value) for value in node.inputs]
        copy = ir.Node(
            node.domain, node.op_type, inputs, node.attributes.copy(), num_outputs=len(node.outputs),
            version=node.version, metadata_props=dict(node.metadata_props),
        )  # fmt: skip
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            new.name = self._rename(old.name) if old.name else ""
            new.type, new.shape = old.type, None if old.shape is None else old.shape.copy()
            self._made[old] = new
        return copy
