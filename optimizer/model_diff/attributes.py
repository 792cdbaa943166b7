"""An attribute of a node as text: equal texts mean equal attributes."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import onnx
import onnx.defs
import onnx_ir as ir

from optimizer.ir.tensors import content_hash

__all__ = ["attribute_text", "default_texts", "tensor_text"]

_SHOWN_ELEMENTS = 16
_LONGEST = 200


def attribute_text(attribute: ir.Attr) -> str:
    """The value, readable when it is small; a large one ends in a hash of its content."""
    if attribute.is_ref():
        return f"@{attribute.ref_attr_name}"
    if attribute.type == ir.AttributeType.TENSOR:
        return tensor_text(attribute.as_tensor())
    if attribute.type == ir.AttributeType.TENSORS:
        return "[" + ", ".join(map(tensor_text, attribute.as_tensors())) + "]"
    if attribute.type == ir.AttributeType.GRAPH:
        return "a graph"
    if attribute.type == ir.AttributeType.GRAPHS:
        return f"{len(attribute.as_graphs())} graphs"
    if attribute.type == ir.AttributeType.FLOAT:
        return f"{attribute.as_float():.9g}"
    if attribute.type == ir.AttributeType.FLOATS:
        return "[" + ", ".join(f"{number:.9g}" for number in attribute.as_floats()) + "]"
    if attribute.type in (ir.AttributeType.INTS, ir.AttributeType.STRINGS):
        return "[" + ", ".join(map(str, attribute.value)) + "]"
    return str(attribute.value)


@functools.lru_cache(maxsize=1024)
def default_texts(op: str, version: int) -> Mapping[str, str]:
    """What the attributes of an operator are when they are left out, as `attribute_text` writes them.

    Args:
        op: The operator, behind its domain and `::` if that is not the default one.
        version: The opset of the domain.

    Returns:
        By name; without those that have no default. Nothing for an operator that ONNX does not know.
    """
    domain, _, op_type = op.rpartition("::")
    if not onnx.defs.has(op_type, domain):
        return {}
    try:
        attributes = onnx.defs.get_schema(op_type, version, domain).attributes
    except onnx.defs.SchemaError:
        return {}
    return {
        name: attribute_text(ir.serde.deserialize_attribute(attribute.default_value))
        for name, attribute in attributes.items()
        if attribute.default_value.name
    }


def tensor_text(tensor: ir.TensorProtocol) -> str:
    """Type and shape, and the elements if they are few; else a hash of them."""
    kind = f"{tensor.dtype.name.lower()}{list(tensor.shape)}"
    if tensor.size <= _SHOWN_ELEMENTS:
        text = str(tensor.numpy().tolist())
        if len(text) <= _LONGEST:
            return f"{kind} {text}"
    return f"{kind} #{content_hash(tensor)[:12]}"
