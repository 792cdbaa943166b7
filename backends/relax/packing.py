"""How an initializer is laid out for the kernel that reads it; pure numpy, done once, when the model is compiled.

Shape letters: K the reduced axis, N the columns, P = ceil(N / width) panels, [KH, KW] the window of a convolution, C
its input channels
per group, G groups, O output channels per group.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from backends.relax.nibbles import block_panels, nibble_panels, zero_panels
from backends.relax.winograd import FILTER_MATRIX, PATCH, TAPS

Array = npt.NDArray[Any]

ALIGNMENT = 64
"""Bytes; kernels use aligned vector loads."""


USER_TYPE = 2
"""What numpy's `isbuiltin` says of a type that another package registered."""


def element_type(name: str) -> np.dtype[Any]:
    """The type with that name, of numpy or of ml_dtypes."""
    try:
        return np.dtype(name)
    except TypeError:
        found: np.dtype[Any] = np.dtype(getattr(importlib.import_module("ml_dtypes"), name))
        return found


def carried(array: Array) -> Array:
    """The array as compiled functions take it: elements of ml_dtypes' narrow types as the bytes that hold them."""
    narrow = array.dtype.itemsize == 1 and array.dtype.isbuiltin == USER_TYPE
    return array.view(np.uint8) if narrow else array


def identity(array: Array) -> Array:
    """As it is."""
    return array


def transpose(array: Array, *, order: tuple[int, ...]) -> Array:
    """The axes in another order."""
    return array.transpose(order)


def reshape(array: Array, *, shape: tuple[int, ...]) -> Array:
    """The same elements under another shape."""
    return array.reshape(shape)


def panels(array: Array, *, width: int, transposed: bool = False, alpha: float = 1.0, together: int = 1) -> Array:
    """[..., K, N] (or [..., N, K] if `transposed`) -> [..., P, K, width], padded with zeros, times `alpha`.

    T rows share one if `together` is T: [..., P, ceil(K/T), width * T], where [..., T * w + t] is of the row t of them.
    """
    if transposed:
        array = array.swapaxes(-1, -2)
    *batch, k, n = array.shape
    count = -(-n // width)
    packed = np.zeros((*batch, count, k, width), array.dtype)
    full = n // width
    rank = len(batch)
    order = (*range(rank), rank + 1, rank, rank + 2)
    if full:
        packed[..., :full, :, :] = array[..., : full * width].reshape(*batch, k, full, width).transpose(order)
    if full < count:
        packed[..., full, :, : n - full * width] = array[..., full * width :]
    scaled = packed if alpha == 1.0 else packed * np.asarray(alpha, array.dtype)
    return scaled if together == 1 else _together(scaled, together)


def _together(rows: Array, count: int) -> Array:
    """[..., K, W] -> [..., ceil(K/T), W * T]: T rows in one, zeros beside the last if they do not fill it."""
    *lead, k, width = rows.shape
    if k % count:
        rows = np.concatenate([rows, np.zeros((*lead, count - k % count, width), rows.dtype)], -2)
    return rows.reshape(*lead, -1, count, width).swapaxes(-1, -2).reshape(*lead, -1, width * count)


def byte_panels(array: Array, *, offset: int = 0, **options: Any) -> Array:
    """`panels` of bytes with a sign: of the elements plus `offset`."""
    return panels(_signed(array, offset), **options)


def byte_conv_panels(array: Array, *, offset: int = 0, **options: Any) -> Array:
    """`conv_panels` of bytes with a sign: of the elements plus `offset`."""
    return conv_panels(_signed(array, offset), **options)


def byte_conv_matrix(array: Array, *, offset: int = 0, **options: Any) -> Array:
    """`conv_matrix` of bytes with a sign: of the elements plus `offset`."""
    return conv_matrix(_signed(array, offset), **options)


def byte_depthwise(array: Array, *, offset: int = 0) -> Array:
    """`depthwise` of bytes with a sign, as int32: of the elements plus `offset`."""
    return depthwise(array).astype(np.int32) + np.int32(offset)


def byte_sums(array: Array, *, kept: int, factor: int, offset: int = 0) -> Array:
    """Int32 sums over all axes but one, of the elements plus `offset`, times `factor`."""
    others = tuple(axis for axis in range(array.ndim) if axis != kept)
    sums: Array = (array.astype(np.int32) + offset).sum(others, dtype=np.int32)
    return sums * np.int32(factor)


def times(array: Array, *, factor: float) -> Array:
    """The elements times `factor`."""
    return (array.astype(np.float64) * factor).astype(array.dtype)


def _signed(array: Array, offset: int) -> Array:
    return (array.astype(np.int16) + offset).astype(np.int8)


def conv_panels(array: Array, *, groups: int, width: int, together: int = 1) -> Array:
    """[G*O, C, KH, KW] (or [G*O, C, KW]) -> [G, P, KH, KW * C, width], padded with zeros.

    T channels of a tap share a row as in `panels`: [G, P, KH, KW * ceil(C/T), width * T].
    """
    if array.ndim == 3:
        array = array[:, :, None]
    out, c, kh, kw = array.shape
    per_group = out // groups
    columns = array.reshape(groups, per_group, c, kh, kw).transpose(0, 3, 4, 2, 1)
    taps = np.moveaxis(panels(columns, width=width, together=together), 3, 1)
    return taps.reshape(*taps.shape[:3], -1, taps.shape[-1])


def winograd_panels(array: Array, *, width: int) -> Array:
    """[O, C, 3, 3] -> [P, 6, 6, C, width] float32: G g G^T of each filter (see `winograd`), padded with zeros."""
    out, c = array.shape[:2]
    taps = array.transpose(2, 3, 1, 0).reshape(TAPS * TAPS, c * out).astype(np.float64)
    filters = (np.kron(FILTER_MATRIX, FILTER_MATRIX) @ taps).astype(np.float32)
    return np.moveaxis(panels(filters.reshape(PATCH, PATCH, c, out), width=width), 2, 0)


def spread_panels(array: Array, *, groups: int, width: int, together: int = 1) -> Array:
    """[G*C, M, K...] of a transposed convolution -> [G, P, C, width], padded with zeros; the columns are taps x M."""
    channels, per_group = array.shape[:2]
    columns = array.reshape(groups, channels // groups, per_group, -1).swapaxes(-1, -2)
    return panels(columns.reshape(groups, channels // groups, -1), width=width, together=together)


def conv_matrix(array: Array, *, width: int, together: int = 1) -> Array:
    """[O, C, 1...] -> [P, C, width], padded with zeros; `together` as in `panels`."""
    return panels(array.reshape(array.shape[:2]), width=width, transposed=True, together=together)


def depthwise(array: Array) -> Array:
    """[C, 1, spatial...] -> [spatial..., C]."""
    return array.reshape(array.shape[0], *array.shape[2:]).transpose(*range(1, array.ndim - 1), 0)


TRANSFORMS: dict[str, Callable[..., Array]] = {
    f.__name__: f
    for f in (
        identity,
        transpose,
        reshape,
        panels,
        conv_panels,
        winograd_panels,
        spread_panels,
        conv_matrix,
        depthwise,
        byte_panels,
        byte_conv_panels,
        byte_conv_matrix,
        byte_depthwise,
        byte_sums,
        times,
    )
}
TRANSFORMS |= {f.__name__: f for f in (nibble_panels, block_panels, zero_panels)}


def aligned_empty(nbytes: int) -> npt.NDArray[np.uint8]:
    """A byte buffer whose address is a multiple of `ALIGNMENT`."""
    raw = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + nbytes]


def offsets(sizes: list[int]) -> tuple[list[int], int]:
    """Where parts of these sizes (bytes) start in one aligned buffer, and its length."""
    starts, end = [], 0
    for size in sizes:
        starts.append(end)
        end += -(-size // ALIGNMENT) * ALIGNMENT
    return starts, end
