"""A node against the schema of its operator: existence, number of inputs and outputs, attributes, element types.

Element types are followed through the graph as far as the schemas alone tell them: an output whose type parameter is
bound by an input, or that can only be of one type. That is enough to find a model whose declared types are not those
that it computes.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Sequence

import onnx_ir as ir
from onnx import defs

from optimizer.errors import ModelError, UnsupportedError
from optimizer.ort_session import runtime_operators

__all__ = ["check_node"]

_SINGLE = defs.OpSchema.FormalParameterOption.Single
_VARIADIC = defs.OpSchema.FormalParameterOption.Variadic

_POSITIVE = frozenset(
    (
        "blocksize",
        "dilations",
        "group",
        "kernel_shape",
        "kv_num_heads",
        "num_groups",
        "num_outputs",
        "q_num_heads",
        "strides",
    )
)
"""Attributes that divide something or size a buffer, in every operator that has them."""

_ELEMENT_TYPE = frozenset(("dtype", "to"))
"""Attributes that are the number of an element type, in every operator that has them."""

_CONSTANT_TYPES = {
    "value_float": ir.DataType.FLOAT,
    "value_floats": ir.DataType.FLOAT,
    "value_int": ir.DataType.INT64,
    "value_ints": ir.DataType.INT64,
    "value_string": ir.DataType.STRING,
    "value_strings": ir.DataType.STRING,
}


def check_node(node: ir.Node, version: int | None) -> None:
    """Check one node, and write down the types of its outputs where the model does not tell them.

    Args:
        node: Its inputs have been checked already.
        version: What the model says about the version of the node's domain; `None` when it does not import it.

    Raises:
        ModelError: The node is not what its operator's schema allows.
        UnsupportedError: There is no such operator, and no function of that name in the model.
    """
    schema = _find(node, version)
    if schema is None:
        return
    _check_counts(node, schema)
    _check_attributes(node, schema)
    _check_types(node, schema)
    _type_of_constant(node)


def _find(node: ir.Node, version: int | None) -> defs.OpSchema | None:
    if node.domain not in _onnx_domains():
        if node.op_type not in runtime_operators().get(node.domain, ()):
            raise UnsupportedError(
                f"operator {node.op_type!r} of domain {node.domain!r} is unknown: "
                "define it as a function in the model, or replace it by standard operators",
                node=node.name or "",
            )
        return None
    if version is None:
        raise ModelError(f"node {node.name!r} uses domain {node.domain!r}, which the model does not import")
    schema = _schema(node.op_type, version, node.domain)
    if schema is None:
        close = difflib.get_close_matches(node.op_type, _operators(node.domain), n=1)
        hint = f"; did you mean {close[0]!r}?" if close and close[0] != node.op_type else ""
        raise UnsupportedError(
            f"operator {node.op_type!r} does not exist in version {version} of domain "
            f"{node.domain or 'ai.onnx'!r}{hint}",
            node=node.name or "",
        )
    return schema


@functools.lru_cache(maxsize=4096)
def _schema(op_type: str, version: int, domain: str) -> defs.OpSchema | None:
    try:
        return defs.get_schema(op_type, version, domain)
    except (defs.SchemaError, TypeError):  # a damaged name is bytes instead of text
        return None


@functools.cache
def _known_types() -> frozenset[int]:
    return frozenset(int(dtype) for dtype in ir.DataType) - {int(ir.DataType.UNDEFINED)}


@functools.cache
def _onnx_domains() -> frozenset[str]:
    return frozenset(schema.domain for schema in defs.get_all_schemas())


@functools.cache
def _operators(domain: str) -> list[str]:
    return [schema.name for schema in defs.get_all_schemas() if schema.domain == domain]


def _label(node: ir.Node) -> str:
    return f"node {node.name!r} ({node.op_type})"


def _check_counts(node: ir.Node, schema: defs.OpSchema) -> None:
    count = len(node.inputs)
    while count and node.inputs[count - 1] is None:
        count -= 1
    if not schema.min_input <= count <= schema.max_input:
        raise ModelError(
            f"{_label(node)} has {count} inputs, the operator takes {schema.min_input} to {schema.max_input}"
        )
    if not schema.min_output <= len(node.outputs) <= schema.max_output:
        raise ModelError(
            f"{_label(node)} has {len(node.outputs)} outputs, "
            f"the operator has {schema.min_output} to {schema.max_output}"
        )
    for formal, value in zip(schema.inputs, node.inputs, strict=False):
        if value is None and formal.option == _SINGLE:
            raise ModelError(f"{_label(node)} lacks its input {formal.name!r}")


def _check_attributes(node: ir.Node, schema: defs.OpSchema) -> None:
    for attr in node.attributes.values():
        formal = schema.attributes.get(attr.name)
        if formal is None:
            raise ModelError(f"{_label(node)} has an attribute {attr.name!r}, which the operator does not know")
        expected = str(formal.type).rpartition(".")[2]
        if attr.type.name != expected:
            raise ModelError(
                f"{_label(node)}: attribute {attr.name!r} is of type {attr.type.name}, it must be {expected}"
            )
        if attr.name in _POSITIVE and not attr.is_ref():
            values = attr.as_ints() if attr.type == ir.AttributeType.INTS else [attr.as_int()]
            if any(value < 1 for value in values):
                raise ModelError(f"{_label(node)}: attribute {attr.name!r} must be positive, not {list(values)}")
        is_type = attr.name in _ELEMENT_TYPE and attr.type == ir.AttributeType.INT and not attr.is_ref()
        if is_type and attr.as_int() not in _known_types():
            raise ModelError(f"{_label(node)}: attribute {attr.name!r} is {attr.as_int()}, which is no element type")
    for formal in schema.attributes.values():
        if formal.required and formal.name not in node.attributes:
            raise ModelError(f"{_label(node)} lacks its attribute {formal.name!r}")


def _check_types(node: ir.Node, schema: defs.OpSchema) -> None:
    bound: dict[str, str] = {}
    for formal, value in _pair(schema.inputs, node.inputs):
        actual = None if value is None else _type_string(value.type)
        if actual is None:
            continue
        if formal.types and actual not in formal.types:
            raise ModelError(f"{_label(node)}: input {formal.name!r} cannot be {actual}")
        if formal.option == _VARIADIC and not formal.is_homogeneous:
            continue
        first = bound.setdefault(formal.type_str, actual)
        if first != actual:
            raise ModelError(
                f"{_label(node)}: input {formal.name!r} is {actual}, another input of the same type is {first}"
            )
    for formal, value in _pair(schema.outputs, node.outputs):
        if value is None or (formal.option == _VARIADIC and not formal.is_homogeneous):
            continue
        expected = bound.get(formal.type_str) or (next(iter(formal.types)) if len(formal.types) == 1 else None)
        if expected is not None:
            _check_output(node, value, expected)


def _check_output(node: ir.Node, value: ir.Value, expected: str) -> None:
    declared = _type_string(value.type)
    if declared is None:
        if expected.startswith("tensor("):
            value.type = ir.TensorType(_element_type(expected))
    elif declared != expected:
        raise ModelError(f"{_label(node)}: output {value.name!r} is declared as {declared}, it is {expected}")


def _type_of_constant(node: ir.Node) -> None:
    """The element type of a Constant is that of its attribute, which no schema tells."""
    if node.op_identifier() == ("", "Constant", "") and node.outputs[0].type is None:
        for attr in node.attributes.values():
            if attr.type == ir.AttributeType.TENSOR and not attr.is_ref():
                node.outputs[0].type = ir.TensorType(attr.as_tensor().dtype)
            elif attr.name in _CONSTANT_TYPES:
                node.outputs[0].type = ir.TensorType(_CONSTANT_TYPES[attr.name])


def _pair(
    formals: Sequence[defs.OpSchema.FormalParameter], values: Sequence[ir.Value | None]
) -> list[tuple[defs.OpSchema.FormalParameter, ir.Value | None]]:
    """Each value with its formal parameter; the last one of a schema may stand for many values."""
    if not formals:
        return []
    padded = [*formals, *[formals[-1]] * max(0, len(values) - len(formals))]
    return list(zip(padded, values, strict=False))


def _type_string(type_: ir.TypeProtocol | None) -> str | None:
    """As schemas write it, such as `seq(tensor(float))`; `None` when it is not known."""
    if isinstance(type_, (ir.SequenceType, ir.OptionalType)):
        inner = _type_string(type_.elem_type)
        kind = "seq" if isinstance(type_, ir.SequenceType) else "optional"
        return None if inner is None else f"{kind}({inner})"
    if type_ is None or type_.dtype == ir.DataType.UNDEFINED:
        return None
    kind = "sparse_tensor" if isinstance(type_, ir.SparseTensorType) else "tensor"
    return f"{kind}({type_.dtype.name.lower()})"


def _element_type(text: str) -> ir.DataType:
    return ir.DataType[text.removeprefix("tensor(").removesuffix(")").upper()]
