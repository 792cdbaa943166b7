"""float32 tensors as bfloat16."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

__all__ = ["LARGEST", "clamped", "rounded"]

LARGEST = 255.0 * 2**120
"""The largest finite bfloat16, 3.3895e38; the largest float32 is 3.4028e38."""
_READ_AT_ONCE_BYTES = 4096
_INFINITY = 0x7F80


def rounded(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """A float32 tensor as bfloat16: the nearest, ties to even; a finite number stays finite.

    A large one is converted each time that it is read: it is not kept twice.
    """

    def read() -> ir.TensorProtocol:
        return ir.Tensor(_round(tensor.numpy()), dtype=ir.DataType.BFLOAT16)

    if tensor.nbytes <= _READ_AT_ONCE_BYTES:
        return read()
    return ir.LazyTensor(read, ir.DataType.BFLOAT16, ir.Shape(tensor.shape.numpy()))


def clamped(tensor: ir.TensorProtocol) -> ir.TensorProtocol | None:
    """A float32 tensor with all finite numbers in the range of bfloat16; `None` if they are there already."""
    array = tensor.numpy()
    if not (np.isfinite(array) & (np.abs(array) > LARGEST)).any():
        return None
    return ir.Tensor(np.where(np.isinf(array), array, np.clip(array, -LARGEST, LARGEST)).astype(np.float32))


def _round(array: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    with np.errstate(over="ignore"):
        narrow = array.astype(ml_dtypes.bfloat16)
    infinite = (narrow.view(np.uint16) & 0x7FFF) == _INFINITY
    if infinite.any():
        lost = infinite & np.isfinite(array)
        narrow = np.where(lost, np.copysign(LARGEST, array).astype(ml_dtypes.bfloat16), narrow)
    return narrow
