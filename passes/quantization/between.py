"""Which values are rounded: what layers read, and what lies between layers, where int8 pays there, too.

What a layer reads is rounded. Beyond that, for our own kernels, which join what follows a layer to it:

1. An operator that only moves or chooses elements in front of a rounding (`CARRIES`) does so with codes: what it reads
   is rounded to the same grid. It moves a quarter of the bytes, and nothing more is lost.
2. What a quantized Conv and a sum or a pool read (a skip connection) is rounded for both, if then nothing is left that
   reads it as float32: the float32 form is not stored at all. It is not done where only products read it: the skip
   connections of a transformer carry outliers.

For ONNX Runtime, which has an integer kernel for an operator if all it reads and gives is rounded:

3. What a Conv gives, or the Relu or Clip behind it, is rounded for all readers. A Conv whose result is an output of the
   model is left alone: it would be computed in float32.
4. So is what an operator of `COMPUTES` gives, if all that it reads is rounded; and what one of `CARRIES` gives, to
   the grid of what it reads.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, field

import onnx_ir as ir

from optimizer.ir.edit import Editor, Scope
from optimizer.ir.query import array, constant, input_at, is_op, only_user, string_attribute
from passes.quantization.layers import LAYERS, SKIPS, Layer

__all__ = ["CARRIES", "COMPUTES", "Rounding", "plan_rounding"]

CARRIES = ("Flatten", "MaxPool", "Pad", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")
"""They give elements of their first input as those are, or zeros: a grid is kept, and so is the order of numbers."""

COMPUTES = ("Add", "AveragePool", "GlobalAveragePool", "Mul")
"""Beside layers, what ONNX Runtime computes in integers and images meet often."""

_JOINED = ("Clip", "Relu")
"""Their bounds are those of the grid behind them."""


@dataclass
class Rounding:
    """What is to be read rounded.

    Attributes:
        layers: The layers that are quantized.
        reads: The inputs of nodes that read a rounded value, by their indices.
    """

    layers: list[Layer]
    reads: dict[ir.Node, list[int]] = field(default_factory=dict)
    _values: dict[ir.Value, None] = field(default_factory=dict)
    _same: dict[ir.Value, ir.Value] = field(default_factory=dict)

    def add(self, node: ir.Node, index: int) -> None:
        """Let a node read an input rounded."""
        value = node.inputs[index]
        assert value is not None, "an input that is left out is not read"
        indices = self.reads.setdefault(node, [])
        if index not in indices:
            indices.append(index)
        self._values[value] = None

    def has(self, value: ir.Value | None) -> bool:
        """Whether a value is rounded for some reader."""
        return value in self._values

    def covers(self, value: ir.Value, *besides: ir.Node) -> bool:
        """Whether all readers of a value, besides some, read it rounded."""
        readers = ((user, index) for user, index in value.uses() if user not in besides)
        return not value.is_graph_output() and all(index in self.reads.get(user, ()) for user, index in readers)

    def join(self, value: ir.Value, other: ir.Value) -> None:
        """Let a value be rounded to the grid of another."""
        first, last = self.leader(value), self.leader(other)
        if first is not last:
            self._same[first] = last

    def leader(self, value: ir.Value) -> ir.Value:
        """The value whose range gives the grid."""
        while value in self._same:
            value = self._same[value]
        return value

    def grids(self) -> dict[str, str]:
        """Names of the rounded values, with the names of those whose ranges give their grids."""
        return {value.name or "": self.leader(value).name or "" for value in self._values}


def plan_rounding(editor: Editor, scope: Scope, layers: Sequence[Layer], onnxruntime: bool) -> Rounding:
    """Find out what is to be read rounded.

    Args:
        editor: Of the model; told of layers that are left alone.
        scope: The main graph.
        layers: What can be quantized, in topological order.
        onnxruntime: Whether it is for ONNX Runtime's kernels.
    """
    if onnxruntime:
        layers = [layer for layer in layers if _gives_no_output(editor, layer)]
    plan = Rounding(list(layers))
    for layer in layers:
        plan.add(layer.node, 0)
    if onnxruntime:
        _forward(plan, scope)
    else:
        _backward(plan, scope)
        _skip_connections(plan, scope)
    return plan


def _backward(plan: Rounding, scope: Scope) -> None:
    for node in reversed(scope.graph):
        y, x = node.outputs[0] if node.outputs else None, node.inputs[0] if node.inputs else None
        if y is None or x is None or not plan.has(y) or not _carries(node) or not plan.covers(y):
            continue
        known = plan.has(x)
        plan.add(node, 0)
        # A value that others read rounded needs the range that they need.
        if known:
            plan.join(y, x)
        else:
            plan.join(x, y)


def _skip_connections(plan: Rounding, scope: Scope) -> None:
    convolutions = [layer for layer in plan.layers if layer.node.op_type == "Conv"]
    for value in dict.fromkeys(layer.x for layer in convolutions):
        others = [(user, index) for user, index in value.uses() if index not in plan.reads.get(user, ())]
        users = [user for user, _ in others]
        if others and plan.covers(value, *users) and all(is_op(u, *SKIPS) and u.graph is scope.graph for u in users):
            for user, index in others:
                plan.add(user, index)


def _forward(plan: Rounding, scope: Scope) -> None:
    layers = {layer.node for layer in plan.layers}
    rounded: set[ir.Value] = {layer.x for layer in plan.layers}
    for node in scope.graph:
        if node in layers and node.op_type == "Conv":
            _round_everywhere(plan, _result(node), rounded, layers)
        elif is_op(node, *COMPUTES) and all(value in rounded for value in node.inputs):
            for index in range(len(node.inputs)):
                plan.add(node, index)
            if not _leaves(_result(node)):
                _round_everywhere(plan, _result(node), rounded, layers)
        elif _carries(node) and node.inputs[0] in rounded and not _leaves(node.outputs[0]):
            plan.add(node, 0)
            plan.join(node.outputs[0], node.inputs[0])
            _round_everywhere(plan, node.outputs[0], rounded, layers)


def _round_everywhere(plan: Rounding, value: ir.Value, rounded: set[ir.Value], layers: Set[ir.Node]) -> None:
    rounded.add(value)
    for user, index in value.uses():
        # ONNX Runtime rounds the weight of a layer that reads something rounded, asked or not, for all channels alike.
        if user in layers or not is_op(user, *LAYERS):
            plan.add(user, index)


def _result(node: ir.Node) -> ir.Value:
    """What a node gives, or what the Relu or Clip behind it does, if nothing else reads it."""
    user = only_user(node.outputs[0])
    return user.outputs[0] if user is not None and is_op(user, *_JOINED) else node.outputs[0]


def _leaves(value: ir.Value) -> bool:
    """Whether a value is needed outside of the graph, or inside of a subgraph."""
    producer = value.producer()
    graph = None if producer is None else producer.graph
    return value.is_graph_output() or any(user.graph is not graph for user, _ in value.uses())


def _gives_no_output(editor: Editor, layer: Layer) -> bool:
    if layer.node.op_type != "Conv" or not _leaves(_result(layer.node)):
        return True
    editor.miss(layer.node, "its result leaves the graph as float32: ONNX Runtime would compute it in float32")
    return False


def _carries(node: ir.Node) -> bool:
    """Whether a node gives elements of its first input, and nothing else."""
    if not is_op(node, *CARRIES) or node.inputs[0] is None or constant(node.inputs[0]) is not None:
        return False
    if node.op_type == "Pad" and not _pads_with_zeros(node):
        return False
    return all(not value.uses() and not value.is_graph_output() for value in node.outputs[1:])


def _pads_with_zeros(node: ir.Node) -> bool:
    filling = input_at(node, 2)
    number = array(filling)
    return string_attribute(node, "mode", "constant") == "constant" and (
        filling is None or (number is not None and not number.any())
    )
