"""Replace gathers whose result can be said without gathering.

1. `GatherND` by a grid of positions, each element of `x` where it stands anyway  ->  Unsqueeze of `x`
2. `Gather` along an axis by all positions of that axis in order  ->  the data itself
3. `GatherElements` from a constant that is the same everywhere  ->  Expand of that
   number to the shape of the indices

A grid is recognized however it was made of Range, Reshape, Expand and Concat (`optimizer.ir.coordinates`). It is done
when the positions cover the axes of `x` in their order. In rule 3 an index out of range, which is an error, is no
longer one.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from optimizer.ir.coordinates import coordinate, grid, one_number
from optimizer.ir.edit import Editor, Scope, rewrite_nodes
from optimizer.ir.query import constant, input_at, int_attribute, is_op
from optimizer.pass_manager import Pass

__all__ = ["SimplifyGathers"]


@dataclasses.dataclass(frozen=True)
class SimplifyGathers(Pass):
    """Removes gathers by positions that are known."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace wherever it can be done."""
        return rewrite_nodes(model, _simplify, ("Gather", "GatherElements", "GatherND"))


def _simplify(editor: Editor, scope: Scope, node: ir.Node) -> None:
    # Since opset 13 the axes of Unsqueeze are an input.
    if scope.opset < 13:
        return
    if is_op(node, "GatherND"):
        _ungrid(editor, scope, node)
    elif is_op(node, "Gather"):
        _take_all(editor, node)
    elif is_op(node, "GatherElements"):
        _take_number(editor, scope, node)


def _ungrid(editor: Editor, scope: Scope, node: ir.Node) -> None:
    x, indices = node.inputs[0], input_at(node, 1)
    if x is None or int_attribute(node, "batch_dims", 0):
        return
    axes = grid(editor, indices)
    given, places = editor.shapes.dims(x), editor.shapes.dims(indices)
    if axes is None or given is None or places is None or list(axes) != sorted(set(axes)) or len(axes) > len(given):
        return
    rows = len(places) - 1
    added = [axis for axis in range(rows) if axis not in axes]
    if any(axis >= rows for axis in axes) or any(places[axis] != 1 for axis in added):
        return
    if any(places[axis] != given[k] for k, axis in enumerate(axes)):
        return
    if added:
        name = f"{node.outputs[0].name}_axes"
        positions = editor.constant(scope, node, name, np.array(added, np.int64))
        editor.substitute(node, ir.node("Unsqueeze", [x, positions]))
    else:
        editor.bypass(node, x)


def _take_all(editor: Editor, node: ir.Node) -> None:
    x, indices = node.inputs[0], input_at(node, 1)
    given, count = editor.shapes.dims(x), editor.shapes.dims(indices)
    if x is None or not given or count is None or len(count) != 1:
        return
    if given[int_attribute(node, "axis", 0) % len(given)] == count[0] and coordinate(editor, indices) == 0:
        editor.bypass(node, x)


def _take_number(editor: Editor, scope: Scope, node: ir.Node) -> None:
    number, indices = one_number(node.inputs[0]), input_at(node, 1)
    if number is None or indices is None or constant(indices) is not None:
        return
    shape = ir.node("Shape", [indices])
    shape.outputs[0].name = editor.fresh_name(f"{node.outputs[0].name}_shape")
    shape.outputs[0].type = ir.TensorType(ir.DataType.INT64)
    assert node.graph is not None, "the node is in a graph"
    value = editor.constant(scope, node, node.inputs[0].name if node.inputs[0] else None, number)
    node.graph.insert_before(node, shape)
    editor.substitute(node, ir.node("Expand", [value, shape.outputs[0]]))
