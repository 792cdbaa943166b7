"""float32 tensors as floats of 16 bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

__all__ = ["NARROW_FLOATS", "NarrowFloat", "clamped", "rounded"]

_READ_AT_ONCE_BYTES = 4096


@dataclass(frozen=True)
class NarrowFloat:
    """A type of 16 bits.

    Attributes:
        name: As numpy or `ml_dtypes` has it.
        dtype: As ONNX has it.
        largest: The largest finite number.
        mask: What a number of a mask that is larger becomes. In float16 a score and a few masks are added to it, and
            the sum must stay finite; it is still far below any score.
        smallest: The smallest number of full precision. A smaller one that is added as a safeguard would be lost.
    """

    name: str
    dtype: ir.DataType
    largest: float
    mask: float
    smallest: float

    @property
    def onnx(self) -> str:
        """As ONNX's definitions of operators have it."""
        return f"tensor({self.name})"

    @property
    def is_short_of_range(self) -> bool:
        """Whether ordinary numbers may lie outside."""
        return self.largest < 1e30


# The largest float32 is 3.4028e38, that of bfloat16 3.3895e38.
NARROW_FLOATS: Mapping[str, NarrowFloat] = {
    "bfloat16": NarrowFloat("bfloat16", ir.DataType.BFLOAT16, 255.0 * 2**120, 255.0 * 2**120, 2.0**-126),
    "float16": NarrowFloat("float16", ir.DataType.FLOAT16, 65504.0, 2.0**14, 2.0**-14),
}


def rounded(tensor: ir.TensorProtocol, to: NarrowFloat) -> ir.TensorProtocol:
    """A float32 tensor in another type: the nearest, ties to even; a finite number stays finite.

    A large one is converted each time that it is read: it is not kept twice.
    """

    def read() -> ir.TensorProtocol:
        return ir.Tensor(_round(tensor.numpy(), to), dtype=to.dtype)

    if tensor.nbytes <= _READ_AT_ONCE_BYTES:
        return read()
    return ir.LazyTensor(read, to.dtype, ir.Shape(tensor.shape.numpy()))


def clamped(tensor: ir.TensorProtocol, to: NarrowFloat) -> ir.TensorProtocol | None:
    """A float32 tensor with all finite numbers in the range of the type; `None` if they are there already."""
    array = tensor.numpy()
    large = np.isfinite(array) & (np.abs(array) > to.largest)
    if not large.any():
        return None
    return ir.Tensor(np.where(large, np.copysign(to.mask, array), array).astype(np.float32))


def _round(array: npt.NDArray[np.generic], to: NarrowFloat) -> npt.NDArray[np.generic]:
    kind = np.float16 if to.name == "float16" else ml_dtypes.bfloat16
    with np.errstate(over="ignore"):
        narrow = array.astype(kind)
    infinite = np.isinf(narrow)
    if infinite.any():
        lost = infinite & np.isfinite(array)
        narrow = np.where(lost, np.copysign(to.mask, array).astype(kind), narrow)
    return narrow
