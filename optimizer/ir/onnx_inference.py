"""Shape inference of one node by ONNX itself, for the operators that have no rule here."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import numpy as np
import onnx
import onnx_ir as ir

from optimizer.ir.query import constant, tensor_of
from optimizer.ir.shape_info import UNKNOWN, Dims, Info, NodeView
from optimizer.ir.symbolic import Expr, parse_dim
from optimizer.ir.tensors import content_hash

__all__ = ["OnnxInference"]

_MAX_DATA_BYTES = 1024
"""Larger constants are shown to the inference by type only."""


class OnnxInference:
    """Asks ONNX, and remembers the answers: repeated layers ask the same again and again."""

    def __init__(self, fresh: Callable[[], Expr]) -> None:
        self._fresh = fresh
        self._answers: dict[Hashable, dict[str, onnx.TypeProto]] = {}

    def infer(self, view: NodeView) -> list[Info]:
        """What ONNX says of each output; nothing where it cannot tell."""
        node = view.node
        try:
            schema = onnx.defs.get_schema(node.op_type, view.opset, node.domain)
        except onnx.defs.SchemaError:
            return [UNKNOWN] * len(node.outputs)
        question = _Question(view)
        key = question.key()
        if key not in self._answers:
            self._answers[key] = question.ask(schema)
        answer = self._answers[key]
        return [self._info(answer.get(f"o{i}")) for i in range(len(node.outputs))]

    def _info(self, proto: onnx.TypeProto | None) -> Info:
        if proto is None:
            return UNKNOWN
        found = ir.serde.deserialize_type_proto_for_type(proto)
        shape = ir.serde.deserialize_type_proto_for_shape(proto)
        if shape is None or not proto.HasField("tensor_type"):
            return Info(found, None)
        return Info(found, tuple(self._dim(dim) for dim in shape))

    def _dim(self, dim: int | ir.SymbolicDim) -> int | Expr:
        if isinstance(dim, int):
            return dim
        parsed = parse_dim(dim.value) if dim.value else self._fresh()
        return parsed


class _Question:
    """A node with its inputs called `i0, i1, ...` and its outputs `o0, o1, ...`, so that equal questions look equal."""

    def __init__(self, view: NodeView) -> None:
        self._view = view
        self._constants = [_small_constant(value) for value in view.node.inputs]

    def key(self) -> Hashable:
        node = self._view.node
        attributes = tuple(sorted((a.name, a.type.value, _attribute_key(a)) for a in node.attributes.values()))
        inputs = tuple(
            None if info is None else (str(info.type), info.dims, None if tensor is None else content_hash(tensor))
            for info, tensor in zip(self._view.inputs, self._constants, strict=True)
        )
        ints = tuple(self._view.ints(i) for i in range(len(node.inputs)))
        return node.op_identifier(), self._view.opset, attributes, inputs, ints, len(node.outputs)

    def ask(self, schema: onnx.defs.OpSchema) -> dict[str, onnx.TypeProto]:
        node = self._view.node
        proto = onnx.NodeProto(op_type=node.op_type, domain=node.domain)
        proto.attribute.extend(ir.serde.serialize_attribute(attribute) for attribute in node.attributes.values())
        proto.input.extend("" if value is None else f"i{i}" for i, value in enumerate(node.inputs))
        proto.output.extend(f"o{i}" for i in range(len(node.outputs)))
        types, data = {}, {}
        for i, info in enumerate(self._view.inputs):
            if info is None or info.type is None:
                continue
            types[f"i{i}"] = _type_proto(info)
            tensor = self._constants[i]
            if tensor is not None:
                data[f"i{i}"] = ir.serde.serialize_tensor(tensor)
            elif (ints := self._view.ints(i)) is not None and info.dims is not None:
                content = np.array(ints, info.type.dtype.numpy()).reshape([len(ints)] * len(info.dims))
                data[f"i{i}"] = onnx.numpy_helper.from_array(content)
        opsets = [onnx.helper.make_opsetid(node.domain, self._view.opset)]
        try:
            return onnx.shape_inference.infer_node_outputs(schema, proto, types, data, opset_imports=opsets)
        except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, KeyError, RuntimeError):
            # An input of which not even the type is known, or a node that breaks its operator's rules.
            return {}


def _small_constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    tensor = constant(value)
    return tensor if tensor is not None and tensor.nbytes <= _MAX_DATA_BYTES else None


def _attribute_key(attribute: ir.Attr) -> str:
    if attribute.type == ir.AttributeType.TENSOR:
        return content_hash(tensor_of(attribute))
    return repr(attribute.value)


def _type_proto(info: Info) -> onnx.TypeProto:
    assert info.type is not None
    value = ir.Value(name="value", type=info.type, shape=None if info.dims is None else _shape(info.dims))
    return ir.serde.serialize_value(value).type


def _shape(dims: Dims) -> ir.Shape:
    return ir.Shape([dim if isinstance(dim, int) else str(dim) for dim in dims])
