"""A model apart from its weights, so that it can be serialized, stored or given to a runtime without a copy of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from optimizer.executable import Array

__all__ = ["detach_weights", "tensor_bytes", "weight_bytes", "weights_as_inputs"]

DETACH_FROM_BYTES = 1024
INPUT_FROM_BYTES = 1 << 18
"""Smaller weights may be parameters that a kernel wants to know when it is made."""


def detach_weights(model: ir.Model, prefix: str = "weight") -> tuple[bytes, Mapping[str, Array]]:
    """Serialize a model without the initializers of its main graph that have 1 KiB or more.

    Args:
        model: Not changed.
        prefix: The detached weights become external data in files called `prefix` and a number.

    Returns:
        The serialized model, and for each of these files its content as a vector of bytes, a view wherever possible.
    """
    slim = model.clone()
    files: dict[str, Array] = {}
    locations: dict[int, str] = {}
    for value in slim.graph.initializers.values():
        tensor = value.const_value
        if tensor is None or tensor.nbytes < DETACH_FROM_BYTES or tensor.dtype == ir.DataType.STRING:
            continue
        if id(tensor) not in locations:
            locations[id(tensor)] = f"{prefix}{len(files):05d}"
            files[locations[id(tensor)]] = tensor_bytes(tensor)
        shape = ir.Shape(tensor.shape.numpy())
        value.const_value = ir.ExternalTensor(
            locations[id(tensor)], 0, tensor.nbytes, tensor.dtype, shape=shape, name=value.name or ""
        )
    return ir.to_proto(slim).SerializeToString(deterministic=True), files


def weights_as_inputs(model: ir.Model) -> tuple[bytes, list[ir.TensorProtocol]]:
    """Serialize a model with its large weights turned into further inputs, so that a runtime reads them in place.

    Args:
        model: Not changed.

    Returns:
        The serialized model, and what to give for the inputs that follow the model's own.
    """
    slim = model.clone()
    weights: list[ir.TensorProtocol] = []
    for name, value in list(slim.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.nbytes < INPUT_FROM_BYTES or tensor.dtype.numpy().isbuiltin != 1:
            continue
        weights.append(tensor)
        del slim.graph.initializers[name]
        value.const_value = None
        value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
        slim.graph.inputs.append(value)
    return ir.to_proto(slim).SerializeToString(deterministic=True), weights


def weight_bytes(model: ir.Model) -> int:
    """Bytes of the main graph's initializers."""
    held = (value.const_value for value in model.graph.initializers.values())
    return sum(tensor.nbytes for tensor in held if tensor is not None and tensor.dtype != ir.DataType.STRING)


def tensor_bytes(tensor: ir.TensorProtocol) -> Array:
    """The tensor as ONNX stores it: little-endian, elements below one byte packed."""
    if isinstance(tensor, ir.PackedTensor):
        return np.ascontiguousarray(tensor.numpy_packed()).reshape(-1).view(np.uint8)
    if tensor.dtype.bitwidth < 8:
        return np.frombuffer(tensor.tobytes(), dtype=np.uint8)
    return np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8)
