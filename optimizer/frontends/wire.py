"""Take the weights out of a serialized ONNX model without parsing them.

A protobuf message is a list of (tag, payload) fields. Walking the fields `ModelProto.graph.initializer.raw_data` by
hand finds each weight's place in the file; the rest is copied, and the weight becomes external data *of the same file*.
So a model of any size is read through one memory map and is never held in memory a second time.

Field numbers are those of `onnx.proto`, encoding that of https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from optimizer.errors import ModelError

__all__ = ["detach_weights"]

MODEL_GRAPH = 7
GRAPH_INITIALIZER = 5
TENSOR_RAW_DATA = 9
TENSOR_EXTERNAL_DATA = 13
TENSOR_DATA_LOCATION = 14
ENTRY_KEY, ENTRY_VALUE = 1, 2
EXTERNAL = 1

VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = 0, 1, 2, 5

DETACH_FROM_BYTES = 1024


class _Field(NamedTuple):
    """One field: its number, and where it and its payload lie in the buffer."""

    number: int
    wire_type: int
    start: int
    payload: int
    end: int


def detach_weights(data: memoryview, location: str) -> bytes:
    """Rewrite a serialized `ModelProto` so that large initializers refer to the bytes of the file that it came from.

    Args:
        data: The whole file.
        location: The file's name, to be written as the weights' external location.

    Returns:
        A serialized `ModelProto` without the weights of 1 KiB and more that were stored as raw data.

    Raises:
        ModelError: The bytes are no protobuf message, or stop in the middle of a field.
    """
    out: list[bytes | memoryview] = []
    for field in _fields(data, 0, len(data)):
        if field.number == MODEL_GRAPH and field.wire_type == LENGTH_DELIMITED:
            out.append(_delimited(MODEL_GRAPH, _detach_from_graph(data, field, location)))
        else:
            out.append(data[field.start : field.end])
    return b"".join(out)


def _detach_from_graph(data: memoryview, graph: _Field, location: str) -> bytes:
    out: list[bytes | memoryview] = []
    for field in _fields(data, graph.payload, graph.end):
        if field.number == GRAPH_INITIALIZER and field.end - field.payload >= DETACH_FROM_BYTES:
            out.append(_delimited(GRAPH_INITIALIZER, _detach_from_tensor(data, field, location)))
        else:
            out.append(data[field.start : field.end])
    return b"".join(out)


def _detach_from_tensor(data: memoryview, tensor: _Field, location: str) -> bytes:
    fields = list(_fields(data, tensor.payload, tensor.end))
    raw = [f for f in fields if f.number == TENSOR_RAW_DATA and f.wire_type == LENGTH_DELIMITED]
    if len(raw) != 1 or raw[0].end - raw[0].payload < DETACH_FROM_BYTES:
        return bytes(data[tensor.payload : tensor.end])
    out: list[bytes | memoryview] = [data[f.start : f.end] for f in fields if f is not raw[0]]
    place = {"location": location, "offset": str(raw[0].payload), "length": str(raw[0].end - raw[0].payload)}
    for key, value in place.items():
        entry = _delimited(ENTRY_KEY, key.encode()) + _delimited(ENTRY_VALUE, value.encode())
        out.append(_delimited(TENSOR_EXTERNAL_DATA, entry))
    out.append(_tag(TENSOR_DATA_LOCATION, VARINT) + _varint(EXTERNAL))
    return b"".join(out)


def _fields(data: memoryview, start: int, end: int) -> Iterator[_Field]:
    position = start
    while position < end:
        tag, payload = _read_varint(data, position, end)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == VARINT:
            _, stop = _read_varint(data, payload, end)
        elif wire_type == LENGTH_DELIMITED:
            length, payload = _read_varint(data, payload, end)
            stop = payload + length
        elif wire_type in (FIXED64, FIXED32):
            stop = payload + (8 if wire_type == FIXED64 else 4)
        else:
            raise ModelError(f"byte {position} is not the start of a protobuf field")
        if stop > end or number == 0:
            raise ModelError(f"the field at byte {position} ends outside its message")
        yield _Field(number, wire_type, position, payload, stop)
        position = stop


def _read_varint(data: memoryview, position: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= end:
            raise ModelError(f"the file stops inside a number at byte {position}")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ModelError(f"the number that ends at byte {position} is longer than 64 bits")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _tag(number: int, wire_type: int) -> bytes:
    return _varint(number << 3 | wire_type)


def _delimited(number: int, payload: bytes) -> bytes:
    return _tag(number, LENGTH_DELIMITED) + _varint(len(payload)) + payload
