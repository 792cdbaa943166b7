"""Remove nodes that give back what they are given.

Each case replaces the node's output by its input (or by an input further up):

1.  Identity.
2.  Cast, CastLike to the type that the input has; Cast to a wider type and back.
3.  Reshape, Flatten, Squeeze, Unsqueeze, Expand, Tile and Slice that leave the shape as it is; Squeeze of Unsqueeze
and
    the reverse, along the same axes.
4.  Transpose that keeps the order.
5.  Pad by nothing.
6.  Dropout outside training. Its mask, if used, becomes a constant of the input's shape, all true.
7.  Concat, Max, Min, Sum, Mean of one input; Split into one output.
8.  Clip without bounds; a reduction over no axes with `noop_with_empty_axes`.
9.  Add of 0, Sub of 0, Mul by 1, Div by 1, Pow by 1, Or with false, And with true, where the constant does not
stretch
    the shape. For floats only the zero that changes nothing counts: `x + (-0.0)` and `x - 0.0`, because `-0.0 + 0.0`
    is `0.0`.
10. Where whose condition is a constant with one value throughout.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from optimizer.ir.edit import Editor, Scope, rewrite_nodes
from optimizer.ir.provenance import inherit
from optimizer.ir.query import (
    array,
    constant,
    input_at,
    int_attribute,
    ints_attribute,
    is_op,
    known_ints,
)
from optimizer.pass_manager import Pass

__all__ = ["EliminateIdentities"]

_LONGEST_AXIS = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class EliminateIdentities(Pass):
    """Removes nodes that change nothing."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Remove every identity that can be removed."""
        return rewrite_nodes(model, _eliminate, _RULES)


def _eliminate(editor: Editor, scope: Scope, node: ir.Node) -> None:
    rule = _RULES.get(node.op_type)
    if rule is None or not is_op(node, node.op_type) or not node.inputs:
        return
    source = rule(editor, scope, node)
    if source is None:
        return
    if node.op_type == "Dropout":
        _replace_mask(editor, scope, node, source)
    editor.bypass(node, source)


def _identity(editor: Editor, scope: Scope, node: ir.Node) -> ir.Value | None:
    return input_at(node, 0)


# --- 2. Casts ---

_WIDER: dict[ir.DataType, frozenset[ir.DataType]] = {
    ir.DataType.BOOL: frozenset(
        {ir.DataType.INT32, ir.DataType.INT64, ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE}
    ),
    ir.DataType.INT8: frozenset({ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64, ir.DataType.FLOAT}),
    ir.DataType.UINT8: frozenset({ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64, ir.DataType.FLOAT}),
    ir.DataType.INT16: frozenset({ir.DataType.INT32, ir.DataType.INT64, ir.DataType.FLOAT}),
    ir.DataType.INT32: frozenset({ir.DataType.INT64, ir.DataType.DOUBLE}),
    ir.DataType.FLOAT16: frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE}),
    ir.DataType.BFLOAT16: frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE}),
    ir.DataType.FLOAT: frozenset({ir.DataType.DOUBLE}),
}
"""Types that hold every value of the key exactly."""


def _cast(editor: Editor, scope: Scope, node: ir.Node) -> ir.Value | None:
    source = input_at(node, 0)
    if source is None:
        return None
    to = ir.DataType(int_attribute(node, "to", 0))
    found = _dtype(editor, source)
    if found == to:
        return source
    producer = source.producer()
    if producer is None or not is_op(producer, "Cast") or found is None:
        return None
    original = input_at(producer, 0)
    same = original is not None and _dtype(editor, original) == to
    return original if same and found in _WIDER.get(to, ()) else None


def _cast_like(editor: Editor, scope: Scope, node: ir.Node) -> ir.Value | None:
    source, like = input_at(node, 0), input_at(node, 1)
    if source is None or like is None:
        return None
    to = _dtype(editor, like)
    return source if to is not None and _dtype(editor, source) == to else None


def _dtype(editor: Editor, value: ir.Value) -> ir.DataType | None:
    return value.dtype if value.dtype is not None else editor.shapes.dtype(value)


# --- 3. Shapes ---


def _same_shape(editor: Editor, scope: Scope, node: ir.Node) -> ir.Value | None:
    source = input_at(node, 0)
    before, after = editor.shapes.dims(source), editor.shapes.dims(node.outputs[0])
    return source if before is not None and before == after else None


def _squeeze(editor: Editor, scope: Scope, node: ir.Node) -> ir.Value | None:
    """Squeeze and Unsqueeze undo each other when the axes, which count in the longer shape, are the same."""
    source = input_at(node, 0)
    producer = None if source is None else source.producer()
    opposite = "Unsqueeze" if node.op_type == "Squeeze" else "Squeeze"
    if producer is not None and is_op(producer, opposite) and _axes(node) and _axes(node) == _axes(producer):
        return input_at(producer, 0)
    return _same_shape(editor, scope, node)


def _axes(node: ir.Node) -> tuple[int, ...] | None:
    axes = ints_attribute(node, "axes") if len(node.inputs) < 2 else known_ints(node.inputs[1])
    return None if axes is None else tuple(sorted(axes))


def _slice(editor: Editor, scope: Scope, node: ir.Node) -> ir.Value | None:
    """From 0 to the end in steps of 1. Without steps a slice that keeps every size keeps every element too."""
    if input_at(node, 4) is None:
        steps: tuple[int, ...] | None = (1,)
    else:
        steps = known_ints(node.inputs[4])
    if steps is None or any(step != 1 for step in steps):
        return None
    starts = ints_attribute(node, "starts") if len(node.inputs) == 1 else known_ints(input_at(node, 1))
    ends = ints_attribute(node, "ends") if len(node.inputs) == 1 else known_ints(input_at(node, 2))
    if starts is not None and ends is not None and not any(starts) and all(end >= _LONGEST_AXIS for end in ends):
        return input_at(node, 0)
    return _same_shape(editor, scope, node)


def _tile(editor: Editor, scope: Scope, node: ir.Node) -> ir.Value | None:
    repeats = known_ints(input_at(node, 1))
    return input_at(node, 0) if repeats is not None and all(times == 1 for times in repeats) else None


# --- 4, 5. Transpose and Pad ---


def _transpose(editor: Editor, scope: Scope, node: ir.Node) -> ir.Value | None:
    order = ints_attribute(node, "perm")
    return input_at(node, 0) if order is not None and order == tuple(range(len(order))) else None


def _pad(editor: Editor, scope: Scope, node: ir.Node) -> ir.Value | None:
    pads = ints_attribute(node, "pads") if len(node.inputs) == 1 else known_ints(input_at(node, 1))
    return input_at(node, 0) if pads is not None and not any(pads) else None


# --- 6. Dropout ---


def _dropout(editor: Editor, scope: Scope, node: ir.Node) -> ir.Value | None:
    training = input_at(node, 2)
    if scope.opset >= 12 and training is not None:
        flag, ratio = array(training), array(input_at(node, 1))
        off = flag is not None and not flag.any()
        nothing_dropped = ratio is not None and not ratio.any()
        if not off and not nothing_dropped:
            return None
    if scope.opset < 7 and not int_attribute(node, "is_test", 0):
        return None
    return input_at(node, 0)


def _replace_mask(editor: Editor, scope: Scope, node: ir.Node, source: ir.Value) -> None:
    """Up to opset 11 it is not said what the mask is outside training: such a node stays if its mask is used."""
    if len(node.outputs) < 2 or scope.opset < 12:
        return
    mask = node.outputs[1]
    if not mask.uses() and not mask.is_graph_output():
        return
    shape = ir.node("Shape", inputs=[source])
    true = ir.tensor(np.array([True]))
    ones = ir.node("ConstantOfShape", inputs=[shape.outputs[0]], attributes={"value": true})
    shape.outputs[0].name = editor.fresh_name(f"{mask.name}_shape")
    ones.outputs[0].name = editor.fresh_name(mask.name)
    for new in (shape, ones):
        inherit(new, [node])
    scope.graph.insert_before(node, [shape, ones])
    editor.replace(mask, ones.outputs[0])


# --- 7, 8. Nothing to combine, bound or reduce ---


def _only_input(editor: Editor, scope: Scope, node: ir.Node) -> ir.Value | None:
    return node.inputs[0] if len(node.inputs) == 1 else None


def _split(editor: Editor, scope: Scope, node: ir.Node) -> ir.Value | None:
    return input_at(node, 0) if len(node.outputs) == 1 else None


def _clip(editor: Editor, scope: Scope, node: ir.Node) -> ir.Value | None:
    bounded = any(input_at(node, i) is not None for i in (1, 2)) or "min" in node.attributes or "max" in node.attributes
    # Before opset 11 the bounds are attributes, and their defaults are the largest floats: infinity would be clipped.
    return None if bounded or scope.opset < 11 else input_at(node, 0)


def _reduce(editor: Editor, scope: Scope, node: ir.Node) -> ir.Value | None:
    if not int_attribute(node, "noop_with_empty_axes", 0):
        return None
    axes = input_at(node, 1)
    none_given = ("axes" not in node.attributes) if axes is None else known_ints(axes) == ()
    return input_at(node, 0) if none_given else None


# --- 9, 10. Neutral elements ---


def _neutral(right_only: bool, is_neutral: Callable[[np.ndarray], bool]) -> Callable[..., ir.Value | None]:
    def rule(editor: Editor, scope: Scope, node: ir.Node) -> ir.Value | None:
        if len(node.inputs) != 2:
            return None
        left, right = node.inputs
        if _is_neutral(editor, right, left, is_neutral):
            return left
        if not right_only and _is_neutral(editor, left, right, is_neutral):
            return right
        return None

    return rule


def _is_neutral(
    editor: Editor, value: ir.Value | None, other: ir.Value | None, is_neutral: Callable[[np.ndarray], bool]
) -> bool:
    tensor = constant(value)
    if tensor is None or other is None or tensor.size == 0:
        return False
    dims = editor.shapes.dims(other)
    if dims is None or len(tensor.shape) > len(dims):
        return False
    sizes = zip(reversed(tensor.shape.numpy()), reversed(dims), strict=False)
    stretches = any(size not in (1, dim) for size, dim in sizes)
    return not stretches and is_neutral(tensor.numpy())


def _minus_zero(elements: np.ndarray) -> bool:
    """Adding `-0.0` changes nothing, adding `0.0` turns `-0.0` into `0.0`."""
    return not elements.any() and (elements.dtype.kind in "iu" or bool(np.signbit(elements.astype(np.float64)).all()))


def _zero(elements: np.ndarray) -> bool:
    """Taking away `0.0` changes nothing, taking away `-0.0` turns `-0.0` into `0.0`."""
    return not elements.any() and (elements.dtype.kind in "iu" or not np.signbit(elements.astype(np.float64)).any())


def _one(elements: np.ndarray) -> bool:
    return bool((elements == 1).all())


def _where(editor: Editor, scope: Scope, node: ir.Node) -> ir.Value | None:
    condition = array(input_at(node, 0))
    if condition is None or condition.size == 0 or condition.all() != condition.any():
        return None
    chosen = input_at(node, 1 if condition.all() else 2)
    before, after = editor.shapes.dims(chosen), editor.shapes.dims(node.outputs[0])
    return chosen if before is not None and before == after else None


_RULES: dict[str, Callable[[Editor, Scope, ir.Node], ir.Value | None]] = {
    "Add": _neutral(False, _minus_zero),
    "And": _neutral(False, lambda elements: bool(elements.all())),
    "Cast": _cast,
    "CastLike": _cast_like,
    "Clip": _clip,
    "Concat": _only_input,
    "Div": _neutral(True, _one),
    "Dropout": _dropout,
    "Expand": _same_shape,
    "Flatten": _same_shape,
    "Identity": _identity,
    "Max": _only_input,
    "Mean": _only_input,
    "Min": _only_input,
    "Mul": _neutral(False, _one),
    "Or": _neutral(False, lambda elements: not elements.any()),
    "Pad": _pad,
    "Pow": _neutral(True, _one),
    "ReduceMax": _reduce,
    "ReduceMean": _reduce,
    "ReduceMin": _reduce,
    "ReduceProd": _reduce,
    "ReduceSum": _reduce,
    "Reshape": _same_shape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Sub": _neutral(True, _zero),
    "Sum": _only_input,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _squeeze,
    "Where": _where,
}
