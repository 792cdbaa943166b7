"""How weights of 4 bits and their scales are laid out; pure numpy, as `packing`.

Letters: K the reduced axis, N the columns, P = ceil(N / width) panels, B blocks of K that share a scale.

Eight codes of a column, neighbours along K, share 32 bits, so that a vector of such words holds eight rows of as many
columns as it has lanes. The byte `j` of a word has the code of row `j` in its low half and that of row `j + 4` in its
high half (`shift`): masking the low halves leaves four neighbouring rows as bytes, which is what instructions that
multiply bytes want.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

GROUP = 8
"""Codes in a word."""
_MIDDLE = 8
"""What a signed code is moved by to make it unsigned."""


def shift(row: int) -> int:
    """The lowest bit of the code of a word's row."""
    return row % 4 * 8 + row // 4 * 4


def unsigned(codes: Array, *, signed: bool) -> Array:
    """4-bit integers, each in a byte, as 0 to 15: signed ones are moved by 8."""
    bits = codes.astype(np.uint8) & 15
    return bits ^ np.uint8(_MIDDLE) if signed else bits


def nibble_panels(array: Array, *, width: int, transposed: bool, signed: bool) -> Array:
    """Codes [K, N] (or [N, K] if `transposed`) -> words [P, ceil(K/8), width], padded with zeros."""
    codes = unsigned(array.T if transposed else array, signed=signed)
    depth, columns = codes.shape
    panels, groups = -(-columns // width), -(-depth // GROUP)
    packed = np.zeros((panels, groups, width), np.uint32)
    for panel in range(panels):  # one after the other: widened to words, all of them would take eight times the memory
        part = codes[:, panel * width : (panel + 1) * width]
        for row in range(GROUP):
            some = part[row::GROUP].astype(np.uint32)
            packed[panel, : some.shape[0], : some.shape[1]] |= some << np.uint32(shift(row))
    return packed.view(np.int32)


def block_panels(array: Array, *, width: int, transposed: bool, blocks: int, columns: int) -> Array:
    """Scales -> [P, B, width], padded with zeros.

    They are one number, one a column [N], or one a block [B, N] ([N, B] if `transposed`), but for axes of size 1.
    """
    if array.size == 1:
        matrix = array.reshape(1, 1)
    else:
        matrix = array.reshape(columns, blocks).T if transposed else array.reshape(blocks, columns)
    panels = -(-columns // width)
    packed = np.zeros((blocks, panels * width), array.dtype)
    packed[:, :columns] = matrix
    return packed.reshape(blocks, panels, width).swapaxes(0, 1)


def zero_panels(array: Array, *, width: int, transposed: bool, blocks: int, columns: int, signed: bool) -> Array:
    """Zero points of 4 bits as bytes, laid out as the scales."""
    zeros = unsigned(array, signed=signed)
    return block_panels(zeros, width=width, transposed=transposed, blocks=blocks, columns=columns)
