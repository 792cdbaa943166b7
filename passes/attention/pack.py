"""Let `Attention` cut the heads out of `[B, S, H * D]` and put them together again.

    Transpose(Attention(Transpose(Reshape(q)), ...)) in four axes  ->  Attention(q, ...) in three

However the four axes came about, they are followed back to a value that is `[B, S, H * D]`, or nearly; and followed on
from the result in the same way. It is done when nodes are saved by it. A `RotaryEmbedding` on the way takes three axes
as well.

Letters: B batch, H query heads, K key and value heads, S queries, T keys, D and E head sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from optimizer.ir.edit import Editor, Scope
from optimizer.ir.provenance import inherit
from optimizer.ir.query import input_at, is_op
from optimizer.ir.shapes import Shapes
from optimizer.ir.views import Atom, Axes, Step, chain_back, followed_on, freed, nearest, stages_of, steps_between
from passes.attention.build import Place, sweep

__all__ = ["pack_heads"]


@dataclass(frozen=True)
class Operand:
    """An input, packed.

    Attributes:
        saved: How many nodes fewer there are.
        make: Gives the value `[B, S, H * D]`.
        passed: The nodes that are passed over.
    """

    saved: int
    make: Callable[[Place], ir.Value]
    passed: list[ir.Node]


@dataclass(frozen=True)
class Result:
    """The value behind the result that is made from the packed one.

    Attributes:
        saved: How many nodes fewer there are.
        value: The value.
        steps: What makes it of `[B, S, H * E]`.
        passed: The nodes that are passed over.
    """

    saved: int
    value: ir.Value
    steps: list[Step]
    passed: list[ir.Node]


def pack_heads(editor: Editor, scope: Scope, node: ir.Node) -> None:
    """Give an `Attention` with inputs of four axes such of three."""
    shapes = editor.shapes
    heads = [_heads_and_size(shapes, input_at(node, index)) for index in range(3)]
    if None in heads:
        return
    (query_heads, _), (key_heads, _), (value_heads, size) = (found for found in heads if found is not None)
    operands = [_operand(shapes, input_at(node, index)) for index in range(3)]
    result = _result(shapes, node.outputs[0], query_heads, size)
    if None in operands or result is None or key_heads != value_heads:
        return
    found = [operand for operand in operands if operand is not None]
    if sum(operand.saved for operand in found) + result.saved <= 0:
        return
    passed = [old for operand in found for old in operand.passed]
    place = Place(editor, scope, node, [node, *passed])
    inputs = [operand.make(place) for operand in found] + list(node.inputs[3:])
    attributes = [a for name, a in node.attributes.items() if name not in ("q_num_heads", "kv_num_heads")]
    attributes += [ir.AttrInt64("q_num_heads", query_heads), ir.AttrInt64("kv_num_heads", key_heads)]
    new = ir.Node("", "Attention", inputs, attributes, num_outputs=len(node.outputs), version=node.version)
    _put(editor, place, node, new, result)
    sweep(editor, passed)


def _heads_and_size(shapes: Shapes, value: ir.Value | None) -> tuple[int, int] | None:
    dims = shapes.dims(value)
    if dims is None or len(dims) != 4 or not isinstance(dims[1], int) or not isinstance(dims[3], int):
        return None
    return dims[1], dims[3]


def _operand(shapes: Shapes, value: ir.Value | None) -> Operand | None:
    """The value `[B, H, S, D]` in three axes."""
    if value is None:
        return None
    node = value.producer()
    if node is not None and is_op(node, "RotaryEmbedding") and len(value.uses()) == 1 and not value.is_graph_output():
        return _rotated(shapes, node)
    stages = stages_of(shapes, chain_back(value))
    found = nearest(stages, _packed(stages[0].axes)) if stages else None
    if found is None:
        return None
    index, steps = found
    passed = [producer for stage in stages[:index] if (producer := stage.value.producer()) is not None]
    source = stages[index].value
    return Operand(freed(stages)[index] - len(steps), lambda place: place.walk(source, steps), passed)


def _rotated(shapes: Shapes, node: ir.Node) -> Operand | None:
    """The rotation takes three axes when it is told the number of heads."""
    given = node.inputs[0]
    found, heads = _operand(shapes, given), _heads_and_size(shapes, given)
    if found is None or heads is None:
        return None

    def make(place: Place) -> ir.Value:
        # With four axes the number of heads may be said as well, though it says nothing then.
        attributes = [attribute for name, attribute in node.attributes.items() if name != "num_heads"]
        attributes.append(ir.AttrInt64("num_heads", heads[0]))
        new = ir.Node("", "RotaryEmbedding", [found.make(place), *node.inputs[1:]], attributes, version=node.version)
        return place.insert(new, node.outputs[0].name)

    return Operand(found.saved, make, [node, *found.passed])


def _packed(axes: Axes) -> Axes:
    """`[B, H, S, D]` as `[B, S, H * D]`."""
    batch, heads, rows, size = axes
    return batch, rows, (*heads, *size)


def _result(shapes: Shapes, value: ir.Value, heads: int, size: int) -> Result | None:
    """Follow the result on, as long as it is only seen with other axes, to where it is best made from three."""
    dims = shapes.dims(value)
    if dims is None or len(dims) != 4:
        return None
    stages = followed_on(shapes, value, tuple(() if dim == 1 else (Atom(dim),) for dim in dims))
    nodes = [node for stage in stages[1:] if (node := stage.value.producer()) is not None]
    best = None
    packed = _packed(stages[0].axes)
    for index, stage in enumerate(stages):
        steps = steps_between(packed, stage.axes)
        if steps is not None and (best is None or index - len(steps) > best.saved):
            best = Result(index - len(steps), stage.value, steps, nodes[:index])
    return best


def _put(editor: Editor, place: Place, node: ir.Node, new: ir.Node, result: Result) -> None:
    packed = place.insert(new, node.outputs[0].name)
    inherit(new, result.passed)
    if not result.steps:
        inherit(new, [node])
    editor.replace(result.value, place.walk(packed, result.steps))
    for old, output in zip(node.outputs[1:], new.outputs[1:], strict=True):
        if old.name:
            editor.replace(old, output)
    for old_node in (*reversed(result.passed), node):
        editor.remove(old_node)
