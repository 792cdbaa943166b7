"""The parts of a graph that ONNX Runtime runs: cut out as models of their own."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from backends.relax.partition import captured
from backends.relax.plan import Step
from optimizer.errors import UnsupportedError
from optimizer.ir.widen import has_bfloat16, widened

_PROTOBUF_LIMIT = 2**31 - 1
_NEWEST_IR_VERSION = 11
"""An older version of the file format says the same, and every ONNX Runtime with our opset reads it."""


def partition_model(model: ir.Model, step: Step) -> bytes:
    """The nodes of a fallback step as a serialized model; ONNX Runtime computes in float32 what is bfloat16.

    Raises:
        UnsupportedError: its weights exceed what one protobuf message can hold (2 GB).
    """
    graph = model.graph
    wanted = set(step.nodes)
    nodes = [n for n in graph if n.name in wanted]
    read = {v for n in nodes for v in (*(v for v in n.inputs if v is not None), *captured(n))}
    held = {name: v.const_value for name, v in graph.initializers.items() if v in read}
    weights = {name: tensor for name, tensor in held.items() if tensor is not None}
    total = sum(tensor.nbytes for tensor in weights.values())
    if total > _PROTOBUF_LIMIT:
        raise UnsupportedError(
            f"the fallback partition {step.entry} holds {total} bytes of weights, more than 2 GB; use fallback='error'"
        )
    values = {v.name: v for n in nodes for v in (*n.outputs, *n.inputs) if v is not None} | {v.name: v for v in read}
    proto = onnx.GraphProto(name=step.entry)
    proto.node.extend(ir.serde.serialize_node(n) for n in nodes)
    proto.input.extend(ir.serde.serialize_value(values[v.name]) for v in step.inputs)
    proto.output.extend(ir.serde.serialize_value(values[v.name]) for v in step.outputs)
    for name, weight in weights.items():
        tensor = ir.serde.serialize_tensor(weight)
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            tensor = onnx.numpy_helper.from_array(weight.numpy())
        tensor.name = name
        proto.initializer.append(tensor)
    whole = onnx.ModelProto(ir_version=min(model.ir_version, _NEWEST_IR_VERSION), graph=proto)
    whole.opset_import.extend(onnx.helper.make_opsetid(d, v) for d, v in graph.opset_imports.items())
    whole.functions.extend(ir.serde.serialize_function(f) for f in model.functions.values())
    if has_bfloat16(model):  # asked first: most need not be read again
        whole = ir.to_proto(widened(ir.from_proto(whole)))
    return bytes(whole.SerializeToString())
