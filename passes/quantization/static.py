"""Layers on grids that calibration data gives; see `passes.quantize_int8`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from optimizer.calibration import Samples
from optimizer.ir.edit import Editor, Scope
from passes.quantization.attentions import MIDDLE, round_operands
from passes.quantization.between import plan_rounding
from passes.quantization.bias_correction import can_correct, correct_bias
from passes.quantization.calibrators import calibrate
from passes.quantization.grids import Grid, Kind
from passes.quantization.histogram import Histogram
from passes.quantization.layers import Layer
from passes.quantization.onnxruntime_forms import product_and_sum, round_bias, widened_for_bias
from passes.quantization.ranges import Means, observe_ranges
from passes.quantization.writer import Writer

__all__ = ["StaticPlan", "quantize_static"]


@dataclass(frozen=True)
class StaticPlan:
    """What grids are wanted.

    Attributes:
        weights: For weights.
        activations: For activations.
        per_channel: Whether each output channel has its own scale.
        method: How ranges are found: one of `passes.quantization.calibrators.METHODS`.
        percentile: For that method.
        bias_correction: Whether the mean error of a layer is taken out of its bias.
        onnxruntime: Whether the forms are to be those that ONNX Runtime computes in integers.
    """

    weights: Kind
    activations: Kind
    per_channel: bool
    method: str
    percentile: float
    bias_correction: bool
    onnxruntime: bool

    def grid(self, seen: Histogram, kind: Kind | None = None) -> Grid:
        """For an activation, of another kind if one is given."""
        kind = kind or self.activations
        return kind.over(*calibrate(seen, kind, self.method, self.percentile))


def quantize_static(
    editor: Editor,
    scope: Scope,
    layers: Sequence[Layer],
    attentions: Sequence[ir.Node],
    plan: StaticPlan,
    samples: Samples,
) -> None:
    """Put activations and weights of layers on grids.

    Args:
        editor: Of the model.
        scope: The main graph.
        layers: In topological order.
        attentions: In topological order.
        plan: What grids are wanted.
        samples: Calibration data.
    """
    rounding = plan_rounding(editor, scope, layers, plan.onnxruntime)
    leaders = rounding.grids()
    corrected = [layer for layer in rounding.layers if plan.bias_correction and can_correct(layer)]
    means = {layer.x.name or "": Means(layer.input_channels_axis) for layer in corrected}
    attended = [value.name or "" for node in attentions for value in node.inputs[:3] if value is not None]
    names = list(dict.fromkeys((*leaders.values(), *means, *attended)))
    seen = observe_ranges(editor.model, names, samples, means)
    grids = {name: plan.grid(seen[name]) for name in set(leaders.values())}
    middle = {name: plan.grid(seen[name], MIDDLE) for name in attended}
    writing = _Writing(Writer(editor, scope), plan, {name: grids[leader] for name, leader in leaders.items()})
    by_node = {layer.node: layer for layer in rounding.layers}
    for node in list(scope.graph):
        layer = by_node.get(node)
        if layer is not None:
            writing.layer(layer, means[layer.x.name or ""].values if layer in corrected else None)
        else:
            for index in rounding.reads.get(node, ()):
                writing.read(node, index)
    round_operands(writing.writer, attentions, middle)


@dataclass(frozen=True)
class _Writing:
    """Puts layers, and what lies between them, on grids.

    Attributes:
        writer: Of the graph.
        plan: What grids are wanted.
        grids: Of the rounded values, by name: a layer before may have put another value in the place of one.
    """

    writer: Writer
    plan: StaticPlan
    grids: Mapping[str, Grid]

    def grid(self, value: ir.Value | None) -> Grid:
        """That of a value."""
        assert value is not None, "what is left out is not rounded"
        return self.grids[value.name or ""]

    def read(self, node: ir.Node, index: int) -> None:
        """Let a node read an input rounded."""
        value = node.inputs[index]
        assert value is not None, "what is left out is not rounded"
        node.replace_input_with(index, self.writer.rounded(value, self.grid(value), node))

    def layer(self, layer: Layer, means: npt.NDArray[np.float64] | None) -> None:
        """Quantize a layer; with the means of its input's channels its bias is corrected."""
        node, plan, grid = layer.node, self.plan, self.grid(layer.node.inputs[0])
        grids = layer.grids(plan.weights, plan.per_channel)
        if plan.onnxruntime and node.op_type == "Conv":
            grids = widened_for_bias(layer, grids, grid)
        if means is not None:
            correct_bias(self.writer, layer, grids, means)
        if plan.onnxruntime and node.op_type == "Gemm":
            product_and_sum(self.writer, layer, plan.weights, plan.per_channel, grid)
            return
        if plan.onnxruntime and node.op_type == "Conv":
            round_bias(self.writer, layer, grids, grid)
        self.read(node, 0)
        node.replace_input_with(1, self.writer.weight(layer.weight, grids, node))
