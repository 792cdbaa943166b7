"""The ways to quantize one matrix, and the choice among them by the error that each leaves."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from passes.quantization.blocks import Blocks, Floats, Grid, Quantized, joined, output_energy
from passes.quantization.gptq import gptq
from passes.quantization.hqq import half_quadratic
from passes.quantization.inputs import Inputs
from passes.quantization.rtn import round_to_nearest, search_scales

__all__ = ["Choice", "best", "relative_error"]

_COLUMNS = 4096
"""That are quantized at a time."""


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

    A search that GPTQ starts from is itself judged only where GPTQ gains nothing.

    Args:
        weights: `[K, N]`, finite.
        blocks: The rows of a scale.
        grid: The codes.
        method: `"rtn"`; `"hqq"`; `"awq"`, of weights that are scaled already; `"gptq"`; or `"auto"`: the best of RTN
            and a search for scales, and with inputs of GPTQ from the scales that were found. `"gptq"` and `"awq"`
            without inputs: RTN or a search.
        inputs: Of the layer.
    """
    parts, lost, whole = [], 0.0, 0.0
    # Some columns at a time: all that is made of them on the way would take a multiple of the weights' memory.
    for first in range(0, weights.shape[1], _COLUMNS):
        part = np.ascontiguousarray(weights[:, first : first + _COLUMNS])
        parts.append(_best(part, blocks, grid, method, inputs))
        lost += parts[-1].error
        whole += _squares(part, inputs)
    # Named after what most of it is from.
    names = [part.method for part in parts]
    error = math.sqrt(lost / whole) if whole > 0 else 0.0
    return Choice(joined([part.quantized for part in parts]), max(names, key=names.count), error)


def _best(weights: Floats, blocks: Blocks, grid: Grid, method: str, inputs: Inputs | None) -> Choice:
    """The best for some columns; its error is squared and not relative to anything."""

    def judged(name: str, quantized: Quantized) -> Choice:
        return Choice(quantized, name, _lost(quantized.dequantized(), weights, inputs))

    plain = judged("rtn", round_to_nearest(weights, blocks, grid))
    if method == "rtn":
        return plain
    if method == "hqq":
        return _better(plain, judged("hqq", half_quadratic(weights, blocks, grid)))
    searched = search_scales(weights, blocks, grid, None if inputs is None else np.diagonal(inputs.gram).copy())
    if inputs is not None and method != "awq":
        found = judged("gptq", gptq(weights, inputs.elimination, searched, grid))
        if found.error < plain.error:
            return found
    return _better(plain, judged("mse", searched))


def _better(one: Choice, other: Choice) -> Choice:
    return other if other.error < one.error else one


def relative_error(weights: Floats, quantized: Floats, inputs: Inputs | None) -> float:
    """The norm of the difference of the products, or of the weights, over the norm of the right one."""
    whole = _squares(weights, inputs)
    return math.sqrt(_lost(quantized.copy(), weights, inputs) / whole) if whole > 0 else 0.0


def _lost(quantized: Floats, weights: Floats, inputs: Inputs | None) -> float:
    """The squared error; `quantized` is overwritten."""
    quantized -= weights
    return max(_squares(quantized, inputs), 0.0)  # in float32 it can come out a little below 0


def _squares(weights: Floats, inputs: Inputs | None) -> float:
    """The squares of a product with the inputs, or of the weights where the inputs are not known, summed up."""
    if inputs is not None:
        return output_energy(weights, inputs.gram)
    return sum(float(np.square(row, dtype=np.float64).sum()) for row in weights)
