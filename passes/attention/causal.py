"""Masks that are computed, and let a query see the keys up to its own position.

`causal_offset` proves that the key `j` is seen by the row `i` exactly where `j <= i + offset`. Letters: S rows, T keys.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from optimizer.ir.query import array, input_at, int_attribute, is_op, known_ints
from optimizer.ir.shape_info import Dims
from optimizer.ir.shapes import Shapes
from optimizer.ir.symbolic import Dim
from passes.attention.uniform import scalar, uniform

__all__ = ["BIG", "causal_bias_offset", "causal_offset"]

BIG = 1e30
"""An added number below its negative hides a float32 score altogether: nothing of the score is left in the sum."""
_DEPTH = 12


@dataclass(frozen=True)
class Position:
    """Elements that are `rows * i + columns * j + start`, `i` and `j` being the indices on the last two axes."""

    rows: int
    columns: int
    start: Dim

    def minus(self, other: Position) -> Position:
        """The element-wise difference."""
        return Position(self.rows - other.rows, self.columns - other.columns, self.start - other.start)

    def plus(self, other: Position) -> Position:
        """The element-wise sum."""
        return Position(self.rows + other.rows, self.columns + other.columns, self.start + other.start)


def causal_bias_offset(shapes: Shapes, value: ir.Value | None, depth: int = _DEPTH) -> Dim | None:
    """The offset of an additive mask that is 0 where the key is seen, and hides it elsewhere."""
    node = None if value is None else value.producer()
    content = array(value)
    if content is not None:
        return _offset_of(np.where(content == 0, True, False)) if _hides(content) else None
    if node is None or depth == 0:
        return None
    if is_op(node, "Expand", "Unsqueeze", "Reshape", "Identity"):
        return causal_bias_offset(shapes, node.inputs[0], depth - 1) if _keeps_last_two(shapes, node) else None
    if is_op(node, "Where"):
        condition, first, second = node.inputs
        values = uniform(first), uniform(second)
        if None in values:
            return None
        seen = [number == 0 for number in values]
        hidden = [number is not None and number <= -BIG for number in values]
        if seen[0] and hidden[1]:
            return _offset_where(shapes, condition, depth - 1)
        return _offset_unless(shapes, condition, depth - 1) if hidden[0] and seen[1] else None
    if is_op(node, "Trilu") and int_attribute(node, "upper", 1):
        filled, diagonal = uniform(node.inputs[0]), _diagonal(node)
        return diagonal - 1 if filled is not None and filled <= -BIG and diagonal is not None else None
    return None


def causal_offset(shapes: Shapes, value: ir.Value | None, *, seen: bool = True) -> Dim | None:
    """The offset of a condition that is `seen` where the key is seen; `None` when that is not proved."""
    return _offset_where(shapes, value, _DEPTH) if seen else _offset_unless(shapes, value, _DEPTH)


def _offset_where(shapes: Shapes, value: ir.Value | None, depth: int) -> Dim | None:
    """The offset of a condition that is true where the key is seen."""
    node = None if value is None else value.producer()
    content = array(value)
    if content is not None:
        return _offset_of(content) if content.dtype == np.bool_ else None
    if node is None or depth == 0:
        return None
    if is_op(node, "Expand", "Unsqueeze", "Reshape", "Identity"):
        return _offset_where(shapes, node.inputs[0], depth - 1) if _keeps_last_two(shapes, node) else None
    if is_op(node, "Not"):
        return _offset_unless(shapes, node.inputs[0], depth - 1)
    if is_op(node, "And"):
        return _offset_of_both(shapes, node, depth)
    if is_op(node, "Cast"):
        return _offset_of_triangle(node.inputs[0])
    if is_op(node, "Trilu"):
        return _offset_of_triangle(value)
    return _compared(shapes, node)


def _offset_unless(shapes: Shapes, value: ir.Value | None, depth: int) -> Dim | None:
    """The offset of a condition that is false where the key is seen."""
    node = None if value is None else value.producer()
    content = array(value)
    if content is not None:
        return _offset_of(np.logical_not(content)) if content.dtype == np.bool_ else None
    if node is None or depth == 0:
        return None
    if is_op(node, "Expand", "Unsqueeze", "Reshape", "Identity"):
        return _offset_unless(shapes, node.inputs[0], depth - 1) if _keeps_last_two(shapes, node) else None
    if is_op(node, "Not"):
        return _offset_where(shapes, node.inputs[0], depth - 1)
    if is_op(node, "Equal") and 0.0 in (scalar(node.inputs[0]), scalar(node.inputs[1])):
        index = 1 if scalar(node.inputs[0]) == 0.0 else 0
        return _offset_of_triangle(node.inputs[0 if index == 0 else 1])
    if is_op(node, "Trilu") and int_attribute(node, "upper", 1) and uniform(node.inputs[0]) == 1.0:
        diagonal = _diagonal(node)
        return None if diagonal is None else diagonal - 1
    if is_op(node, "Cast"):
        return _offset_unless(shapes, node.inputs[0], depth - 1)
    hidden = _difference(shapes, node)
    # The key is hidden where `columns * j + rows * i + start >= 0`, so seen where its negative minus 1 is.
    return None if hidden is None else _seen(Position(-hidden.rows, -hidden.columns, -hidden.start - 1))


def _offset_of_both(shapes: Shapes, node: ir.Node, depth: int) -> Dim | None:
    """One condition is always true."""
    for index in (0, 1):
        if uniform(node.inputs[1 - index]) == 1.0 and _keeps_last_two(shapes, node, index):
            return _offset_where(shapes, node.inputs[index], depth - 1)
    return None


def _offset_of_triangle(value: ir.Value | None) -> Dim | None:
    """The lower triangle of something that is not 0."""
    node = None if value is None else value.producer()
    if node is None or not is_op(node, "Trilu") or int_attribute(node, "upper", 1):
        return None
    filled = uniform(node.inputs[0])
    return _diagonal(node) if filled is not None and filled != 0 else None


def _diagonal(node: ir.Node) -> int | None:
    if input_at(node, 1) is None:
        return 0
    numbers = known_ints(node.inputs[1])
    return numbers[0] if numbers else None


def _compared(shapes: Shapes, node: ir.Node) -> Dim | None:
    difference = _difference(shapes, node)
    return None if difference is None else _seen(difference)


def _seen(difference: Position) -> Dim | None:
    """The offset when `difference >= 0` is `j <= i + offset`."""
    return difference.start if (difference.rows, difference.columns) == (1, -1) else None


def _difference(shapes: Shapes, node: ir.Node) -> Position | None:
    """A comparison as what is not negative where it holds."""
    if not is_op(node, "LessOrEqual", "Less", "GreaterOrEqual", "Greater"):
        return None
    left, right = (_position(shapes, value, _DEPTH) for value in node.inputs)
    if left is None or right is None:
        return None
    difference = right.minus(left) if node.op_type.startswith("Less") else left.minus(right)
    return difference if node.op_type.endswith("Equal") else difference.minus(Position(0, 0, 1))


def _position(shapes: Shapes, value: ir.Value | None, depth: int) -> Position | None:
    data, dims = shapes.data(value), shapes.dims(value)
    if data is not None and len(data) == 1:
        return Position(0, 0, data[0])
    node = None if value is None else value.producer()
    if depth == 0 or dims is None:
        return None
    content = array(value)
    if content is not None:
        return _counted(content)
    if node is None:
        return None
    if is_op(node, "Range"):
        start, step = shapes.data(node.inputs[0]), shapes.data(node.inputs[2])
        return Position(0, 0 if dims == (1,) else 1, start[0]) if start and step == (1,) else None
    if is_op(node, "Add", "Sub"):
        left, right = (_position(shapes, given, depth - 1) for given in node.inputs)
        if left is None or right is None:
            return None
        return left.plus(right) if node.op_type == "Add" else left.minus(right)
    if is_op(node, "Unsqueeze", "Reshape", "Squeeze", "Identity", "Cast", "Expand"):
        inner = _position(shapes, node.inputs[0], depth - 1)
        return None if inner is None else _placed(shapes, node, inner)
    return None


def _placed(shapes: Shapes, node: ir.Node, inner: Position) -> Position | None:
    """Positions after axes of size 1 were added or taken away, or an axis was repeated."""
    before, after = shapes.dims(node.inputs[0]), shapes.dims(node.outputs[0])
    if before is None or after is None:
        return None
    if node.op_type in ("Cast", "Identity") or (inner.rows, inner.columns) == (0, 0):
        to = ir.DataType(int_attribute(node, "to", ir.DataType.INT64))
        return inner if to.is_integer() or to == ir.DataType.FLOAT else None
    if node.op_type == "Expand":
        return inner if _repeats_only(inner, before, after) else None
    if [dim for dim in before if dim != 1] != [dim for dim in after if dim != 1]:
        return None
    varying = [index - len(before) for index, dim in enumerate(before) if dim != 1]
    placed = [index - len(after) for index, dim in enumerate(after) if dim != 1]
    moved = dict(zip(varying, placed, strict=True))
    rows, columns = 0, 0
    for coefficient, axis in ((inner.rows, -2), (inner.columns, -1)):
        to_axis = moved.get(axis)
        if coefficient and to_axis not in (-1, -2):
            return None
        rows += coefficient if coefficient and to_axis == -2 else 0
        columns += coefficient if coefficient and to_axis == -1 else 0
    return Position(rows, columns, inner.start)


def _repeats_only(inner: Position, before: Dims, after: Dims) -> bool:
    """Whether every axis that an Expand stretches is one along which the element does not change."""
    axes = zip((inner.columns, inner.rows), reversed(before), reversed(after), strict=False)
    return all(old == new or (old == 1 and coefficient == 0) for coefficient, old, new in axes)


def _counted(content: np.ndarray) -> Position | None:
    """A constant that counts along one of the last two axes."""
    if content.dtype.kind not in "iu" or content.size < 2:
        return None
    numbers = content.reshape(-1)
    if not (np.diff(numbers) == 1).all():
        return None
    if content.shape[-1] == content.size:
        return Position(0, 1, int(numbers[0]))
    column = content.ndim > 1 and content.shape[-2] == content.size
    return Position(1, 0, int(numbers[0])) if column else None


def _keeps_last_two(shapes: Shapes, node: ir.Node, index: int = 0) -> bool:
    before, after = shapes.dims(node.inputs[index]), shapes.dims(node.outputs[0])
    return before is not None and after is not None and len(before) > 1 and before[-2:] == after[-2:]


def _hides(content: np.ndarray) -> bool:
    """Whether every element is 0 or hides what it is added to."""
    return content.dtype.kind == "f" and bool(((content == 0) | (content <= -BIG)).all())


def _offset_of(seen: np.ndarray) -> int | None:
    """The offset when the array, the same for every batch and head, is a lower triangle."""
    if seen.ndim < 2 or seen.size == 0 or seen[..., 0, 0].size != 1:
        return None
    rows, columns = seen.shape[-2:]
    plane = seen.reshape(rows, columns)
    offset = int(plane[0].sum()) - 1
    return offset if np.array_equal(plane, np.tri(rows, columns, offset, dtype=np.bool_)) else None
