"""Whether a node is one of an older opset, and if not, why: by the schemas that ONNX itself has of all versions."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnx import defs

from optimizer.ir.query import string_attribute
from optimizer.ir.shapes import Shapes

__all__ = ["DEFAULTS_SINCE", "misfit", "schema_of", "used"]

_MEANS_SINCE = {"GroupNormalization": 21}
"""Operators that say the same with other meaning before: there a scale and a bias for each group, not each channel."""

_VALUES_SINCE = {
    ("GridSample", "mode", "linear"): 20,
    ("GridSample", "mode", "cubic"): 20,
    ("Pad", "mode", "wrap"): 19,
    ("Resize", "coordinate_transformation_mode", "half_pixel_symmetric"): 19,
    ("ScatterElements", "reduction", "max"): 18,
    ("ScatterElements", "reduction", "min"): 18,
    ("ScatterND", "reduction", "max"): 18,
    ("ScatterND", "reduction", "min"): 18,
}
"""Values of attributes that are newer than the attribute."""

DEFAULTS_SINCE = {("DFT", "axis"): 20, ("RoiAlign", "coordinate_transformation_mode"): 16}
"""Attributes, or inputs of that name, that say something else since then when they are left out."""

_VOLUMES_SINCE = {"GridSample": 20}
"""Operators that only knew images before."""


def schema_of(op_type: str, opset: int) -> defs.OpSchema | None:
    """The standard operator as an opset has it; `None` where it has none, or one of another meaning."""
    if opset < _MEANS_SINCE.get(op_type, 0):
        return None
    try:
        schema = defs.get_schema(op_type, opset, "")
    except defs.SchemaError:
        return None
    return None if schema.deprecated else schema


def misfit(node: ir.Node, opset: int, shapes: Shapes) -> str | None:
    """Why a node of the standard domain is not one of `opset`; `None` if it is. What is not known of types may fit."""
    schema = schema_of(node.op_type, opset)
    if schema is None:
        return "the operator is newer"
    if (count := used(node.inputs)) > schema.max_input:
        return f"its input {count - 1} is newer"
    if used(node.outputs) > schema.max_output:
        return f"its output {used(node.outputs) - 1} is newer"
    for name in node.attributes:
        if name not in schema.attributes:
            return f"its attribute {name!r} is newer"
    for (op_type, name, value), since in _VALUES_SINCE.items():
        if node.op_type == op_type and opset < since and string_attribute(node, name, "") == value:
            return f"{name}={value!r} is newer"
    for (op_type, name), since in DEFAULTS_SINCE.items():
        if node.op_type == op_type and opset < since and name not in node.attributes:
            return f"the default of {name!r} is newer"
    dims = shapes.dims(node.inputs[0]) if opset < _VOLUMES_SINCE.get(node.op_type, 0) else None
    if dims is not None and len(dims) != 4:
        return f"of {len(dims)} axes it is newer"
    return _wrong_type(node, schema, shapes)


def used(values: Sequence[ir.Value | None]) -> int:
    """How many values are given, counting those that are left out in between."""
    given = [i for i, value in enumerate(values) if value is not None and value.name != ""]
    return given[-1] + 1 if given else 0


def _wrong_type(node: ir.Node, schema: defs.OpSchema, shapes: Shapes) -> str | None:
    allowed = {constraint.type_param_str: constraint.allowed_type_strs for constraint in schema.type_constraints}
    for values, formals in ((node.inputs, schema.inputs), (node.outputs, schema.outputs)):
        for index, value in enumerate(values[: used(values)]):
            formal = formals[min(index, len(formals) - 1)]
            found = _type_string(shapes, value)
            if found is not None and found not in allowed.get(formal.type_str, [formal.type_str]):
                return f"{found} is newer there"
    return None


def _type_string(shapes: Shapes, value: ir.Value | None) -> str | None:
    """As schemas write it; `None` for what is not known."""
    kind = shapes.type(value)
    return None if kind is None or kind.dtype == ir.DataType.UNDEFINED else _written(kind)


def _written(kind: ir.TypeProtocol) -> str:
    if isinstance(kind, (ir.SequenceType, ir.OptionalType)):
        return f"{'seq' if isinstance(kind, ir.SequenceType) else 'optional'}({_written(kind.elem_type)})"
    return f"tensor({kind.dtype.name.lower()})"
