"""The digest of an ONNX model: every byte of it, wherever it lies."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from optimizer.cache.digest import Digest, Undigestable
from optimizer.errors import ModelError
from optimizer.frontends.tensors import map_file
from optimizer.frontends.wire import detach_weights as detach_from_file
from optimizer.ir.weights import detach_weights

__all__ = ["add_file", "add_ir", "add_proto"]


def add_file(digest: Digest, path: Path) -> None:
    """Add a model file and the files that its weights are in.

    Raises:
        Undigestable: One of them cannot be read, or is none; reading the model then tells more.
    """
    data = _mapped(path)
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(detach_from_file(data, path.name))
    except (ModelError, DecodeError) as error:
        raise Undigestable(f"{path.name} is no ONNX model") from error
    digest.add("file")
    digest.add_bytes(data)
    beside = {
        entry.value
        for tensor in _tensors(proto)
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    for name in sorted(beside - {path.name}):
        digest.add("weights", name)
        digest.add_bytes(_mapped(path.parent / name))


def add_proto(digest: Digest, model: onnx.ModelProto) -> None:
    """Add a model in memory.

    Raises:
        Undigestable: It has more than 2 GiB, which protobuf cannot write.
    """
    try:
        data = model.SerializeToString(deterministic=True)
    except (ValueError, UnicodeEncodeError) as error:
        raise Undigestable("the ModelProto cannot be serialized") from error
    digest.add("proto")
    digest.add_bytes(data)


def add_ir(digest: Digest, model: ir.Model) -> None:
    """Add an `onnx_ir.Model`; weights are read from where they are.

    Raises:
        Undigestable: It cannot be serialized; reading the model then tells more.
    """
    try:
        data, weights = detach_weights(model)
    except (RuntimeError, ValueError, TypeError, AssertionError, AttributeError, OSError) as error:
        raise Undigestable("the onnx_ir.Model cannot be serialized") from error
    digest.add("ir")
    digest.add_bytes(data)
    for name, content in weights.items():
        digest.add(name)
        digest.add_bytes(content.data)


def _mapped(path: Path) -> memoryview:
    try:
        with path.open("rb") as file:
            return map_file(file.fileno())
    except OSError as error:
        raise Undigestable(f"{path.name} cannot be read") from error


def _tensors(proto: onnx.ModelProto) -> list[onnx.TensorProto]:
    """All tensors: initializers and attributes, in bodies and functions as well."""
    found: list[onnx.TensorProto] = []
    graphs, nodes = [proto.graph], [node for function in proto.functions for node in function.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            found += [*graph.initializer, *(t.values for t in graph.sparse_initializer)]
            nodes += graph.node
            continue
        for attribute in nodes.pop().attribute:
            found += [attribute.t, *attribute.tensors]
            graphs += [attribute.g, *attribute.graphs]
    return found
