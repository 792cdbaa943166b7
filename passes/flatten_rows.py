"""Work on the rows of a tensor as on those of a matrix, where the products then take their summands.

    Add(MatMul(x, w), b)  ->  Reshape(Gemm(Reshape(x, [-1, K]), w, b), [..., N])

ONNX has a product with a summand for matrices only. One such product would cost two reshapes to save one node, so the
operators that do the same to every row (`optimizer.ir.rows`) are collected as regions, in which every tensor becomes
the matrix of its rows: what enters and leaves is reshaped once, every reshape inside falls away, and so does the Add
after every product when fuse-gemm comes next. It is done when

1. the model has fewer nodes then: products with a summand and reshapes inside, against reshapes at the edge;
2. of each shape at most one size in front of the last is unknown, so that a constant can bring it back;
3. no size is 0.

An operator at the edge that costs more than it is worth is left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from optimizer.ir.edit import Editor, Scope, rewrite_graphs
from optimizer.ir.provenance import inherit
from optimizer.ir.query import constant, is_op
from optimizer.ir.rows import RESHAPES, product_in_sum, row_operands
from optimizer.pass_manager import Pass

__all__ = ["FlattenRows"]

_MANY = 64
"""What more nodes read than this is taken to be needed inside and outside, without a look at all of them each time."""


@dataclasses.dataclass(frozen=True)
class FlattenRows(Pass):
    """Lets what works on rows work on matrices."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Flatten wherever the model has fewer nodes then."""
        return rewrite_graphs(model, _flatten)


def _flatten(editor: Editor, scope: Scope) -> None:
    region = _Region(editor)
    for node in scope.graph:
        operands = row_operands(editor, scope.opset, node)
        if operands is not None:
            region.add(node, operands)
    if not region.worth:
        return
    region.trim()
    for part in region.parts():
        if part.gain() > 0:
            _Flattening(editor, scope, part).run()


@dataclass
class _Region:
    """Operators that work on rows, in topological order.

    Attributes:
        editor: Knows the shapes.
        operands: The operators, and which of their inputs are rows.
        members: Those of them that have not been left out.
        worth: Those of them that fall away when everything is a matrix.
    """

    editor: Editor
    operands: dict[ir.Node, tuple[int, ...]] = field(default_factory=dict)
    members: set[ir.Node] = field(default_factory=set)
    worth: set[ir.Node] = field(default_factory=set)
    _known_uses: dict[ir.Value, Collection[tuple[ir.Node, int]]] = field(default_factory=dict)

    def add(self, node: ir.Node, operands: tuple[int, ...]) -> None:
        """Take an operator in."""
        self.operands[node] = operands
        self.members.add(node)
        falls_away = node.op_type in RESHAPES or (
            self.rank(node.outputs[0]) != 2 and product_in_sum(self.editor, node) in self.operands
        )
        if falls_away:
            self.worth.add(node)

    def _uses(self, value: ir.Value) -> Collection[tuple[ir.Node, int]]:
        if value not in self._known_uses:
            self._known_uses[value] = value.uses()
        return self._known_uses[value]

    def rank(self, value: ir.Value) -> int:
        """How many axes a value has."""
        return len(self.editor.shapes.dims(value) or ())

    def rows(self, node: ir.Node) -> Iterator[ir.Value]:
        """The inputs of an operator that are rows, each once."""
        yield from dict.fromkeys(value for i in self.operands[node] if (value := node.inputs[i]) is not None)

    def gain(self) -> int:
        """How many nodes there are fewer when everything here is a matrix."""
        entering = {value for node in self.operands for value in self.rows(node) if self.enters(value)}
        leaving = [node for node in self.members if self.leaves(node.outputs[0])]
        edge = sum(map(self._cost_to_enter, entering)) + sum(self._cost_to_leave(node.outputs[0]) for node in leaving)
        return len(self.worth & self.members) - edge

    def enters(self, value: ir.Value) -> bool:
        """Whether a row operand comes from outside."""
        return value.producer() not in self.members

    def leaves(self, value: ir.Value) -> bool:
        """Whether something outside needs what an operator here gives."""
        return value.is_graph_output() or any(user not in self.members for user, _ in value.uses())

    def _cost_to_enter(self, value: ir.Value) -> int:
        return 0 if self.rank(value) == 2 or constant(value) is not None else 1

    def _cost_to_leave(self, value: ir.Value) -> int:
        return 0 if self.rank(value) == 2 else 1

    def trim(self) -> None:
        """Leave out, from the edge inwards, what costs more reshapes here than it would outside."""
        waiting = dict.fromkeys(self.operands)
        while waiting:
            node, _ = waiting.popitem()
            around = [*self._neighbours(node)]
            if self._is_burden(node):
                self.members.remove(node)
                waiting.update(dict.fromkeys(other for other in around if other in self.members))

    def _is_burden(self, node: ir.Node) -> bool:
        if node not in self.members or (node in self.worth and node.op_type not in RESHAPES):
            return False
        if is_op(node, "Gemm", "MatMul"):
            return False
        inside = self._edge_around(node)
        self.members.remove(node)
        outside = self._edge_around(node)
        self.members.add(node)
        return outside + (node in self.worth) < inside

    def _edge_around(self, node: ir.Node) -> int:
        """The reshapes at the edge for the values that a node reads and gives, wherever it stands itself."""
        cost = 0
        for value in dict.fromkeys((*node.inputs, node.outputs[0])):
            if value is None or len(self._uses(value)) > _MANY:
                continue
            inside = any(user in self.members and value in self.rows(user) for user, _ in value.uses())
            if self.enters(value):
                cost += self._cost_to_enter(value) if inside else 0
            elif self.leaves(value):
                cost += self._cost_to_leave(value)
        return cost

    def _neighbours(self, node: ir.Node) -> Iterator[ir.Node]:
        for value in node.inputs:
            before = None if value is None else value.producer()
            if before is not None and before in self.members:
                yield before
        for user, _ in node.outputs[0].uses():
            if user in self.members:
                yield user

    def parts(self) -> list[_Region]:
        """What hangs together, each part in topological order."""
        part_of: dict[ir.Node, int] = {}
        kept = [node for node in self.operands if node in self.members]
        for number, start in enumerate(kept):
            stack = [start] if start not in part_of else []
            while stack:
                node = stack.pop()
                if node not in part_of:
                    part_of[node] = number
                    stack.extend(self._neighbours(node))
        found: dict[int, _Region] = {}
        for node in kept:
            part = found.setdefault(part_of[node], _Region(self.editor))
            part.operands[node] = self.operands[node]
            part.members.add(node)
            if node in self.worth:
                part.worth.add(node)
        return list(found.values())


@dataclass
class _Flattening:
    """Makes matrices of the tensors of one region."""

    editor: Editor
    scope: Scope
    region: _Region
    flat: dict[ir.Value, ir.Value] = field(default_factory=dict)

    def run(self) -> None:
        """Rewrite the region."""
        leaving = [node for node in self.region.operands if self.region.leaves(node.outputs[0])]
        for node in self.region.operands:
            self.flat[node.outputs[0]] = self._flattened(node)
        for node in leaving:
            self._bring_back(node)
        for node in reversed(self.region.operands):
            self.editor.remove(node)

    def _flattened(self, node: ir.Node) -> ir.Value:
        """The matrix of the rows that the node gives."""
        rows = self.region.operands[node]
        if node.op_type in RESHAPES:
            assert node.inputs[0] is not None, "it has rows"
            return self._matrix(node, node.inputs[0])
        inputs = [
            None if value is None else self._matrix(node, value) if i in rows else self._one_row(node, value)
            for i, value in enumerate(node.inputs)
        ]
        copy = ir.Node("", node.op_type, inputs, node.attributes.copy(), name=node.name, version=node.version)
        if node.op_type not in ("Gemm", "MatMul") and "axis" in copy.attributes:
            copy.attributes["axis"] = ir.AttrInt64("axis", -1)
        self._put(node, copy, node.outputs[0])
        return copy.outputs[0]

    def _matrix(self, node: ir.Node, value: ir.Value) -> ir.Value:
        """A tensor as the matrix of its rows, for a node that reads it."""
        dims = self.editor.shapes.dims(value)
        assert dims is not None, "rows have a shape"
        if len(dims) == 2 and value not in self.flat:
            return value
        if value not in self.flat:
            tensor = constant(value)
            if tensor is not None:
                elements = tensor.numpy().reshape(-1, *tensor.shape.numpy()[-1:])
                self.flat[value] = self.editor.constant(self.scope, node, value.name, elements)
            else:
                self.flat[value] = self._reshape(node, value, (-1, dims[-1]))
        return self.flat[value]

    def _one_row(self, node: ir.Node, value: ir.Value) -> ir.Value:
        """A constant that is the same for every row, without axes that would be more than a matrix has."""
        tensor = constant(value)
        if tensor is None or len(tensor.shape) <= 2:
            return value
        elements = tensor.numpy()
        return self.editor.constant(self.scope, node, value.name, elements.reshape(elements.shape[-1:]))

    def _bring_back(self, node: ir.Node) -> None:
        old = node.outputs[0]
        dims = self.editor.shapes.dims(old)
        assert dims is not None, "rows have a shape"
        matrix = self.flat[old]
        if len(dims) == 2 and matrix.producer() is not None and not matrix.is_graph_output():
            self.editor.replace_or_copy(node, old, matrix)
            return
        back = self._reshape(node, matrix, tuple(dim if isinstance(dim, int) else -1 for dim in dims))
        self.editor.replace(old, back)

    def _reshape(self, node: ir.Node, value: ir.Value, shape: Iterable[object]) -> ir.Value:
        target = self.editor.constant(self.scope, node, f"{value.name}_shape", np.array([*shape], np.int64))
        reshape = ir.node("Reshape", [value, target])
        self._put(node, reshape, value)
        return reshape.outputs[0]

    def _put(self, node: ir.Node, new: ir.Node, like: ir.Value) -> None:
        """Place a new node before `node`, whose work it does, or which it helps."""
        new.outputs[0].name = self.editor.fresh_name(like.name)
        new.outputs[0].type = node.outputs[0].type
        inherit(new, [node])
        assert node.graph is not None, "the node is in a graph"
        node.graph.insert_before(node, new)
