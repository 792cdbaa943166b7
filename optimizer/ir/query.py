"""Questions that passes ask about nodes and values."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

__all__ = [
    "FLOATS",
    "RANDOM_OPERATORS",
    "array",
    "constant",
    "float_attribute",
    "has_reference",
    "has_users",
    "input_at",
    "int_attribute",
    "ints_attribute",
    "is_op",
    "known_ints",
    "only_user",
    "string_attribute",
    "tensor_of",
]

FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})


RANDOM_OPERATORS = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
"""Operators that give something else each time; a `Dropout` in training does too."""


def is_op(node: ir.Node | None, *op_types: str) -> bool:
    """Whether the node is one of these standard ONNX operators, with every attribute given in place.

    A node inside a function can refer to an attribute of the function; such a node is never matched, because its
    attributes are not known.
    """
    return node is not None and node.op_type in op_types and node.domain == "" and not has_reference(node)


def has_reference(node: ir.Node) -> bool:
    """Whether an attribute of the node refers to an attribute of the function around it."""
    # `data` is the dictionary itself: this is asked very often, and mostly of nodes without attributes.
    attributes = node.attributes.data
    return bool(attributes) and any(attribute.is_ref() for attribute in attributes.values())


def has_users(values: Iterable[ir.Value]) -> bool:
    """Whether anything uses one of the values, or a graph gives it."""
    return any(value.uses() or value.is_graph_output() for value in values)


def input_at(node: ir.Node, index: int) -> ir.Value | None:
    """The input, or `None` when it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor that `value` always is, or `None`.

    An initializer that is also an input of the graph is only a default, which the caller may override: it is not
    constant.
    """
    if value is None or value.is_graph_input():
        return None
    if value.is_initializer():
        return value.const_value
    node = value.producer()
    if is_op(node, "Constant") and node is not None and len(node.attributes) == 1:
        return _constant_node(next(iter(node.attributes.values())))
    return None


def array(value: ir.Value | None) -> npt.NDArray[np.generic] | None:
    """The elements of a constant, or `None` when the value is not constant."""
    tensor = constant(value)
    return None if tensor is None else tensor.numpy()


def known_ints(value: ir.Value | None) -> tuple[int, ...] | None:
    """The elements of a constant integer scalar or vector, or `None`."""
    tensor = constant(value)
    if tensor is None or len(tensor.shape) > 1 or not tensor.dtype.is_integer():
        return None
    return tuple(int(item) for item in tensor.numpy().reshape(-1))


def only_user(value: ir.Value) -> ir.Node | None:
    """The one node that uses the value, once, when nothing else does and it is no output of a graph."""
    # `uses()` copies them all: for a weight that every layer shares, once for each layer.
    uses: Collection[tuple[ir.Node, int]] = getattr(value, "_uses", None) or value.uses()
    if len(uses) != 1 or value.is_graph_output():
        return None
    ((user, _),) = uses
    return user


def int_attribute(node: ir.Node, name: str, default: int) -> int:
    """The attribute, or its default."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def float_attribute(node: ir.Node, name: str, default: float) -> float:
    """The attribute, or its default."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_float()


def ints_attribute(node: ir.Node, name: str) -> tuple[int, ...] | None:
    """The attribute, or `None` when it is not there."""
    attribute = node.attributes.get(name)
    return None if attribute is None else tuple(attribute.as_ints())


def string_attribute(node: ir.Node, name: str, default: str) -> str:
    """The attribute, or its default."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_string()


def tensor_of(attribute: ir.Attr) -> ir.TensorProtocol:
    """The tensor that an attribute holds.

    Raises:
        TypeError: It holds none.
    """
    # `as_tensor` goes through all members of a protocol, which takes longer than most of what is done with a tensor.
    value = attribute.value
    return value if isinstance(value, (ir.Tensor, ir.serde.TensorProtoTensor)) else attribute.as_tensor()


def _constant_node(attribute: ir.Attr) -> ir.TensorProtocol | None:
    if attribute.is_ref():
        return None
    value = attribute.value
    if attribute.name == "value":
        return tensor_of(attribute)
    if attribute.name in ("value_float", "value_floats"):
        return ir.tensor(np.array(value, np.float32))
    if attribute.name in ("value_int", "value_ints"):
        return ir.tensor(np.array(value, np.int64))
    if attribute.name in ("value_string", "value_strings"):
        return _strings(value)
    return None


def _strings(value: str | Sequence[str]) -> ir.TensorProtocol:
    shape = ir.Shape([] if isinstance(value, str) else [len(value)])
    items = [value] if isinstance(value, str) else list(value)
    return ir.StringTensor([item.encode() for item in items], shape=shape)
