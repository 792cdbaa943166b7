"""What an `Attention` takes over from the nodes that prepare its inputs.

Letters: B batch, H query heads, K key and value heads, G = H / K, S queries, P past, T keys, D head size.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from optimizer.ir.edit import Editor, Scope
from optimizer.ir.provenance import inherit
from optimizer.ir.query import float_attribute, input_at, int_attribute, is_op
from optimizer.ir.shape_info import Dims
from optimizer.ir.shapes import Shapes
from optimizer.ir.symbolic import Dim
from passes.attention.build import Place, sweep
from passes.attention.causal import causal_bias_offset, causal_offset
from passes.attention.heads import source_of
from passes.attention.repeated import unrepeated
from passes.attention.uniform import uniform

__all__ = ["absorb"]

_QUERY, _KEY, _VALUE, _MASK, _PAST_KEY, _PAST_VALUE = range(6)


def absorb(editor: Editor, scope: Scope, node: ir.Node) -> ir.Node:
    """Take over scales, repeated heads, the cache and a causal mask, where the inputs have four axes.

    A mask that hides nothing falls away, whatever the axes.

    Returns:
        The `Attention` that does it now.
    """
    _drop_empty_mask(editor, node)
    if any(len(editor.shapes.dims(input_at(node, index)) or ()) != 4 for index in (_QUERY, _KEY, _VALUE)):
        return node
    _take_groups(editor, scope, node)
    _take_scale(editor, scope, node)
    node = _take_cache(editor, node)
    _take_causal_mask(editor, node)
    return node


# --- The scale ---


def _take_scale(editor: Editor, scope: Scope, node: ir.Node) -> None:
    """A factor of the queries or keys."""
    size = (editor.shapes.dims(node.inputs[_QUERY]) or ())[-1]
    scale = float_attribute(node, "scale", 0.0)
    if not scale:
        if not isinstance(size, int):
            return
        scale = 1 / math.sqrt(size)
    for index in (_QUERY, _KEY):
        value = node.inputs[index]
        assert value is not None, "both are required"
        source = source_of(editor.shapes, value)
        if source.factor == 1:
            continue
        scale *= source.factor
        new = Place(editor, scope, node, source.passed).walk(source.value, source.steps)
        _give(editor, node, {index: new}, source.passed)
        node.attributes["scale"] = ir.AttrFloat32("scale", scale)


# --- Repeated heads ---


def _take_groups(editor: Editor, scope: Scope, node: ir.Node) -> None:
    """Keys and values that are repeated G times for the query heads that share them."""
    shapes = editor.shapes
    key, value = node.inputs[_KEY], node.inputs[_VALUE]
    assert key is not None and value is not None, "both are required"
    repeats = unrepeated(shapes, key), unrepeated(shapes, value)
    if repeats[0] is None or repeats[1] is None or repeats[0].times != repeats[1].times:
        return
    new: dict[int, ir.Value | None] = {}
    passed: list[ir.Node] = []
    for index, repeat in ((_KEY, repeats[0]), (_VALUE, repeats[1])):
        passed += repeat.passed
        new[index] = Place(editor, scope, node, passed).walk(repeat.value, repeat.steps)
    _give(editor, node, new, passed)


# --- The cache ---


def _take_cache(editor: Editor, node: ir.Node) -> ir.Node:
    """Keys and values that are put behind those of the past.

    The causal mask of an `Attention` counts the past only where it is given as such, so none may be set.

    Returns:
        The `Attention` with the past, or the one given.
    """
    shapes = editor.shapes
    key, value = (_join(shapes, input_at(node, index)) for index in (_KEY, _VALUE))
    if key is None or value is None or key is value or len(node.inputs) > _PAST_KEY or _gives_cache(node):
        return node
    pasts = [shapes.dims(join.inputs[0]) for join in (key, value)]
    if pasts[0] is None or pasts[1] is None or pasts[0][:3] != pasts[1][:3] or int_attribute(node, "is_causal", 0):
        return node
    inputs = [node.inputs[_QUERY], key.inputs[1], value.inputs[1], input_at(node, _MASK), key.inputs[0]]
    inputs.append(value.inputs[0])
    count = max(len(node.outputs), 3)
    new = ir.Node("", "Attention", inputs, node.attributes.values(), num_outputs=count, version=node.version)
    new.name = node.name
    _put(editor, new, node, [key, value])
    return new


def _gives_cache(node: ir.Node) -> bool:
    return any(output.name for output in node.outputs[1:3])


def _put(editor: Editor, new: ir.Node, node: ir.Node, joins: list[ir.Node]) -> None:
    """Put an `Attention` that gives the grown cache in the place of one, and of what gave the cache."""
    assert node.graph is not None, "the node is in a graph"
    inherit(new, [node, *joins])
    cache = [join.outputs[0] for join in joins]
    kept = [node.outputs[0], *node.outputs[3:]]
    pairs = [*zip(kept, (new.outputs[0], *new.outputs[3:]), strict=True), *zip(cache, new.outputs[1:3], strict=True)]
    for old, output in pairs:
        output.name = old.name
    node.graph.insert_before(node, new)
    for old, output in pairs[: len(kept)]:
        editor.replace(old, output)
    editor.remove(node)
    for old, output in pairs[len(kept) :]:
        editor.replace(old, output)
    for join in joins:
        editor.remove(join)


def _join(shapes: Shapes, value: ir.Value | None) -> ir.Node | None:
    """The Concat of past and new positions, when nothing but the graph's outputs needs it besides."""
    node = None if value is None else value.producer()
    if value is None or node is None or not is_op(node, "Concat") or len(node.inputs) != 2 or len(value.uses()) != 1:
        return None
    return node if int_attribute(node, "axis", 0) in (2, -2) and None not in node.inputs else None


# --- The mask ---


def _drop_empty_mask(editor: Editor, node: ir.Node) -> None:
    """A mask of zeros or of true values, of which no key is left out: one that is too short hides the last ones."""
    mask = input_at(node, _MASK)
    if mask is None:
        return
    shapes = editor.shapes
    nothing = 1.0 if shapes.dtype(mask) == ir.DataType.BOOL else 0.0
    dims, key, past = shapes.dims(mask), shapes.dims(node.inputs[_KEY]), _past(shapes, node)
    if not dims or not key or past is None or dims[-1] != key[-2] + past or uniform(mask) != nothing:
        return
    passed = [producer] if (producer := mask.producer()) is not None else []
    _give(editor, node, {_MASK: None}, passed)


def _take_causal_mask(editor: Editor, node: ir.Node) -> None:
    """A mask that is proved to hide later keys from earlier queries, counted from the end of the past."""
    mask = input_at(node, _MASK)
    if mask is None or int_attribute(node, "is_causal", 0):
        return
    shapes = editor.shapes
    boolean = shapes.dtype(mask) == ir.DataType.BOOL
    offset = causal_offset(shapes, mask) if boolean else causal_bias_offset(shapes, mask)
    if offset is None or offset != _past(shapes, node) or not _covers(shapes, node, shapes.dims(mask)):
        return
    passed = [producer] if (producer := mask.producer()) is not None else []
    node.attributes["is_causal"] = ir.AttrInt64("is_causal", 1)
    _give(editor, node, {_MASK: None}, passed)


def _past(shapes: Shapes, node: ir.Node) -> Dim | None:
    past = input_at(node, _PAST_KEY)
    dims = (0, 0, 0) if past is None else shapes.dims(past)
    return None if dims is None else dims[2]


def _covers(shapes: Shapes, node: ir.Node, mask: Dims | None) -> bool:
    """Whether the mask has a number for each query and each key."""
    query, key, past = shapes.dims(node.inputs[_QUERY]), shapes.dims(node.inputs[_KEY]), _past(shapes, node)
    if mask is None or query is None or key is None or past is None:
        return False
    return mask[-2:] == (query[2], key[2] + past)


def _give(editor: Editor, node: ir.Node, inputs: dict[int, ir.Value | None], passed: list[ir.Node]) -> None:
    """Replace inputs, and remove what made the old ones."""
    for index, value in inputs.items():
        node.replace_input_with(index, value)
    inherit(node, passed)
    editor.modified = True
    sweep(editor, passed)
