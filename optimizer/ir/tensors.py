"""Contents of tensors: a hash of them, kept with the tensor so that a large weight is read once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

__all__ = ["concatenated", "content_hash", "same_content"]

_ALWAYS_READ_BYTES = 4096
"""Up to this size a hash is not worth remembering, and reading again notices a tensor that was changed in place."""

_META_KEY = "tersor.content_hash"


def content_hash(tensor: ir.TensorProtocol) -> str:
    """A hash of element type, shape and bits; it is remembered in the `meta` of a large tensor."""
    if tensor.nbytes <= _ALWAYS_READ_BYTES:
        return _compute(tensor)
    if _META_KEY not in tensor.meta:
        tensor.meta[_META_KEY] = _compute(tensor)
    return str(tensor.meta[_META_KEY])


def same_content(a: ir.TensorProtocol, b: ir.TensorProtocol) -> bool:
    """Whether type, shape and bits are the same: `-0.0` differs from `0.0`, and NaN equals itself."""
    if a is b:
        return True
    return a.dtype == b.dtype and a.shape == b.shape and content_hash(a) == content_hash(b)


def concatenated(parts: Sequence[ir.TensorProtocol], axis: int) -> ir.TensorProtocol:
    """Tensors one behind the other along an axis, put together each time that they are read: they are not kept twice.

    Args:
        parts: Of the same type, and of the same shape but for the axis.
        axis: Counted from the front.
    """
    sizes = [int(size) for size in parts[0].shape.numpy()]
    sizes[axis] = sum(int(part.shape.numpy()[axis]) for part in parts)

    def read() -> ir.TensorProtocol:
        return ir.tensor(np.concatenate([part.numpy() for part in parts], axis=axis), dtype=parts[0].dtype)

    return ir.LazyTensor(read, parts[0].dtype, ir.Shape(sizes))


def _compute(tensor: ir.TensorProtocol) -> str:
    digest = hashlib.sha1(f"{tensor.dtype.name}{tuple(tensor.shape)}".encode(), usedforsecurity=False)
    array = tensor.numpy()
    if array.dtype.kind in "OSU":
        for item in array.reshape(-1).tolist():
            text = item if isinstance(item, bytes) else str(item).encode()
            digest.update(f"{len(text)}:".encode() + text)
    elif array.size:
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
