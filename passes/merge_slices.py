"""Merge slices, splits and concatenations that follow each other.

1. Slice of a Slice along other axes  ->  one Slice
2. Slices of one value that cut an axis into consecutive parts, all of it  ->  one Split
3. Slice or Gather of a Concat that lies in one of its parts  ->  Slice or Gather of that part, or the part itself
4. Split of a Concat into its parts  ->  the parts
5. Concat of all parts of a Split, in order  ->  what was split

It is done when starts, ends, axes and sizes are known numbers, and every step is 1 in the rules 2 and 3. In rule 1
nothing else may use the inner Slice.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import onnx_ir as ir

from optimizer.ir.edit import Editor, Scope, rewrite_nodes
from optimizer.ir.match import producer, remove_dead
from optimizer.ir.provenance import inherit
from optimizer.ir.query import constant, input_at, int_attribute, is_op, known_ints, only_user
from optimizer.pass_manager import Pass

__all__ = ["MergeSlices"]


@dataclasses.dataclass(frozen=True)
class MergeSlices(Pass):
    """Merges Slice, Split, Gather and Concat."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Merge wherever it can be done."""
        return rewrite_nodes(model, _merge, ("Concat", "Gather", "Slice", "Split"))


def _merge(editor: Editor, scope: Scope, node: ir.Node) -> None:
    # Since opset 18 Split says how many outputs it has, since 10 and 13 the numbers are inputs.
    if scope.opset < 18:
        return
    if is_op(node, "Slice"):
        if not (_of_slice(editor, scope, node) or _of_concat(editor, scope, node)):
            _to_split(editor, scope, node)
    elif is_op(node, "Gather"):
        _gather_of_concat(editor, scope, node)
    elif is_op(node, "Split"):
        _split_of_concat(editor, node)
    elif is_op(node, "Concat"):
        _concat_of_split(editor, node)


@dataclasses.dataclass(frozen=True)
class _Cut:
    """`x[..., start:end, ...]` along one axis, in positive numbers."""

    axis: int
    start: int
    end: int


def _numbers(editor: Editor, node: ir.Node) -> tuple[tuple[int, ...], ...] | None:
    """Starts, ends, axes from the front, and steps."""
    dims = editor.shapes.dims(node.inputs[0])
    starts, ends = known_ints(input_at(node, 1)), known_ints(input_at(node, 2))
    if dims is None or starts is None or ends is None:
        return None
    axes = known_ints(input_at(node, 3)) if input_at(node, 3) is not None else tuple(range(len(starts)))
    steps = known_ints(input_at(node, 4)) if input_at(node, 4) is not None else (1,) * len(starts)
    if axes is None or steps is None:
        return None
    return starts, ends, tuple(axis % len(dims) for axis in axes), steps


def _cut(editor: Editor, node: ir.Node) -> _Cut | None:
    numbers, dims = _numbers(editor, node), editor.shapes.dims(node.inputs[0])
    if numbers is None or dims is None or len(numbers[0]) != 1 or numbers[3] != (1,):
        return None
    (start,), (end,), (axis,), _ = numbers
    size = dims[axis]
    if not isinstance(size, int):
        return None
    first, last, _ = slice(start, end).indices(size)
    return _Cut(axis, first, max(first, last))


# --- 1. A slice of a slice ---


def _of_slice(editor: Editor, scope: Scope, node: ir.Node) -> bool:
    inner = producer(node.inputs[0], node.graph, "Slice")
    if inner is None or only_user(inner.outputs[0]) is not node or inner.inputs[0] is None:
        return False
    first, second = _numbers(editor, inner), _numbers(editor, node)
    if first is None or second is None or set(first[2]) & set(second[2]):
        return False
    parts = [
        editor.constant(scope, node, f"{node.outputs[0].name}_{name}", np.array(a + b, np.int64))
        for name, a, b in zip(("starts", "ends", "axes", "steps"), first, second, strict=True)
    ]
    editor.substitute(node, ir.node("Slice", [inner.inputs[0], *parts]), [inner])
    remove_dead(editor, [inner])
    return True


# --- 2. Consecutive parts ---


def _to_split(editor: Editor, scope: Scope, node: ir.Node) -> None:
    source, cut = node.inputs[0], _cut(editor, node)
    size = None if cut is None else (editor.shapes.dims(source) or ())[cut.axis]
    if source is None or cut is None or len(source.uses()) < 2:
        return
    users = dict.fromkeys(user for user, index in source.uses() if index == 0 and user.graph is node.graph)
    cuts = {user: _cut(editor, user) for user in users if is_op(user, "Slice")}
    parts = sorted(
        ((part.start, part.end, user) for user, part in cuts.items() if part is not None and part.axis == cut.axis),
        key=lambda item: item[:2],
    )
    ends = [0, *(end for _, end, _ in parts)]
    if len(parts) < 2 or ends[-1] != size or any(start != end for (start, _, _), end in zip(parts, ends, strict=False)):
        return
    sizes = np.array([end - start for start, end, _ in parts], np.int64)
    if not sizes.all():
        return
    split = ir.node(
        "Split",
        [source, editor.constant(scope, node, f"{source.name}_sizes", sizes)],
        {"axis": cut.axis},
        num_outputs=len(parts),
    )
    _replace_parts(editor, node, split, [user for _, _, user in parts])


def _replace_parts(editor: Editor, node: ir.Node, split: ir.Node, parts: list[ir.Node]) -> None:
    inherit(split, parts)
    assert node.graph is not None, "the node is in a graph"
    for part, output in zip(parts, split.outputs, strict=True):
        output.name = editor.fresh_name(part.outputs[0].name)
    node.graph.insert_before(node, split)
    for part, output in zip(parts, split.outputs, strict=True):
        editor.bypass(part, output)


# --- 3, 4. Parts of a concatenation ---


def _bounds(editor: Editor, concat: ir.Node, axis: int) -> list[int] | None:
    """Where the parts of a concatenation along this axis begin, and where the last one ends."""
    shapes = [editor.shapes.dims(value) for value in concat.inputs]
    known = [dims for dims in shapes if dims is not None]
    if len(known) < len(shapes) or int_attribute(concat, "axis", 0) % len(known[0]) != axis:
        return None
    sizes = [dims[axis] for dims in known]
    plain = [size for size in sizes if isinstance(size, int)]
    return [0, *itertools.accumulate(plain)] if len(plain) == len(sizes) else None


def _of_concat(editor: Editor, scope: Scope, node: ir.Node) -> bool:
    concat, cut = producer(node.inputs[0], node.graph, "Concat"), _cut(editor, node)
    bounds = None if concat is None or cut is None else _bounds(editor, concat, cut.axis)
    if concat is None or cut is None or bounds is None or cut.start == cut.end:
        return False
    for part, (first, last) in zip(concat.inputs, itertools.pairwise(bounds), strict=True):
        if part is None or cut.start < first or cut.end > last:
            continue
        if (cut.start, cut.end) == (first, last) and editor.bypass(node, part):
            remove_dead(editor, [concat])
            return True
        numbers = (cut.start - first, cut.end - first, cut.axis)
        inputs = [
            editor.constant(scope, node, f"{node.outputs[0].name}_{name}", np.array([number], np.int64))
            for name, number in zip(("starts", "ends", "axes"), numbers, strict=True)
        ]
        editor.substitute(node, ir.node("Slice", [part, *inputs]), [concat])
        remove_dead(editor, [concat])
        return True
    return False


def _gather_of_concat(editor: Editor, scope: Scope, node: ir.Node) -> None:
    concat, index = producer(node.inputs[0], node.graph, "Concat"), known_ints(input_at(node, 1))
    dims, tensor = editor.shapes.dims(node.inputs[0]), constant(input_at(node, 1))
    if concat is None or not index or len(index) != 1 or dims is None or tensor is None:
        return
    axis = int_attribute(node, "axis", 0) % len(dims)
    bounds = _bounds(editor, concat, axis)
    if bounds is None or not -bounds[-1] <= index[0] < bounds[-1]:
        return
    place = index[0] % bounds[-1]
    for part, (first, last) in zip(concat.inputs, itertools.pairwise(bounds), strict=True):
        if first <= place < last:
            content = np.full(tensor.shape.numpy(), place - first, tensor.dtype.numpy())
            position = editor.constant(scope, node, f"{node.outputs[0].name}_index", content)
            editor.substitute(node, ir.Node("", "Gather", [part, position], node.attributes.copy()), [concat])
            remove_dead(editor, [concat])
            return


def _split_of_concat(editor: Editor, node: ir.Node) -> None:
    concat = producer(node.inputs[0], node.graph, "Concat")
    dims = editor.shapes.dims(node.inputs[0])
    if concat is None or dims is None or len(concat.inputs) != len(node.outputs):
        return
    axis = int_attribute(node, "axis", 0) % len(dims)
    if int_attribute(concat, "axis", 0) % len(dims) != axis:
        return
    pairs = [(part, output) for part, output in zip(concat.inputs, node.outputs, strict=True) if part is not None]
    for part, output in pairs:
        given, wanted = editor.shapes.dims(part), editor.shapes.dims(output)
        if given is None or wanted is None or given[axis] != wanted[axis]:
            return
    if not all(editor.can_replace(output, part) for part, output in pairs):
        return
    for part, output in pairs:
        editor.replace(output, part)
    remove_dead(editor, [node, concat])


# --- 5. All parts of a split ---


def _concat_of_split(editor: Editor, node: ir.Node) -> None:
    split = producer(node.inputs[0], node.graph, "Split")
    if split is None or tuple(split.outputs) != tuple(node.inputs) or split.inputs[0] is None:
        return
    dims = editor.shapes.dims(split.inputs[0])
    if dims is None or (int_attribute(split, "axis", 0) - int_attribute(node, "axis", 0)) % len(dims):
        return
    if editor.bypass(node, split.inputs[0]):
        remove_dead(editor, [split])
