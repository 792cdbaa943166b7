"""Operators that do not care in which order the axes of their tensors are, connected with each other.

`q` is the order into which the values of a region are turned: `new = Transpose(old, q)`, and `p` undoes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from optimizer.ir.edit import Editor, Scope
from optimizer.ir.match import producer
from optimizer.ir.provenance import inherit
from optimizer.ir.query import constant, input_at, int_attribute, ints_attribute, is_op, known_ints

__all__ = ["Region", "region_before"]

# fmt: off
_ELEMENTWISE = frozenset({
    "Abs", "Add", "And", "Cast", "Ceil", "Clip", "Cos", "Div", "Elu", "Equal", "Erf", "Exp", "Floor", "Gelu", "Greater",
    "GreaterOrEqual", "HardSigmoid", "HardSwish", "IsNaN", "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Mean",
    "Min", "Mish", "Mul", "Neg", "Not", "Or", "Pow", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin",
    "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Tanh", "Where", "Xor",
})
_ALONG_AXIS = frozenset({"Concat", "LogSoftmax", "Softmax"})
_REDUCTIONS = frozenset({
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSum", "ReduceSumSquare",
})
# fmt: on
_ON_LAST_AXIS = frozenset({"LayerNormalization", "MatMul", "RMSNormalization"})
"""They work along the last axis of their first input, when the others are constants that only have that one."""
_FIRST_ONLY = frozenset({"Clip", *_REDUCTIONS, *_ON_LAST_AXIS})
"""Only the first input has axes to be turned."""
_MAX_NODES = 64


@dataclass
class Region:
    """A region and what crosses its edge.

    Attributes:
        graph: Where it stands.
        q: The new order of the axes.
        nodes: The operators.
        entering: Values that come in, in the old order: those that a Transpose by `p` gives, and all others.
        leaving: Transposes by `q` of what goes out.
        others: Values that go out otherwise.
    """

    graph: ir.Graph | ir.Function | None
    q: tuple[int, ...]
    nodes: dict[ir.Node, None] = field(default_factory=dict)
    entering: dict[ir.Value, ir.Node | None] = field(default_factory=dict)
    leaving: dict[ir.Node, None] = field(default_factory=dict)
    others: dict[ir.Value, None] = field(default_factory=dict)

    @property
    def p(self) -> tuple[int, ...]:
        """The order that undoes `q`."""
        return tuple(self.q.index(axis) for axis in range(len(self.q)))

    def gain(self) -> int:
        """How many transposes there are fewer when the region is turned."""
        turned = [node for node in self.entering.values() if node is not None]
        freed = [node for node in turned if all(user in self.nodes for user, _ in node.outputs[0].uses())]
        freed = [node for node in freed if not node.outputs[0].is_graph_output()]
        added = len(self.entering) - len(turned) + len(self.others)
        return len(self.leaving) + len(freed) - added

    def turn(self, editor: Editor, scope: Scope) -> None:
        """Rewrite the region in the new order."""
        new: dict[ir.Value, ir.Value] = {}
        for node in _sorted(self.nodes):
            copy = self._turned(editor, scope, node, new)
            assert node.graph is not None, "the node is in a graph"
            node.graph.insert_before(node, copy)
            new[node.outputs[0]] = copy.outputs[0]
        for value in self.others:
            self._turn_back(editor, value, new[value])
        for transpose in self.leaving:
            source = transpose.inputs[0]
            assert source is not None, "it turns a value of the region"
            editor.replace_or_copy(transpose, transpose.outputs[0], new[source])
            editor.remove(transpose)
        for node in reversed(_sorted(self.nodes)):
            editor.remove(node)
        for node in {node: None for node in self.entering.values() if node is not None}:
            editor.remove_if_unused(node)

    def _turned(self, editor: Editor, scope: Scope, node: ir.Node, new: dict[ir.Value, ir.Value]) -> ir.Node:
        inputs: list[ir.Value | None] = []
        for index, value in enumerate(node.inputs):
            if value is None or (index > 0 and node.op_type in _FIRST_ONLY):
                inputs.append(value)
                continue
            if value not in new:
                new[value] = self._turned_operand(editor, scope, node, value)
            inputs.append(new[value])
        copy = ir.Node("", node.op_type, inputs, node.attributes.copy(), name=node.name)
        if node.op_type in _ALONG_AXIS:
            axis = int_attribute(node, "axis", -1) % len(self.q)
            copy.attributes["axis"] = ir.AttrInt64("axis", self.q.index(axis))
        elif node.op_type in _REDUCTIONS:
            self._renumber(editor, scope, node, copy)
        old = node.outputs[0]
        copy.outputs[0].name = editor.fresh_name(old.name)
        copy.outputs[0].type = old.type
        if old.shape is not None and len(old.shape) == len(self.q):
            copy.outputs[0].shape = ir.Shape([old.shape[axis] for axis in self.q])
        inherit(copy, [node])
        return copy

    def _turned_operand(self, editor: Editor, scope: Scope, node: ir.Node, value: ir.Value) -> ir.Value:
        transpose = self.entering.get(value)
        if transpose is not None and transpose.inputs[0] is not None:
            inherit(node, [transpose])
            return transpose.inputs[0]
        tensor = constant(value)
        if tensor is not None:
            if tensor.size == 1:
                return value
            elements = tensor.numpy()
            shaped = elements.reshape((1,) * (len(self.q) - elements.ndim) + elements.shape)
            return editor.constant(scope, node, value.name, np.ascontiguousarray(shaped.transpose(self.q)))
        if value not in self.entering:
            return value  # One element without axes.
        return self._transpose(editor, node, value, self.q)

    def _renumber(self, editor: Editor, scope: Scope, node: ir.Node, copy: ir.Node) -> None:
        axes = _axes(node) or ()
        turned = np.array(sorted(self.q.index(axis % len(self.q)) for axis in axes), np.int64)
        if len(node.inputs) > 1:
            copy.replace_input_with(1, editor.constant(scope, node, f"{node.outputs[0].name}_axes", turned))
        else:
            copy.attributes["axes"] = ir.AttrInt64s("axes", turned.tolist())

    def _turn_back(self, editor: Editor, old: ir.Value, new: ir.Value) -> None:
        node = new.producer()
        assert node is not None, "it was made here"
        users = [(user, index) for user, index in old.uses() if user not in self.nodes and user not in self.leaving]
        back = self._transpose(editor, node, new, self.p, after=True)
        if old.is_graph_output():
            inside = [(user, index) for user, index in old.uses() if (user, index) not in users]
            editor.replace(old, back)
            for user, index in inside:
                user.replace_input_with(index, old)
            return
        for user, index in users:
            user.replace_input_with(index, back)
        editor.modified = True

    @staticmethod
    def _transpose(
        editor: Editor, node: ir.Node, value: ir.Value, order: tuple[int, ...], *, after: bool = False
    ) -> ir.Value:
        transpose = ir.node("Transpose", [value], {"perm": order})
        transpose.outputs[0].name = editor.fresh_name(f"{value.name}_turned")
        inherit(transpose, [node])
        assert node.graph is not None, "the node is in a graph"
        if after:
            node.graph.insert_after(node, transpose)
        else:
            node.graph.insert_before(node, transpose)
        editor.modified = True
        return transpose.outputs[0]


def region_before(editor: Editor, transpose: ir.Node, q: tuple[int, ...]) -> Region | None:
    """The region whose values are turned into the order of this Transpose; `None` when it cannot be turned."""
    region = Region(transpose.graph, q)
    first = None if transpose.inputs[0] is None else transpose.inputs[0].producer()
    if first is None or not _can_turn(editor, region, first):
        return None
    waiting = [first]
    region.nodes[first] = None
    while waiting:
        for neighbour in _neighbours(editor, region, waiting.pop()):
            region.nodes[neighbour] = None
            waiting.append(neighbour)
            if len(region.nodes) > _MAX_NODES:
                return None
    return region if _find_edges(editor, region) else None


def _neighbours(editor: Editor, region: Region, node: ir.Node) -> Iterator[ir.Node]:
    around = [value.producer() for value in node.inputs if value is not None]
    around += [user for user, _ in node.outputs[0].uses()]
    for neighbour in dict.fromkeys(around):
        if neighbour is not None and neighbour not in region.nodes and _can_turn(editor, region, neighbour):
            yield neighbour


def _can_turn(editor: Editor, region: Region, node: ir.Node) -> bool:
    if node.graph is not region.graph or len(node.outputs) != 1 or not is_op(node, node.op_type):
        return False
    dims = editor.shapes.dims(node.outputs[0])
    if dims is None or len(dims) != len(region.q):
        return False
    if node.op_type in _REDUCTIONS:
        return bool(_axes(node)) and int_attribute(node, "keepdims", 1) == 1
    if node.op_type in _ON_LAST_AXIS:
        return region.q[-1] == len(region.q) - 1 and _spares_other_axes(node)
    return node.op_type in _ELEMENTWISE or node.op_type in _ALONG_AXIS


def _spares_other_axes(node: ir.Node) -> bool:
    """Whether a product or a normalization does the same at every position."""
    others = [constant(value) for value in node.inputs[1:]]
    if node.op_type == "MatMul":
        return others[0] is not None and len(others[0].shape) == 2
    vectors = all(tensor is not None and len(tensor.shape) == 1 for tensor in others)
    return vectors and int_attribute(node, "axis", -1) == -1


def _axes(node: ir.Node) -> tuple[int, ...] | None:
    return known_ints(input_at(node, 1)) if len(node.inputs) > 1 else ints_attribute(node, "axes")


def _find_edges(editor: Editor, region: Region) -> bool:
    """Note what crosses the edge; `False` when something cannot be turned."""
    for node in region.nodes:
        for index, value in enumerate(node.inputs):
            if value is None or value.producer() in region.nodes:
                continue
            if index > 0 and node.op_type in _FIRST_ONLY:
                continue
            if constant(value) is not None:
                continue
            dims = editor.shapes.dims(value)
            if dims is None or len(dims) not in (0, len(region.q)):
                return False
            if dims:
                inverse = producer(value, region.graph, "Transpose")
                undone = inverse is not None and ints_attribute(inverse, "perm") == region.p
                region.entering[value] = inverse if undone else None
        output = node.outputs[0]
        if output.is_graph_output():
            region.others[output] = None
        for user, _ in output.uses():
            if user in region.nodes:
                continue
            same = user.graph is region.graph and is_op(user, "Transpose") and ints_attribute(user, "perm") == region.q
            if same:
                region.leaving[user] = None
            else:
                region.others[output] = None
    return True


def _sorted(nodes: dict[ir.Node, None]) -> list[ir.Node]:
    """In topological order."""
    done: dict[ir.Node, None] = {}
    for start in nodes:
        stack = [start]
        while stack:
            node = stack[-1]
            before = [value.producer() for value in node.inputs if value is not None]
            waiting = [other for other in before if other is not None and other in nodes and other not in done]
            if waiting:
                stack.extend(waiting)
            else:
                done[stack.pop()] = None
    return list(done)
