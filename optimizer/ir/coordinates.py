"""Tensors of integers whose elements are their own position along an axis: `t[i, j, k] = j`.

Exporters make them with Range to address elements that a mask or an embedding needs.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from optimizer.ir.edit import Editor
from optimizer.ir.match import scalar
from optimizer.ir.query import array, constant, input_at, int_attribute, is_op
from optimizer.ir.reshape import added_axes

__all__ = ["coordinate", "grid", "one_number"]

_MAX_DEPTH = 8
_MAX_ELEMENTS = 2**20
_VIEWS = ("Reshape", "Squeeze", "Unsqueeze")


def coordinate(editor: Editor, value: ir.Value | None, depth: int = _MAX_DEPTH) -> int | None:
    """The axis, counted from the front, along which every element is its own position; `None` when there is none."""
    elements = array(value)
    if elements is not None:
        return _of_array(elements)
    node = None if value is None else value.producer()
    if node is None or depth == 0 or not is_op(node, "Expand", "Identity", "Range", *_VIEWS):
        return None
    if node.op_type == "Range":
        return 0 if scalar(node.inputs[0]) == 0 and scalar(input_at(node, 2)) == 1 else None
    axis = coordinate(editor, node.inputs[0], depth - 1)
    given, wanted = editor.shapes.dims(node.inputs[0]), editor.shapes.dims(value)
    if axis is None or given is None or wanted is None or node.op_type == "Identity":
        return axis if node.op_type == "Identity" else None
    if node.op_type == "Expand":
        moved = axis + len(wanted) - len(given)
        return moved if moved >= 0 and wanted[moved] == given[axis] else None
    added, dropped = added_axes(wanted, given), added_axes(given, wanted)
    if added is not None:
        return [place for place in range(len(wanted)) if place not in added][axis]
    if dropped is not None and axis not in dropped:
        return [place for place in range(len(given)) if place not in dropped].index(axis)
    return None


def grid(editor: Editor, indices: ir.Value | None) -> tuple[int, ...] | None:
    """For indices whose last axis holds positions: the axis along which each of them is the position itself."""
    elements = array(indices)
    if elements is not None and elements.ndim > 1 and elements.size <= _MAX_ELEMENTS:
        found = [_of_array(elements[..., component]) for component in range(elements.shape[-1])]
    else:
        node = None if indices is None else indices.producer()
        dims = editor.shapes.dims(indices)
        if node is None or dims is None or not is_op(node, "Concat"):
            return None
        if int_attribute(node, "axis", 0) % len(dims) != len(dims) - 1:
            return None
        shapes = [editor.shapes.dims(value) for value in node.inputs]
        if any(shape is None or shape[-1] != 1 for shape in shapes):
            return None
        found = [coordinate(editor, value) for value in node.inputs]
    known = tuple(axis for axis in found if axis is not None)
    return known if len(known) == len(found) else None


def _of_array(elements: np.ndarray) -> int | None:
    if elements.dtype.kind not in "iu" or elements.size == 0 or elements.size > _MAX_ELEMENTS:
        return None
    for axis in reversed(range(elements.ndim)):
        shape = [1] * elements.ndim
        shape[axis] = elements.shape[axis]
        if (elements == np.arange(elements.shape[axis]).reshape(shape)).all():
            return axis
    return None


def one_number(value: ir.Value | None) -> np.ndarray | None:
    """The element, as an array without axes, of a constant that has the same everywhere."""
    tensor = constant(value)
    if tensor is None or not 0 < tensor.size <= _MAX_ELEMENTS or tensor.dtype == ir.DataType.STRING:
        return None
    elements = tensor.numpy().reshape(-1)
    return elements[:1].reshape(()) if (elements == elements[0]).all() else None
