"""The cosines and sines of a rotation, which graphs write down twice and `RotaryEmbedding` wants once.

A chain of element-wise operators, from `Concat(f, f)` or from a constant whose halves are equal, is done again on one
half. Letters: B batch, S positions, D rotated elements.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from optimizer.ir.query import array, input_at, int_attribute, is_op
from optimizer.ir.shapes import Shapes
from passes.attention.build import Place
from passes.rotary.parts import joined, last_size

__all__ = ["Recipe", "half_of"]

Recipe: TypeAlias = "Callable[[Place], ir.Value]"
"""Makes a value at a place."""
_DEPTH = 16
_ONE_INPUT = ("Cos", "Sin", "Cast", "Identity", "Unsqueeze", "Squeeze", "Gather", "Slice", "Neg")
_TWO_INPUTS = ("Mul", "Add", "Sub", "Div")


def half_of(shapes: Shapes, value: ir.Value | None, *, interleaved: bool, depth: int = _DEPTH) -> Recipe | None:
    """How to make one half of a value of which the last axis is twice the same.

    Args:
        shapes: What is known of the values.
        value: The value, `[..., D]`.
        interleaved: Whether each element is written twice in a row, rather than all of them and then all again.
        depth: How many nodes may still be looked at.

    Returns:
        What makes it, `[..., D / 2]`; `None` when the two are not known to be the same.
    """
    size = last_size(shapes, value)
    if value is None or size is None or size % 2 or depth == 0:
        return None
    content = array(value)
    if content is not None:
        return _half_of_constant(value, content, interleaved=interleaved)
    pair = joined(shapes, value)
    if pair is not None and pair[0] is pair[1] and pair[2] == interleaved:
        first = pair[0]
        return lambda place: first
    return _half_of_node(shapes, value, size, interleaved=interleaved, depth=depth)


def _half_of_constant(value: ir.Value, content: np.ndarray, *, interleaved: bool) -> Recipe | None:
    half = content.shape[-1] // 2
    first, second = (
        (content[..., 0::2], content[..., 1::2]) if interleaved else (content[..., :half], content[..., half:])
    )
    if not np.array_equal(first, second):
        return None
    return lambda place: place.constant(np.ascontiguousarray(first), value.name)


def _half_of_node(shapes: Shapes, value: ir.Value, size: int, *, interleaved: bool, depth: int) -> Recipe | None:
    node = value.producer()
    if node is None or len(node.outputs) != 1:
        return None
    if is_op(node, *_ONE_INPUT):
        if not _spares_last_axis(shapes, node, size):
            return None
        parts = [half_of(shapes, node.inputs[0], interleaved=interleaved, depth=depth - 1)]
    elif is_op(node, *_TWO_INPUTS):
        parts = []
        for given in node.inputs:
            whole = shapes.dims(given) == () or last_size(shapes, given) == 1
            recipe = _same(given) if whole else half_of(shapes, given, interleaved=interleaved, depth=depth - 1)
            parts.append(recipe)
    else:
        return None
    recipes = [part for part in parts if part is not None]
    return None if len(recipes) != len(parts) else lambda place: _again(place, node, recipes)


def _same(value: ir.Value | None) -> Recipe | None:
    return None if value is None else lambda place: value


def _again(place: Place, node: ir.Node, recipes: list[Recipe]) -> ir.Value:
    """The node on other inputs."""
    inputs = [*(recipe(place) for recipe in recipes), *node.inputs[len(recipes) :]]
    new = ir.Node("", node.op_type, inputs, list(node.attributes.values()), version=node.version)
    return place.insert(new, node.outputs[0].name)


def _spares_last_axis(shapes: Shapes, node: ir.Node, size: int) -> bool:
    """Whether the last axis is what it was, for whatever size it has."""
    dims = shapes.dims(node.inputs[0])
    if dims is None or not dims or dims[-1] != size:
        return False
    match node.op_type:
        case "Gather":
            return int_attribute(node, "axis", 0) not in (-1, len(dims) - 1)
        case "Slice":
            axes = array(input_at(node, 3))
            return axes is not None and not {-1, len(dims) - 1} & {int(axis) for axis in axes.reshape(-1)}
        case "Unsqueeze":
            return last_size(shapes, node.outputs[0]) == size
        case _:
            return True
