"""An `.onnx` file, a `ModelProto` or an `onnx_ir.Model` becomes a model of our own; weights are shared or mapped."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from optimizer.errors import ModelError
from optimizer.frontends.tensors import attach_weights, map_file
from optimizer.frontends.wire import detach_weights

__all__ = ["from_ir", "from_path", "from_proto"]

_MAX_DENSE_ELEMENTS = 2**28


def from_path(path: str | os.PathLike[str]) -> ir.Model:
    """Read a model file through a memory map.

    Raises:
        ModelError: The file cannot be read, or holds no sound ONNX model.
    """
    file = Path(path)
    try:
        with file.open("rb") as stream:
            data = map_file(stream.fileno())
    except OSError as error:
        raise ModelError(f"cannot read the model {str(file)!r}: {error.strerror or error}") from error
    if not len(data):
        raise ModelError(f"the model {str(file)!r} is empty")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(detach_weights(data, file.name))
    except (ModelError, DecodeError) as error:
        raise ModelError(f"{str(file)!r} is no ONNX model, or damaged: {error}") from error
    return _to_ir(proto, file.parent, {file.name: data})


def from_proto(proto: onnx.ModelProto) -> ir.Model:
    """Take over a `ModelProto`; its weights are shared.

    Raises:
        ModelError: It is no sound ONNX model.
    """
    if proto.graph.sparse_initializer:
        copied = onnx.ModelProto()
        copied.CopyFrom(proto)
        proto = copied
    return _to_ir(proto)


def from_ir(model: ir.Model) -> ir.Model:
    """Copy the structure of an `onnx_ir.Model`, so that the caller's stays as it is; its weights are shared.

    Raises:
        ModelError: It is no sound ONNX model.
    """
    try:
        copied = model.clone()
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise ModelError(f"the onnx_ir.Model cannot be copied: {_innermost(error)}") from error
    attach_weights(copied, Path())
    return copied


def _to_ir(
    proto: onnx.ModelProto, base_dir: Path | None = None, files: dict[str, memoryview] | None = None
) -> ir.Model:
    if not proto.HasField("graph"):
        raise ModelError("the model has no graph: it is no ONNX model, or truncated")
    _densify(proto.graph)
    try:
        model = ir.from_proto(proto)
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, AssertionError, OverflowError) as error:
        raise ModelError(f"the model is damaged: {_innermost(error)}") from error
    attach_weights(model, base_dir, files)
    return model


def _innermost(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def _densify(graph: onnx.GraphProto) -> None:
    """Replace sparse initializers, which no later stage knows, by dense ones."""
    for sparse in graph.sparse_initializer:
        graph.initializer.append(_dense(sparse))
    del graph.sparse_initializer[:]


def _dense(sparse: onnx.SparseTensorProto) -> onnx.TensorProto:
    name, dims = sparse.values.name, list(sparse.dims)
    if any(d < 0 for d in dims) or int(np.prod(dims, dtype=object)) > _MAX_DENSE_ELEMENTS:
        raise ModelError(f"the sparse initializer {name!r} with shape {dims} is too large to be made dense")
    try:
        values, indices = onnx.numpy_helper.to_array(sparse.values), onnx.numpy_helper.to_array(sparse.indices)
        dense = np.zeros(dims, dtype=values.dtype)
        flat = indices if indices.ndim == 1 else np.ravel_multi_index(tuple(indices.T), dims)
        dense.reshape(-1)[flat] = values
    except (ValueError, TypeError, IndexError) as error:
        raise ModelError(f"the sparse initializer {name!r} is damaged: {error}") from error
    return onnx.numpy_helper.from_array(dense, name)
