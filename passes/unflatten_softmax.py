"""Let a softmax of a flattened tensor work on the tensor as it is.

    Reshape(Softmax(Reshape(x)), shape of x)  ->  Softmax(x)         also LogSoftmax and Hardmax, and with Flatten

Up to opset 12 these operators took every axis from one on for a single one, which is written like this since. It is
done when

1. the last shape is that of `x`;
2. the softmax is along the last of the two axes of its input, and that joins a single axis of `x` and axes of size 1;
3. nothing else needs the flattened result.
"""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from optimizer.ir.edit import Editor, Scope, rewrite_nodes
from optimizer.ir.match import producer, remove_dead
from optimizer.ir.query import int_attribute, is_op, only_user
from optimizer.ir.shape_info import Dims
from optimizer.ir.symbolic import product
from optimizer.pass_manager import Pass

__all__ = ["UnflattenSoftmax"]


@dataclasses.dataclass(frozen=True)
class UnflattenSoftmax(Pass):
    """Removes the reshapes around a softmax along one axis."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite wherever it can be done."""
        return rewrite_nodes(model, _unflatten, ("Flatten", "Reshape"))


def _unflatten(editor: Editor, scope: Scope, node: ir.Node) -> None:
    if scope.opset < 13 or not is_op(node, "Flatten", "Reshape"):
        return
    inner = producer(node.inputs[0], node.graph, "Hardmax", "LogSoftmax", "Softmax")
    if inner is None or only_user(inner.outputs[0]) is not node:
        return
    first = producer(inner.inputs[0], node.graph, "Flatten", "Reshape")
    if first is None or first.inputs[0] is None:
        return
    x, flat = editor.shapes.dims(first.inputs[0]), editor.shapes.dims(first.outputs[0])
    if x is None or flat is None or x != editor.shapes.dims(node.outputs[0]) or len(flat) != 2:
        return
    axis = _axis(x, flat) if int_attribute(inner, "axis", -1) in (-1, 1) else None
    if axis is None:
        return
    attributes = {} if axis == len(x) - 1 else {"axis": axis}
    editor.substitute(node, ir.node(inner.op_type, [first.inputs[0]], attributes), [inner, first])
    remove_dead(editor, [inner, first])


def _axis(x: Dims, flat: Dims) -> int | None:
    """The axis of `x` that the last axis of `[rows, columns]` is; `None` when it is several, or cannot be told."""
    for axis in reversed(range(len(x))):
        if x[axis] == flat[1] and product(x[:axis]) == flat[0] and all(size == 1 for size in x[axis + 1 :]):
            return axis
        if x[axis] != 1:
            return None
    return None
