"""Graphs of quantized tensors, and what they stand for in float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from optimizer.executable import Executable
from tests.backends.running import compiled, parse

Array = npt.NDArray[Any]

TARGETS = ("cpu", "cpu:x86-64-v4", "cpu:x86-64-v3", "cpu:generic")
"""The machine at hand, and processors that have to widen, of three vector lengths."""

ROUNDED = 2.0**-24
"""Relative error of an operation in float32."""


def some_bytes(rng: np.random.Generator, dtype: str, *shape: int) -> Array:
    """Every value of the type, the extremes often: sums of products that saturate would show."""
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    values = rng.integers(low, high + 1, shape)
    ends = rng.choice([low, high], shape)
    return np.where(rng.random(shape) < 0.3, ends, values).astype(dtype)


def number(value: float, dtype: str = "float32") -> Array:
    """A scalar."""
    return np.array(value, dtype)


def run(
    text: str, weights: Mapping[str, Array], inputs: Sequence[Array], target: str = "cpu", threads: int = 2
) -> tuple[Array, Executable]:
    """The first result of a graph."""
    executable = compiled(parse(text, weights), target)
    return executable.run(list(inputs), threads)[0], executable


def close(y: Array, wanted: Array, size: Array, operations: int) -> None:
    """Demand that the sums are exact: `operations` roundings in float32 of terms as large as `size` are all."""
    assert (y.dtype, y.shape) == (np.dtype("float32"), wanted.shape)
    error = np.abs(y.astype(np.float64) - wanted)
    bound = 1.01 * operations * ROUNDED * size
    assert (error <= bound).all(), f"{(error / np.maximum(bound, 1e-300)).max()} times the bound"
