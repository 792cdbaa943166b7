"""Write a graph as an `.onnx` file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from optimizer.atomic_file import atomic_write
from optimizer.executable import Array
from optimizer.ir.weights import detach_weights

__all__ = ["write_onnx"]

INLINE_BYTES = 1 << 30
"""Weights up to this size are written into the file itself; protobuf's own limit is 2 GiB."""


def write_onnx(model: ir.Model, path: Path) -> None:
    """Write a model; weights over 1 GiB in all go into `<name>.data` beside it.

    Raises:
        ArtifactError: A file cannot be written; nothing is left behind.
    """
    weights = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    if weights <= INLINE_BYTES:
        data = ir.to_proto(model).SerializeToString(deterministic=True)
        with atomic_write(path) as file:
            file.write(data)
        return
    beside = path.with_name(path.name + ".data")
    slim, files = detach_weights(model)
    with atomic_write(path) as file, atomic_write(beside) as weight_file:
        file.write(_relocated(slim, files, beside.name))
        for content in files.values():
            weight_file.write(content.data)


def _relocated(slim: bytes, files: Mapping[str, Array], location: str) -> bytes:
    """Let the weights, one file each, refer to one file that holds them one after the other."""
    import onnx

    offsets, end = {}, 0
    for name, content in files.items():
        offsets[name] = end
        end += content.nbytes
    proto = onnx.ModelProto.FromString(slim)
    for tensor in proto.graph.initializer:
        entries = {entry.key: entry for entry in tensor.external_data}
        if "location" in entries:
            entries["offset"].value = str(offsets[entries["location"].value])
            entries["location"].value = location
    relocated: bytes = proto.SerializeToString(deterministic=True)
    return relocated
