"""Graphs that hold rounded weights: telling them, and shaking what they round."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from optimizer.ir.query import constant, is_op
from optimizer.ir.walk import all_graphs, all_nodes

__all__ = ["narrow_elements", "shaken"]

_NARROW = frozenset(
    {ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.INT2, ir.DataType.UINT2}
)
_ROUNDS = ("DynamicQuantizeLinear", "QuantizeLinear")

_SHAKES = 12345.678
"""So many radians for each unit of a number: neighbours in any tensor are shaken independently."""


def narrow_elements(model: ir.Model) -> int:
    """How many elements of weights are stored in 8 bits or fewer. A pass that quantizes makes it grow."""
    return sum(
        tensor.size
        for graph in all_graphs(model)
        for value in graph.initializers.values()
        if (tensor := value.const_value) is not None and tensor.dtype in _NARROW
    )


def shaken(model: ir.Model, amount: float) -> ir.Model:
    """A copy in which every number that is rounded while the model runs is off a little.

    What it gives differs from what the model gives as much as two correct ways of computing it may: a number beside a
    boundary of rounding falls to the other side of it, and what follows differs by a step.

    Args:
        model: Not changed.
        amount: The largest relative error that is brought in. It goes up and down with the number, so that neighbours
            differ.
    """
    copy = model.clone()
    for node in list(all_nodes(copy)):
        x = node.inputs[0] if is_op(node, *_ROUNDS) else None
        graph = node.graph
        if x is None or constant(x) is not None or not isinstance(graph, ir.Graph):
            continue
        chain = _Chain(f"{node.outputs[0].name}_shaken")
        wave = chain.add("Sin", chain.add("Mul", x, chain.number(_SHAKES)))
        error = chain.add("Mul", chain.add("Mul", wave, chain.number(amount)), x)
        node.replace_input_with(0, chain.add("Add", x, error))
        graph.insert_before(node, chain.nodes)
    return copy


class _Chain:
    """New nodes that follow each other.

    Args:
        name: The beginning of their outputs' names.
    """

    def __init__(self, name: str) -> None:
        self.nodes: list[ir.Node] = []
        self._name = name

    def add(self, op_type: str, *inputs: ir.Value) -> ir.Value:
        """One more."""
        return self._append(ir.node(op_type, inputs))

    def number(self, content: float) -> ir.Value:
        """A constant."""
        return self._append(ir.node("Constant", [], {"value": ir.tensor(np.array(content, np.float32))}))

    def _append(self, node: ir.Node) -> ir.Value:
        self.nodes.append(node)
        node.outputs[0].name = f"{self._name}_{len(self.nodes)}"
        return node.outputs[0]
