"""How a node is said in an older opset, where both have its operator.

Each adapter changes the node, or puts others in its place, as far as it is given the constants and sizes that this
takes; what is left as it is does not fit, and is refused by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
import onnx_ir as ir
from onnx import defs

from optimizer.ir.edit import Editor, Scope
from optimizer.ir.query import (
    array,
    has_reference,
    input_at,
    int_attribute,
    ints_attribute,
    known_ints,
    string_attribute,
)
from passes.lowering.fit import DEFAULTS_SINCE, schema_of, used

__all__ = ["adapt"]

Adapter = Callable[[Editor, Scope, ir.Node], None]


def adapt(editor: Editor, scope: Scope, node: ir.Node, opset: int) -> None:
    """Bring a node that does not fit an older opset nearer to it, if its operator is in both."""
    if has_reference(node):
        return
    adapter = _ADAPTERS.get(node.op_type)
    if adapter is not None:
        adapter(editor, scope, node)
    if node.graph is not None:
        _drop_defaults(editor, node, scope.opset, opset)


def _drop_defaults(editor: Editor, node: ir.Node, now: int, opset: int) -> None:
    """An attribute that the older version lacks falls away where it says what that version does anyway."""
    older, newer = schema_of(node.op_type, opset), defs.get_schema(node.op_type, now, "")
    if older is None:
        return
    for name, attribute in list(node.attributes.items()):
        if name in older.attributes or name not in newer.attributes or (node.op_type, name) in DEFAULTS_SINCE:
            continue
        default = newer.attributes[name].default_value
        if default.type != onnx.AttributeProto.UNDEFINED and _value(default) == attribute.value:
            _drop(editor, node, name)


def _axes_as_attribute(editor: Editor, scope: Scope, node: ir.Node) -> None:
    """Of a reduction: without any axes it is over all of them."""
    del scope
    given = input_at(node, 1)
    axes = known_ints(given)
    if given is None or axes == ():
        if int_attribute(node, "noop_with_empty_axes", 0):
            return
    elif axes is None:
        return
    else:
        _set(editor, node, ir.AttrInt64s("axes", axes))
    node.resize_inputs(1)
    _drop(editor, node, "noop_with_empty_axes")


def _number_as_sizes(editor: Editor, scope: Scope, node: ir.Node) -> None:
    """Of a Split into so many parts, of which the last may be smaller."""
    parts = node.attributes.get("num_outputs")
    axis, static = int_attribute(node, "axis", 0), editor.shapes.dims(node.inputs[0])
    size = None if static is None else static[axis]
    if parts is None or not isinstance(size, int):
        return
    part = -(-size // parts.as_int())
    sizes = [min(part, max(0, size - i * part)) for i in range(parts.as_int())]
    node.resize_inputs(2)
    node.replace_input_with(1, editor.constant(scope, node, "split_sizes", np.array(sizes, np.int64)))
    _drop(editor, node, "num_outputs")


def _pads_of_all_axes(editor: Editor, scope: Scope, node: ir.Node) -> None:
    dims, axes, pads = editor.shapes.dims(node.inputs[0]), known_ints(input_at(node, 3)), known_ints(node.inputs[1])
    if dims is None or axes is None or pads is None:
        return
    rank = len(dims)
    every = np.zeros((2, rank), np.int64)
    every[:, [axis % rank for axis in axes]] = np.reshape(pads, (2, len(axes)))
    node.replace_input_with(1, editor.constant(scope, node, "pads", every.reshape(-1)))
    node.resize_inputs(used(node.inputs[:3]))
    editor.modified = True


def _factors_of_all_axes(editor: Editor, scope: Scope, node: ir.Node) -> None:
    """Of a Resize of some axes: the others keep their sizes."""
    axes, dims = ints_attribute(node, "axes"), editor.shapes.dims(node.inputs[0])
    if axes is None or dims is None:
        return
    rank = len(dims)
    every: list[tuple[int, np.ndarray]] = []
    for index, rest in ((1, [0.0] * rank + [1.0] * rank), (2, [1.0] * rank), (3, list(dims))):
        given = input_at(node, index)
        if given is None or (index < 3 and array(given) is not None and not array(given).size):  # type: ignore[union-attr]
            continue
        values = array(given)
        if values is None or any(not isinstance(dim, (int, float)) for i, dim in enumerate(rest) if i not in axes):
            return
        full = np.array([0 if not isinstance(dim, (int, float)) else dim for dim in rest], values.dtype)
        full.reshape(-1, rank)[:, [axis % rank for axis in axes]] = values.reshape(-1, len(axes))
        every.append((index, full))
    for index, full in every:
        node.replace_input_with(index, editor.constant(scope, node, "resized", full))
    _drop(editor, node, "axes")


def _older_names_of_modes(editor: Editor, scope: Scope, node: ir.Node) -> None:
    """Of a GridSample, which had no volumes then."""
    del scope
    dims = editor.shapes.dims(node.inputs[0])
    mode = string_attribute(node, "mode", "linear")
    if dims is not None and len(dims) == 4 and mode in ("linear", "cubic"):
        _set(editor, node, ir.AttrString("mode", f"bi{mode}"))


def _axis_as_attribute(editor: Editor, scope: Scope, node: ir.Node) -> None:
    """Of a DFT; the axis that is not given is the last of the numbers now, and was the first."""
    del scope
    given, dims = input_at(node, 2), editor.shapes.dims(node.inputs[0])
    axis = (-2,) if given is None else known_ints(given)
    if axis is None or len(axis) != 1 or dims is None:
        return
    node.resize_inputs(used(node.inputs[:2]))
    _set(editor, node, ir.AttrInt64("axis", axis[0] % len(dims)))


def _zero_point_for_type(editor: Editor, scope: Scope, node: ir.Node) -> None:
    """Of a QuantizeLinear: the type of its result was that of the zero point alone."""
    to, scale = int_attribute(node, "output_dtype", 0), editor.shapes.static(node.inputs[1])
    if not to:
        return
    if input_at(node, 2) is None:
        if scale is None:
            return
        zero = np.zeros(scale, ir.DataType(to).numpy())
        node.resize_inputs(3)
        node.replace_input_with(2, editor.constant(scope, node, "zero_point", zero))
    _drop(editor, node, "output_dtype")


def _type_of_scale(editor: Editor, scope: Scope, node: ir.Node) -> None:
    """Of a DequantizeLinear: its result has the type of the scale."""
    del scope
    if int_attribute(node, "output_dtype", 0) == editor.shapes.dtype(node.inputs[1]):
        _drop(editor, node, "output_dtype")


def _without_saturation(editor: Editor, scope: Scope, node: ir.Node) -> None:
    """What does not become 8 bits of floating point never saturates."""
    del scope
    to = editor.shapes.dtype(node.outputs[0])
    if to is not None and not to.name.startswith("FLOAT8"):
        _drop(editor, node, "saturate")


def _sliced_shape(editor: Editor, scope: Scope, node: ir.Node) -> None:
    """Of a Shape of some axes."""
    start, end = int_attribute(node, "start", 0), int_attribute(node, "end", np.iinfo(np.int64).max)
    whole = ir.node("Shape", [node.inputs[0]], name=node.name)
    whole.outputs[0].name = editor.fresh_name(f"{node.outputs[0].name}_whole")
    assert node.graph is not None, "the node is in a graph"
    node.graph.insert_before(node, whole)
    bounds = [editor.constant(scope, node, "bound", np.array([bound], np.int64)) for bound in (start, end)]
    editor.substitute(node, ir.node("Slice", [whole.outputs[0], *bounds]))


def _value(attribute: onnx.AttributeProto) -> object:
    return ir.serde.deserialize_attribute(attribute).value


def _without_zeros(editor: Editor, scope: Scope, node: ir.Node) -> None:
    """Of a Reshape whose zeros are sizes: among the sizes of a tensor with elements there are none."""
    del scope
    sizes = known_ints(node.inputs[1])
    if sizes is None or 0 not in sizes:
        _drop(editor, node, "allowzero")


def _set(editor: Editor, node: ir.Node, attribute: ir.Attr) -> None:
    node.attributes[attribute.name] = attribute
    editor.modified = True


def _drop(editor: Editor, node: ir.Node, name: str) -> None:
    if name in node.attributes:
        del node.attributes[name]
        editor.modified = True


_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
_ADAPTERS: Mapping[str, Adapter] = {
    **{f"Reduce{kind}": _axes_as_attribute for kind in _REDUCTIONS},
    "Cast": _without_saturation,
    "CastLike": _without_saturation,
    "DFT": _axis_as_attribute,
    "DequantizeLinear": _type_of_scale,
    "GridSample": _older_names_of_modes,
    "Pad": _pads_of_all_axes,
    "QuantizeLinear": _zero_point_for_type,
    "Resize": _factors_of_all_axes,
    "Reshape": _without_zeros,
    "Shape": _sliced_shape,
    "Split": _number_as_sizes,
}
