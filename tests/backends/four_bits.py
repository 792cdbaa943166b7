"""Models with weights of 4 bits, and what they compute, in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Quantized:
    """A matrix [K, N], in codes of 4 bits.

    Attributes:
        initializers: `w`, `s`, and `z` if it has zero points; transposed if `transposed`.
        node: the text of the node that unpacks it, as `d`.
        matrix: its elements, float64.
        transposed: whether it lies as [N, K].
    """

    initializers: dict[str, Array]
    node: str
    matrix: Array
    transposed: bool


def quantized(
    depth: int,
    columns: int,
    block: int = 32,
    *,
    signed: bool = True,
    zero: bool = False,
    transposed: bool = False,
    scale: str = "float32",
    seed: int = 0,
) -> Quantized:
    """Random codes; `block` is 0 for a scale for each column, -1 for one for all."""
    rng = np.random.default_rng(seed)
    code = ml_dtypes.int4 if signed else ml_dtypes.uint4
    low, high = (-8, 8) if signed else (0, 16)
    blocks = -(-depth // block) if block > 0 else 1
    shape = (blocks, columns) if block > 0 else (columns,) if block == 0 else ()
    stored = element_type(scale)
    codes = rng.integers(low, high, (depth, columns)).astype(code)
    scales = rng.uniform(0.01, 0.02, shape).astype(stored)
    zeros = rng.integers(low, high, shape).astype(code)

    def wide(array: Array) -> Array:
        numbers = array.astype(np.float64)
        return np.repeat(numbers, block, 0)[:depth] if block > 0 else numbers

    matrix = (codes.astype(np.float64) - (wide(zeros) if zero else 0)) * wide(scales)
    turn = transposed and block > 0
    initializers = {"w": codes.T.copy() if transposed else codes, "s": scales.T.copy() if turn else scales}
    if zero:
        initializers["z"] = zeros.T.copy() if turn else zeros
    axis = int(transposed) if block > 0 else int(not transposed)
    attributes = f"axis={axis}" + (f", block_size={block}" if block > 0 else "")
    target = "" if scale == "float32" else ", output_dtype=1"
    node = f"d = DequantizeLinear<{attributes}{target}>({', '.join(initializers)})"
    return Quantized(initializers, node, matrix, transposed)


def normal_floats(
    depth: int, columns: int, block: int = 32, *, transposed: bool = False, doubly: bool = False, seed: int = 0
) -> Quantized:
    """Codes that are indices of 16 numbers; `block` is 0 for a scale for each column, which no Reshape surrounds.

    If `doubly`, scales are int8, in blocks of 256 in the order of [B, N], less their mean.
    """
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 16, (depth, columns)).astype(ml_dtypes.uint4)
    numbers = np.sort(rng.uniform(-1, 1, 16)).astype(np.float32)
    blocks = depth // block if block else 1
    scales = rng.uniform(0.01, 0.02, (blocks, columns)).astype(np.float32)
    given: dict[str, Array] = {}
    text = ""
    spread = [columns, blocks, 1] if transposed else [blocks, 1, columns]
    if not block:
        spread = [columns, 1] if transposed else [1, columns]
    if doubly:
        small, mean = rng.integers(-127, 128, blocks * columns).astype(np.int8), np.float32(0.015)
        outer = rng.uniform(1e-5, 3e-5, -(-small.size // 256)).astype(np.float32)
        scales = (small * np.repeat(outer, 256)[: small.size] + mean).reshape(blocks, columns)
        given |= {"sc": small, "so": outer, "sm": np.array(mean), "spread": np.array(spread, np.int64)}
        text = "s0 = DequantizeLinear<axis=0, block_size=256>(sc, so) s1 = Add(s0, sm) "
        if transposed:
            given["square"] = np.array([blocks, columns], np.int64)
            text += "s2 = Reshape(s1, square) s3 = Transpose<perm=[1,0]>(s2) "
        text += f"s = Reshape({'s3' if transposed else 's1'}, spread) "
    else:
        given["s"] = (scales.T if transposed else scales).reshape(spread)
    stored = codes.T.copy() if transposed else codes
    given |= {"w": stored, "book": numbers}
    text += "i = Cast<to=6>(w) g = Gather(book, i) "
    if block:
        split = [columns, blocks, block] if transposed else [blocks, block, columns]
        given |= {"split": np.array(split, np.int64), "whole": np.array(stored.shape, np.int64)}
        text += "b = Reshape(g, split) m = Mul(b, s) d = Reshape(m, whole)"
    else:
        text += "d = Mul(g, s)"
    wide = np.repeat(scales.astype(np.float64), block, 0) if block else scales.astype(np.float64)
    matrix = numbers.astype(np.float64)[codes.astype(np.int64)] * wide
    return Quantized(given, text, matrix, transposed)


def element_type(name: str) -> np.dtype[Any]:
    """The type with that name, of numpy or of ml_dtypes."""
    return np.dtype(getattr(ml_dtypes, name)) if name == "bfloat16" else np.dtype(name)


def distance(ours: Array, wanted: Array) -> float:
    """The norm of the difference over that of what was wanted."""
    assert ours.shape == wanted.shape
    return float(np.linalg.norm(ours.astype(np.float64) - wanted) / (np.linalg.norm(wanted) or 1.0))
