"""Let an operator that broadcasts do so, instead of stretching its operand before.

1. An operand that comes from Expand, or from a Tile that only repeats axes of size 1, is taken as it was before.
2. An operand that comes from ConstantOfShape is one number.
3. An operand that Gather takes from the first axis by indices that come from Expand is taken by the indices as they
   were: the rows of an embedding that are all the same.

It is done for an element-wise operator of several operands, and for the axes of MatMul in front of the matrices, when
the result provably has the same shape: each of its sizes is found at another operand, or at this one as it was. Expand
itself broadcasts too.

The stretching stays when something else uses it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from optimizer.ir.edit import Editor, Scope, rewrite_nodes
from optimizer.ir.match import producer, remove_dead
from optimizer.ir.provenance import inherit
from optimizer.ir.query import input_at, int_attribute, is_op, only_user
from optimizer.ir.shape_info import Dims
from optimizer.pass_manager import Pass

__all__ = ["EliminateBroadcasts"]

# fmt: off
_ELEMENTWISE = (
    "Add", "And", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater", "GreaterOrEqual", "Less",
    "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "Pow", "Sub", "Sum", "Where", "Xor",
)
# fmt: on


@dataclasses.dataclass(frozen=True)
class EliminateBroadcasts(Pass):
    """Removes what stretches an operand that is stretched anyway."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Take every operand as it was before, where that is possible."""
        return rewrite_nodes(model, _eliminate, (*_ELEMENTWISE, "Expand", "MatMul"))


def _eliminate(editor: Editor, scope: Scope, node: ir.Node) -> None:
    if scope.opset < 8 or not is_op(node, *_ELEMENTWISE, "Expand", "MatMul"):
        return
    for index in range(1 if node.op_type == "Expand" else len(node.inputs)):
        if not _unstretch_rows(editor, node, index):
            _unstretch(editor, scope, node, index)


def _unstretch_rows(editor: Editor, node: ir.Node, index: int) -> bool:
    """Rule 3."""
    value = node.inputs[index]
    gather = producer(value, node.graph, "Gather")
    stretching = None if gather is None else producer(input_at(gather, 1), node.graph, "Expand")
    if gather is None or value is None or stretching is None or node.op_type == "MatMul":
        return False
    if int_attribute(gather, "axis", 0) != 0 or only_user(value) is not node:
        return False
    data, indices = editor.shapes.dims(gather.inputs[0]), editor.shapes.dims(stretching.inputs[0])
    if data is None or indices is None or not _keeps_shape(editor, node, index, (*indices, *data[1:])):
        return False
    rows = ir.Node("", "Gather", [gather.inputs[0], stretching.inputs[0]], gather.attributes.copy())
    rows.outputs[0].name = editor.fresh_name(value.name)
    rows.outputs[0].type = value.type
    inherit(rows, [gather, stretching])
    assert node.graph is not None, "the node is in a graph"
    node.graph.insert_before(node, rows)
    node.replace_input_with(index, rows.outputs[0])
    editor.modified = True
    remove_dead(editor, [gather, stretching])
    return True


def _unstretch(editor: Editor, scope: Scope, node: ir.Node, index: int) -> None:
    value = node.inputs[index]
    stretching = None if value is None else value.producer()
    if stretching is None or not is_op(stretching, "ConstantOfShape", "Expand", "Tile"):
        return
    is_number = stretching.op_type == "ConstantOfShape"
    given: Dims | None = () if is_number else editor.shapes.dims(stretching.inputs[0])
    if given is None or (stretching.op_type == "Tile" and not _repeats_ones(given, editor.shapes.dims(value))):
        return
    if node.op_type == "MatMul":
        same = editor.shapes.dims(value)
        if is_number or same is None or len(given) < 2 or given[-2:] != same[-2:]:
            return
    if not _keeps_shape(editor, node, index, given):
        return
    new = _number(editor, scope, node, stretching) if is_number else stretching.inputs[0]
    node.replace_input_with(index, new)
    inherit(node, [stretching])
    editor.modified = True
    remove_dead(editor, [stretching])


def _keeps_shape(editor: Editor, node: ir.Node, index: int, given: Dims) -> bool:
    """Whether the result has the same shape when this operand has the shape `given`."""
    operands = [editor.shapes.dims(other) for other in node.inputs]
    if node.op_type == "Expand":
        operands[1] = editor.shapes.data(node.inputs[1])
    operands[index] = given
    known = [dims for dims in operands if dims is not None]
    wanted = editor.shapes.dims(node.outputs[0])
    if wanted is None or len(known) < len(operands):
        return False
    if node.op_type == "MatMul":
        if min(map(len, known)) < 2:
            return False
        known, wanted = [dims[:-2] for dims in known], wanted[:-2]
    return _reaches(known, wanted)


def _repeats_ones(given: Dims, wanted: Dims | None) -> bool:
    return (
        wanted is not None
        and len(given) == len(wanted)
        and all(a in (1, b) for a, b in zip(given, wanted, strict=True))
    )


def _reaches(operands: Sequence[Dims], wanted: Dims) -> bool:
    """Whether operands of these shapes, which do broadcast, give this shape."""
    if max(map(len, operands)) > len(wanted):
        return False
    return all(
        size == 1 or any(len(dims) >= place and dims[-place] == size for dims in operands)
        for place, size in enumerate(reversed(wanted), start=1)
    )


def _number(editor: Editor, scope: Scope, node: ir.Node, filled: ir.Node) -> ir.Value:
    attribute = filled.attributes.get("value")
    content = np.zeros(1, np.float32) if attribute is None else attribute.as_tensor().numpy()
    return editor.constant(scope, node, filled.outputs[0].name, content.reshape(()))
