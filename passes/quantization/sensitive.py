"""Depthwise convolutions that lose more by being rounded than they gain.

A depthwise convolution sums few products, each of a channel of its own: bytes make its arithmetic no faster, and the
rounding errors of few neighbours, which it often subtracts from each other, do not average out as those of a long sum
do (Nagel et al., Data-Free Quantization through Weight Equalization and Bias Correction, 2019, section 3). What it
gains is that its neighbours store bytes. So it stays float32 where it loses more than `MOST_LOST`, and more than
`APART` times what the others of its model lose in the median: one that stands out is worth it, all of them are not.

With steps s of the input and t of the weight of a channel, errors that know nothing of each other have, beside the
result y, the power

    (s² / 12) sum over k of w_k²  +  (t² / 12) sum over k of E[x_k²]

in the mean over its channels, since an error is spread evenly over a step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from passes.quantization.grids import Grid, Kind
from passes.quantization.layers import Layer
from passes.quantization.ranges import Powers

__all__ = ["APART", "MOST_LOST", "is_depthwise", "lost", "outliers"]

MOST_LOST = 0.02
"""Relative error of a result; a usual layer in 8 bits loses half of it."""
APART = 2.0
"""How many times as much as the others."""


def is_depthwise(layer: Layer) -> bool:
    """Whether each channel of a convolution's result is made of one channel."""
    shape = layer.array.shape
    return layer.node.op_type == "Conv" and shape[0] > 1 and shape[1] == 1


def lost(layer: Layer, grid: Grid, weights: Kind, per_channel: bool, powers: Mapping[str, Powers]) -> float:
    """The expected relative error of a depthwise convolution's result.

    Args:
        layer: It `is_depthwise`.
        grid: Of its input.
        weights: The kind of its weight's grids.
        per_channel: Whether each channel of the weight has its own.
        powers: Of the channels of its input and of its result, by name.
    """
    array = layer.array.astype(np.float64).reshape(layer.channels, -1)
    x, y = powers[layer.x.name or ""].values, powers[layer.node.outputs[0].name or ""].values
    read = np.repeat(x, layer.channels // len(x))
    steps = np.broadcast_to(layer.grids(weights, per_channel).scales, layer.channels).astype(np.float64)
    noise = grid.scale**2 / 12 * (array**2).sum(axis=1) + steps**2 / 12 * array.shape[1] * read
    signal = float(y.mean())
    return math.sqrt(float(noise.mean()) / signal) if signal else 0.0


def outliers(errors: Mapping[Layer, float]) -> list[Layer]:
    """The layers that lose too much, by what each of a model's depthwise convolutions loses."""
    found = []
    for layer, error in errors.items():
        others = [each for other, each in errors.items() if other is not layer]
        if error > max(MOST_LOST, APART * float(np.median(others)) if others else 0.0):
            found.append(layer)
    return found
