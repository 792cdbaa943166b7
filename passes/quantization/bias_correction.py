"""Take the mean error of a layer out of its bias.

A rounded weight is off by `E`, and the layer by `E x`, whose mean is `E mean(x)`: a constant for each output channel,
as a bias is. See Nagel et al., Data-Free Quantization through Weight Equalization and Bias Correction (2019), 4.2.
Of a convolution the mean is taken as the same at each place, though the padding at the edges is zero.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from optimizer.ir.query import constant, int_attribute
from passes.quantization.grids import quantize_channels
from passes.quantization.layers import Layer
from passes.quantization.writer import WeightGrids, Writer

__all__ = ["can_correct", "correct_bias"]


def can_correct(layer: Layer) -> bool:
    """Whether there is a place for a bias, with a constant in it or nothing: a MatMul has none."""
    if layer.node.op_type == "MatMul":
        return False
    tensor = constant(layer.bias)
    return layer.bias is None or (tensor is not None and tensor.size in (1, layer.channels))


def correct_bias(writer: Writer, layer: Layer, grids: WeightGrids, means: npt.NDArray[np.float64]) -> None:
    """Give a layer another bias.

    Args:
        writer: Of the graph.
        layer: It `can_correct`.
        grids: Of its weight.
        means: Of the channels of its input, `[I]` or `[K]`.
    """
    bias = constant(layer.bias)
    old: npt.NDArray[Any] = np.zeros(layer.channels) if bias is None else bias.numpy().astype(np.float64)
    shape = (layer.channels,) if old.size == 1 else old.shape
    new = (old.reshape(-1) - _mean_error(layer, grids, means)).reshape(shape).astype(np.float32)
    name = f"{layer.node.outputs[0].name}_bias" if layer.bias is None else f"{layer.bias.name}_corrected"
    value = writer.constant(name, new, layer.node)
    if len(layer.node.inputs) < 3:
        layer.node.resize_inputs(3)
    layer.node.replace_input_with(2, value)


def _mean_error(layer: Layer, grids: WeightGrids, means: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """What the output channels are off by in the mean, `[O]`."""
    weight = layer.array.astype(np.float64)
    along = layer.axis if grids.scales.ndim else None
    codes = quantize_channels(layer.array, grids.scales, along, grids.kind)
    scales = (
        grids.scales.reshape([-1 if axis == along else 1 for axis in range(weight.ndim)])
        if grids.scales.ndim
        else grids.scales
    )
    error = (codes.astype(np.float64) - grids.kind.middle) * scales - weight
    if layer.node.op_type != "Conv":
        return np.asarray(means @ error if layer.axis == 1 else error @ means)
    taps = error.reshape(*error.shape[:2], -1).sum(axis=2)
    groups = int_attribute(layer.node, "group", 1)
    own = np.repeat(means.reshape(groups, -1), len(taps) // groups, axis=0)
    return np.asarray((taps * own).sum(axis=1))
