"""Where a model's weights come from: each is checked against its shape, and those on disk are memory-mapped.

External data may only lie in the folder of the model's own file: no absolute path, no `..`, no symbolic link that leads
out of it. One map is made for each file, however many weights it holds, so a model with thousands of weights costs one
file handle.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import cast

import numpy as np
import onnx
import onnx_ir as ir

from optimizer.errors import ModelError

__all__ = ["attach_weights", "check_tensor", "iterate_tensors", "map_file"]

Replace = Callable[[ir.TensorProtocol], None]

_INT32_STORED = {
    ir.DataType.INT32,
    ir.DataType.INT16,
    ir.DataType.INT8,
    ir.DataType.UINT16,
    ir.DataType.UINT8,
    ir.DataType.BOOL,
    ir.DataType.FLOAT16,
    ir.DataType.BFLOAT16,
    ir.DataType.FLOAT8E4M3FN,
    ir.DataType.FLOAT8E4M3FNUZ,
    ir.DataType.FLOAT8E5M2,
    ir.DataType.FLOAT8E5M2FNUZ,
    ir.DataType.FLOAT8E8M0,
}
_MAX_ELEMENTS = 2**40


def attach_weights(model: ir.Model, base_dir: Path | None = None, files: dict[str, memoryview] | None = None) -> None:
    """Check every constant tensor of `model`, and map those that are stored in files.

    Args:
        model: Changed in place: external tensors become views of memory-mapped files.
        base_dir: The folder of the model's file; `None` when the model never was in a file.
        files: Files of that folder that are mapped already, by name.

    Raises:
        ModelError: A tensor's data does not fit its shape, its type is unknown, or its file is missing, too short or
            elsewhere.
    """
    files = {} if files is None else files
    for tensor, replace in iterate_tensors(model):
        if isinstance(tensor, ir.ExternalTensor):
            folder = tensor.base_dir or base_dir
            if folder is None:
                raise ModelError(
                    f"tensor {tensor.name!r} refers to the file {str(tensor.location)!r}, but the model came without a "
                    "folder: pass the path of the .onnx file, or load its external data first"
                )
            replace(_mapped(tensor, Path(folder), files))
        else:
            check_tensor(tensor)


def iterate_tensors(model: ir.Model) -> Iterator[tuple[ir.TensorProtocol, Replace]]:
    """Every constant tensor of the model, its subgraphs and its functions, each with the way to replace it."""
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    while graphs:
        graph = graphs.pop()
        if isinstance(graph, ir.Graph):
            for value in list(graph.initializers.values()):
                if value.const_value is not None:
                    yield value.const_value, lambda new, value=value: setattr(value, "const_value", new)  # type: ignore[misc]
        for node in graph:
            for attr in list(node.attributes.values()):
                if attr.is_ref() or attr.value is None:
                    continue
                if attr.type == ir.AttributeType.TENSOR:
                    yield cast(ir.TensorProtocol, attr.value), _attribute_setter(node, attr.name)
                elif attr.type == ir.AttributeType.TENSORS:
                    yield from ((tensor, _reject_external(node)) for tensor in attr.as_tensors())
                elif attr.type == ir.AttributeType.GRAPH:
                    graphs.append(attr.as_graph())
                elif attr.type == ir.AttributeType.GRAPHS:
                    graphs.extend(attr.as_graphs())


def check_tensor(tensor: ir.TensorProtocol) -> None:
    """Raise `ModelError` unless the tensor's data is exactly what its type and shape ask for."""
    size = _element_count(tensor)
    if isinstance(tensor, ir.serde.TensorProtoTensor):
        _check_proto(tensor.raw, size)
    elif isinstance(tensor, ir.StringTensor) and len(tensor.string_data()) != size:
        raise ModelError(f"tensor {tensor.name!r} holds {len(tensor.string_data())} strings, its shape asks for {size}")


def _attribute_setter(node: ir.Node, name: str) -> Replace:
    def replace(tensor: ir.TensorProtocol) -> None:
        node.attributes[name] = ir.AttrTensor(name, tensor)

    return replace


def _reject_external(node: ir.Node) -> Replace:
    def replace(tensor: ir.TensorProtocol) -> None:
        raise ModelError(
            f"node {node.name!r} keeps a list of tensors in files; only single tensors may be stored outside the model"
        )

    return replace


def _element_count(tensor: ir.TensorProtocol) -> int:
    try:
        is_typed = tensor.dtype != ir.DataType.UNDEFINED
    except ValueError:  # a number that stands for no type
        is_typed = False
    if not is_typed:
        raise ModelError(f"tensor {tensor.name!r} has no element type that ONNX knows")
    dims = [int(dim) for dim in tensor.shape]  # type: ignore[arg-type]
    if any(dim < 0 for dim in dims):
        raise ModelError(f"tensor {tensor.name!r} has a negative dimension: {dims}")
    size = math.prod(dims)
    if size > _MAX_ELEMENTS:
        raise ModelError(f"tensor {tensor.name!r} with shape {dims} has more than {_MAX_ELEMENTS} elements")
    return size


def _byte_count(dtype: ir.DataType, size: int) -> int:
    return (size * dtype.bitwidth + 7) // 8


def _check_proto(proto: onnx.TensorProto, size: int) -> None:
    dtype = ir.DataType(proto.data_type)
    if dtype == ir.DataType.STRING:
        found, expected, unit = len(proto.string_data), size, "strings"
    elif proto.HasField("raw_data"):
        found, expected, unit = len(proto.raw_data), _byte_count(dtype, size), "bytes"
    else:
        found, expected, unit = *_typed_field(proto, dtype, size), "numbers"
    if found != expected:
        raise ModelError(
            f"tensor {proto.name!r} of type {dtype.name} and shape {list(proto.dims)} needs {expected} {unit}, "
            f"the model holds {found}: it is truncated or damaged"
        )


def _typed_field(proto: onnx.TensorProto, dtype: ir.DataType, size: int) -> tuple[int, int]:
    """How many numbers the tensor's typed field holds, and how many it should."""
    if dtype in (ir.DataType.FLOAT, ir.DataType.COMPLEX64):
        return len(proto.float_data), size * (2 if dtype == ir.DataType.COMPLEX64 else 1)
    if dtype in (ir.DataType.DOUBLE, ir.DataType.COMPLEX128):
        return len(proto.double_data), size * (2 if dtype == ir.DataType.COMPLEX128 else 1)
    if dtype == ir.DataType.INT64:
        return len(proto.int64_data), size
    if dtype in (ir.DataType.UINT32, ir.DataType.UINT64):
        return len(proto.uint64_data), size
    if dtype in _INT32_STORED:
        return len(proto.int32_data), size
    return len(proto.int32_data), _byte_count(dtype, size)


def _mapped(tensor: ir.ExternalTensor, base_dir: Path, files: dict[str, memoryview]) -> ir.TensorProtocol:
    size = _element_count(tensor)
    if tensor.dtype == ir.DataType.STRING:
        raise ModelError(f"tensor {tensor.name!r}: strings cannot be stored outside the model's file")
    expected = _byte_count(tensor.dtype, size)
    offset, length = tensor.offset or 0, expected if tensor.length is None else tensor.length
    if length != expected:
        raise ModelError(
            f"tensor {tensor.name!r} of type {tensor.dtype.name} and shape {tensor.shape} needs {expected} bytes, "
            f"its entry for the file {str(tensor.location)!r} says {length}"
        )
    data = _open(tensor, base_dir, files)
    if offset < 0 or offset + length > len(data):
        raise ModelError(
            f"tensor {tensor.name!r} lies at bytes {offset} to {offset + length} of {str(tensor.location)!r}, "
            f"which has {len(data)}: the file is truncated, or not the one that belongs to the model"
        )
    return _tensor_over(data[offset : offset + length], tensor)


def _tensor_over(data: memoryview, tensor: ir.ExternalTensor) -> ir.TensorProtocol:
    if tensor.dtype.bitwidth < 8:
        packed = np.frombuffer(data, dtype=np.uint8)
        return ir.PackedTensor(packed, tensor.dtype, shape=tensor.shape, name=tensor.name)
    dtype = np.dtype(tensor.dtype.numpy()).newbyteorder("<")
    array = np.frombuffer(data, dtype=dtype).reshape(tensor.shape.numpy())
    return ir.Tensor(array, tensor.dtype, name=tensor.name)


def _open(tensor: ir.ExternalTensor, base_dir: Path, files: dict[str, memoryview]) -> memoryview:
    location = os.fspath(tensor.location)
    if location not in files:
        path = _resolve(str(tensor.name), location, base_dir)
        try:
            with path.open("rb") as file:
                files[location] = map_file(file.fileno())
        except OSError as error:
            raise ModelError(
                f"tensor {tensor.name!r}: cannot read its file {str(path)!r}: {error.strerror or error}"
            ) from error
    return files[location]


def map_file(descriptor: int) -> memoryview:
    """The whole file, read-only and mapped; an empty file cannot be mapped and gives an empty buffer."""
    if os.fstat(descriptor).st_size == 0:
        return memoryview(b"")
    return memoryview(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ))


def _resolve(name: str, location: str, base_dir: Path) -> Path:
    parts = (*PurePosixPath(location).parts, *PureWindowsPath(location).parts)
    outside = ".." in parts or PurePosixPath(location).is_absolute() or PureWindowsPath(location).is_absolute()
    if outside or not location or "\0" in location:
        raise ModelError(
            f"tensor {name!r} refers to {location!r}, which is not inside the model's folder: "
            "put its data beside the model"
        )
    folder = Path(os.path.realpath(base_dir))
    try:
        path = Path(os.path.realpath(folder / location))
        exists = path.is_file()
    except OSError as error:
        raise ModelError(f"tensor {name!r}: {location!r} is no file name: {error.strerror or error}") from error
    if not path.is_relative_to(folder):
        raise ModelError(
            f"tensor {name!r}: {location!r} is a link that leads out of the model's folder: "
            "put its data beside the model"
        )
    if not exists:
        raise ModelError(f"tensor {name!r}: its file {str(folder / location)!r} is missing")
    return path
