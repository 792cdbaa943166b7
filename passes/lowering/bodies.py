"""Operators that ONNX defines by others: their bodies, for the types of a node.

Source: ONNX, Operators.md, "Function" in the text of an operator; the bodies come with the onnx package.
"""

from __future__ import annotations

from typing import Any

import onnx
import onnx_ir as ir
from onnx import defs

from optimizer.ir.shapes import Shapes
from passes.lowering.fit import used

__all__ = ["body_of"]


_NORMALIZATIONS = ("LayerNormalization", "RMSNormalization")


def body_of(node: ir.Node, opset: int, shapes: Shapes) -> ir.Function | None:
    """The function that computes what a node does; `None` if there is none, or if the types must be known for it.

    Args:
        node: Of the standard domain; attributes that it leaves out are set to their defaults.
        opset: Of the model.
        shapes: What is known of the node's inputs.
    """
    schema: Any = defs.get_schema(node.op_type, opset, "")
    plain = [version for version in schema.function_opset_versions if version <= opset]
    by_type = [version for version in schema.context_dependent_function_opset_versions if version <= opset]
    if not plain and not by_type:
        return None
    for name, attribute in schema.attributes.items():
        default = attribute.default_value
        if name not in node.attributes and default.type != onnx.AttributeProto.UNDEFINED:
            default.name = name
            node.attributes[name] = ir.serde.deserialize_attribute(default)
    own = _normalization(node, shapes) if node.op_type in _NORMALIZATIONS else None
    if own is not None:
        return ir.serde.deserialize_function(own)
    if plain:
        data = schema.get_function_with_opset_version(max(plain))
    else:
        types = [_type(value, shapes) for value in node.inputs[: used(node.inputs)]]
        if any(value is not None and not type_ for value, type_ in zip(node.inputs, types, strict=False)):
            return None
        text = ir.to_proto(node).SerializeToString()
        data = schema.get_context_dependent_function_with_opset_version(max(by_type), text, types)
    function = onnx.FunctionProto.FromString(data)
    if not function.node:
        return None
    made = {*function.input, *(name for inner in function.node for name in inner.output)}
    # A body leaves out what the node does not ask for.
    function.output[:] = [name if name in made else function.output[0] for name in function.output]
    return ir.serde.deserialize_function(function)


def _normalization(node: ir.Node, shapes: Shapes) -> onnx.FunctionProto | None:
    """The body of a layer or RMS normalization; `None` where its axes cannot be told.

    ONNX's own finds them while it runs, and subtracts the square of the mean from the mean of the squares, which loses
    all digits where the mean is large. In float32, as ONNX has it, whatever the type.
    """
    dtype, dims, axis = shapes.dtype(node.inputs[0]), shapes.dims(node.inputs[0]), node.attributes["axis"].as_int()
    if dtype is None or used(node.outputs) > 1 or (dims is None and axis >= 0):
        return None
    axes = list(range(axis if axis < 0 or dims is None else axis - len(dims), 0))
    centered = "Mean = ReduceMean(Wide, Axes) Deviation = Sub(Wide, Mean)"
    return onnx.parser.parse_function(f"""
        <domain: "", opset_import: ["" : 18]> {node.op_type} (X, Scale, B) => (Y) {{
            Axes = Constant<value = int64[{len(axes)}] {{ {",".join(map(str, axes))} }}>()
            Epsilon = Constant<value = float {{ {node.attributes["epsilon"].as_float()!r} }}>()
            Wide = Cast<to = 1>(X)
            {centered if node.op_type == "LayerNormalization" else "Deviation = Identity(Wide)"}
            Square = Mul(Deviation, Deviation)
            Variance = ReduceMean(Square, Axes)
            Shifted = Add(Variance, Epsilon)
            Root = Sqrt(Shifted)
            Normalized = Div(Deviation, Root)
            Narrow = Cast<to = {dtype.value}>(Normalized)
            {"Scaled = Mul(Narrow, Scale) Y = Add(Scaled, B)" if used(node.inputs) > 2 else "Y = Mul(Narrow, Scale)"}
        }}""")


def _type(value: ir.Value | None, shapes: Shapes) -> bytes:
    kind = shapes.type(value)
    if kind is None:
        return b""
    proto = ir.serde.serialize_type(kind)
    dims = shapes.dims(value) if isinstance(kind, ir.TensorType) else None
    if dims is not None:
        sizes = [dim if isinstance(dim, int) else None for dim in dims]
        proto = onnx.helper.make_tensor_type_proto(kind.dtype.value, sizes)
    return bytes(proto.SerializeToString())
