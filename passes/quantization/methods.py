"""The ways to quantize one matrix, and the choice among them by the error that each leaves."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from passes.quantization.blocks import Blocks, Floats, Grid, Quantized, output_error
from passes.quantization.gptq import gptq
from passes.quantization.hqq import half_quadratic
from passes.quantization.inputs import Inputs
from passes.quantization.rtn import round_to_nearest, search_scales

__all__ = ["Choice", "best", "relative_error"]


@dataclass(frozen=True)
class Choice:
    """A quantized matrix.

    Attributes:
        quantized: The codes.
        method: How they were found: `"rtn"`, `"mse"` (`search_scales`), `"hqq"`, `"gptq"` or `"awq"`.
        error: Of the product with the layer's inputs, or of the weights where the inputs are not known: the norm of
            the difference over the norm.
        input_scales: What rows of the weights were multiplied with before (AWQ).
    """

    quantized: Quantized
    method: str
    error: float
    input_scales: Floats | None = None


def best(weights: Floats, blocks: Blocks, grid: Grid, method: str, inputs: Inputs | None) -> Choice:
    """The best of what a method stands for, never worse than RTN.

    Args:
        weights: `[K, N]`, finite.
        blocks: The rows of a scale.
        grid: The codes.
        method: `"rtn"`; `"hqq"`; `"awq"`, of weights that are scaled already; `"gptq"`; or `"auto"`: without inputs the
            best of RTN, a search for scales, and HQQ; with them of RTN, a search, and GPTQ from the scales that were
            found. `"gptq"` and `"awq"` are the same as `"auto"` without inputs.
        inputs: Of the layer.
    """
    tried = [
        Choice(quantized, name, relative_error(weights, quantized.dequantized(), inputs))
        for name, quantized in _candidates(weights, blocks, grid, method, inputs)
    ]
    return min(tried, key=lambda choice: choice.error)


def relative_error(weights: Floats, quantized: Floats, inputs: Inputs | None) -> float:
    """The norm of the difference of the products, or of the weights, over the norm of the right one."""
    if inputs is None:
        error = float(np.square(weights - quantized, dtype=np.float64).sum())
        whole = float(np.square(weights, dtype=np.float64).sum())
    else:
        error = output_error(weights, quantized, inputs.gram)
        whole = output_error(weights, np.zeros_like(weights), inputs.gram)
    # In float32 the error of a product can come out a little below 0.
    return math.sqrt(max(error, 0.0) / whole) if whole > 0 else 0.0


def _candidates(
    weights: Floats, blocks: Blocks, grid: Grid, method: str, inputs: Inputs | None
) -> Iterator[tuple[str, Quantized]]:
    yield "rtn", round_to_nearest(weights, blocks, grid)
    if method == "rtn":
        return
    if method == "hqq" or inputs is None:
        yield "hqq", half_quadratic(weights, blocks, grid)
    if method == "hqq":
        return
    searched = search_scales(weights, blocks, grid, None if inputs is None else np.diagonal(inputs.gram).copy())
    yield "mse", searched
    if inputs is not None and method != "awq":
        yield "gptq", gptq(weights, inputs.elimination, searched, grid)
